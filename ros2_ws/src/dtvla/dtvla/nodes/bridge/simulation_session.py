"""The simulated world as the bridge sees it: episodes, steps, and a record of each episode. No ROS."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dtvla.errors import InputError
from dtvla.evaluation.episode_record import EpisodeRecord
from dtvla.sim import assets
from dtvla.sim.bootstrap import GL_PACKAGES, SimulatorUnavailable
from dtvla.sim.env import ACTION_DIM, Observation, SimEnv, TaskInfo, list_tasks
from dtvla.sim.suites import embedded


class SimulationSession:
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
        self._pictures: dict[str, NDArray[np.uint8]] = {}
        self._decision: int | None = None
        self.record: EpisodeRecord | None = None
        self.seed = 0
        self.episode = 0
        self.observation: Observation | None = None

    @property
    def loaded(self) -> bool:
        """A task's scene stands."""
        return self._env is not None

    @property
    def env(self) -> SimEnv:
        """The simulator: to be asked by scripts and examiners, never stepped."""
        assert self._env is not None, "load() comes first"
        return self._env

    @property
    def info(self) -> TaskInfo:
        """The loaded task."""
        return self.env.info

    @property
    def seen(self) -> Observation:
        """The newest observation of the running episode."""
        assert self.observation is not None, "reset() comes first"
        return self.observation

    @property
    def done(self) -> bool:
        """The episode is over (solved, or out of steps), or none has begun."""
        obs = self.observation
        return obs is None or obs.success or obs.step >= self.info.max_steps

    @property
    def fingerprint(self) -> str:
        """SHA-256 over every simulator state since the reset: equal runs agree in every bit."""
        return self.record.fingerprint if self.record is not None else ""

    def load(self, suite: str, task: int) -> None:
        """Builds the scene of a task (2 to 4 s), unless it is the present one.

        Raises:
            ValueError: no such suite or task; the present scene stays.
            SimulatorUnavailable: no assets (the present scene stays), no GL, or a package is missing.
        """
        if self._env is not None and (self.info.suite, self.info.index) == (suite, task):
            return
        if not 0 <= task < (count := len(list_tasks(suite))):
            raise InputError(f"Suite '{suite}' has tasks 0 to {count - 1}; task {task} does not exist.")
        if suite not in embedded.SUITES:
            assets.find()
        self.close()  # two live environments in one process render nothing
        try:
            self._env = SimEnv(
                suite,
                task,
                image_size=self._image_size,
                fast=self._fast,
                max_steps=self._max_steps or None,
            )
        except (ValueError, SimulatorUnavailable):
            raise
        except Exception as error:  # the renderer's libraries raise whatever comes
            raise SimulatorUnavailable(
                f"The simulator did not start ({type(error).__name__}: {error}). If it is about GL: unset "
                f"MUJOCO_GL, or install a software GL with: sudo apt-get install -y {GL_PACKAGES}"
            ) from error

    def reset(self, seed: int) -> Observation:
        """Starts a new episode of the loaded task."""
        observation = self.env.reset(seed, look=False)
        self.seed = seed
        self.episode += 1
        self.observation = observation
        self.record = EpisodeRecord(self.env, seed, observation)
        self._pictures, self._decision = {}, None
        return observation

    def step(self, action: Sequence[float] | NDArray[np.float64], decision: int | None = None) -> Observation:
        """Executes one raw action ([7], benchmark units) of a decision; None: the arm was told to stay."""
        assert self.record is not None, "reset() comes first"
        values = np.asarray(action, np.float64)
        if values.shape != (ACTION_DIM,) or not np.isfinite(values).all():
            raise InputError(f"The command holds no {ACTION_DIM} finite numbers: {values.tolist()}.")
        self.observation = self.env.step(values, look=False)
        self._pictures = {}
        seam = None not in (decision, self._decision) and decision != self._decision
        self.record.stepped(values, self.observation, seam=seam, held=decision is None)
        self._decision = decision if decision is not None else self._decision
        return self.observation

    def pictures(self) -> dict[str, NDArray[np.uint8]]:
        """What the cameras show now, RGB uint8 [H, W, 3] by name; rendered when first asked for.

        Raises:
            SimulatorUnavailable: a camera shows one flat colour, so rendering does not work.
        """
        if not self._pictures:
            self._pictures = self.env.pictures()
            flat = [name for name, picture in self._pictures.items() if picture.min() == picture.max()]
            if flat and self.seen.step == 0:  # later an object may fill the picture
                raise SimulatorUnavailable(
                    f"Camera '{flat[0]}' renders one flat colour. Try MUJOCO_GL=osmesa (package libosmesa6)."
                )
        return self._pictures

    def abandon(self) -> None:
        """Ends the episode: nobody will play it."""
        self.observation = None

    def close(self) -> None:
        """Frees the renderer."""
        if self._env is not None:
            self._env.close()
        self._env = None
        self.observation = None
