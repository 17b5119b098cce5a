"""The simulated world as the bridge sees it: episodes, steps, and a fingerprint of all states. No ROS."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dtvla.sim.bootstrap import GL_PACKAGES, SimulatorUnavailable
from dtvla.sim.env import ACTION_DIM, Observation, SimEnv, TaskInfo


class World:
    """One simulated scene at a time, rebuilt only when the task changes.

    Args:
        image_size: side of the camera images in px.
        fast: cheap rendering.
        max_steps: control periods per episode; 0 takes the task's own limit.
    """

    def __init__(self, *, image_size: int, fast: bool, max_steps: int) -> None:
        self._image_size = image_size
        self._fast = fast
        self._max_steps = max_steps
        self._env: SimEnv | None = None
        self._hash = hashlib.sha256()
        self.seed = 0
        self.episode = 0
        self.observation: Observation | None = None

    @property
    def info(self) -> TaskInfo:
        """The loaded task."""
        assert self._env is not None, "load() comes first"
        return self._env.info

    @property
    def seen(self) -> Observation:
        """The newest observation of the running episode."""
        assert self.observation is not None, "reset() comes first"
        return self.observation

    @property
    def max_steps(self) -> int:
        return self._max_steps or self.info.max_steps

    @property
    def done(self) -> bool:
        """The episode is over (solved, or out of steps), or none has begun."""
        obs = self.observation
        return obs is None or obs.success or obs.step >= self.max_steps

    @property
    def fingerprint(self) -> str:
        """SHA-256 over every simulator state since the reset: equal runs agree in every bit."""
        return self._hash.hexdigest()

    def load(self, suite: str, task: int) -> None:
        """Builds the scene of a task (2 to 4 s), unless it is the present one.

        Raises:
            ValueError: no such suite or task.
            SimulatorUnavailable: no GL, or a package is missing.
        """
        if self._env is not None and (self.info.suite, self.info.index) == (suite, task):
            return
        self.close()  # two live environments in one process render nothing
        try:
            self._env = SimEnv(suite, task, image_size=self._image_size, fast=self._fast)
        except (ValueError, SimulatorUnavailable):
            raise
        except Exception as error:  # the renderer's libraries raise whatever comes
            raise SimulatorUnavailable(
                f"The simulator did not start ({type(error).__name__}: {error}). If it is about GL: unset "
                f"MUJOCO_GL, or install a software GL with: sudo apt-get install -y {GL_PACKAGES}"
            ) from error

    def reset(self, seed: int) -> Observation:
        """Starts a new episode of the loaded task.

        Raises:
            RuntimeError: a camera shows one flat colour, so rendering does not work.
        """
        assert self._env is not None, "load() comes first"
        observation = self._env.reset(seed)
        for name, picture in observation.images.items():
            if picture.min() == picture.max():
                raise RuntimeError(
                    f"Camera '{name}' renders one flat colour. Try MUJOCO_GL=osmesa (package libosmesa6)."
                )
        self.seed = seed
        self.episode += 1
        self.observation = observation
        self._hash = hashlib.sha256(self._env.state().tobytes())
        return observation

    def step(self, action: Sequence[float] | NDArray[np.float64]) -> Observation:
        """Executes one raw action ([7], benchmark units)."""
        assert self._env is not None, "load() comes first"
        values = np.asarray(action, np.float64)
        if values.shape != (ACTION_DIM,) or not np.isfinite(values).all():
            raise ValueError(f"The command holds no {ACTION_DIM} finite numbers: {values.tolist()}.")
        self.observation = self._env.step(values)
        self._hash.update(self._env.state().tobytes())
        return self.observation

    def close(self) -> None:
        """Frees the renderer."""
        if self._env is not None:
            self._env.close()
        self._env = None
        self.observation = None
