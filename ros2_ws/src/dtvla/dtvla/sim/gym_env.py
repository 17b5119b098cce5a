"""The simulated worlds as a `gymnasium.Env`, so that anybody's policies and wrappers run on them.

    import gymnasium

    env = gymnasium.make("dtvla.sim.gym_env:dtvla/embedded-v0", task=2)
    observation, info = env.reset(seed=10_000)
    while not (terminated or truncated):
        action = policy(observation, info["instruction"])
        observation, reward, terminated, truncated, info = env.step(action)

Each suite has an id `dtvla/SUITE-v0`. For a seed and actions the states are those of `SimEnv`, bit for bit.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import register
from numpy.typing import NDArray

from dtvla.errors import InputError
from dtvla.policy.options import CAMERAS
from dtvla.sim.env import ACTION_DIM, CONTROL_PERIOD_S, SUITES, Observation, SimEnv
from dtvla.sim.perturbations.perturbation import Variation

PROPRIOCEPTION_DIM = 7 + 1 + 3 + 4
FURTHEST = 10.0  # rad, m: no joint and no place on the table has such a value
SEEDS = 2**31  # of episodes whose seed nobody gives

GymObservation = dict[str, NDArray[Any]]


class LiberoGymEnv(gymnasium.Env[GymObservation, NDArray[np.float32]]):
    """One task; one environment per process at a time, as for `SimEnv`: vectorise with `AsyncVectorEnv`.

    An observation has `agentview` and `wrist`, RGB uint8 [height, width, 3], upright, and `proprioception`,
    float64 [15]: joint positions [7] rad, gripper opening m, position of the end effector [3] m and its
    quaternion [4] (x, y, z, w), both in the base frame. An action is float32 [7] in [-1, 1]: translation,
    rotation (axis-angle), gripper (1 closes). The reward is 1 in the step that reaches the goal, which ends
    the episode (terminated); so does the limit of steps (truncated). `info` holds the `instruction`, and
    whether the goal is met (`success`).

    Args:
        suite: see `SimEnv`, as are the others.
        task: index of the task in the suite.
        image_size: side of the pictures in pixels.
        fast: render three to four times cheaper.
        variation: what differs from the suite's own world.
        max_steps: of an episode; None takes the suite's limit.
        render_mode: "rgb_array" lets `render` return both pictures side by side; None nothing.

    Raises:
        InputError: no such suite or task.
        SimulatorUnavailable: the suite's assets, a package or GL is missing.
    """

    metadata = {  # noqa: RUF012
        "render_modes": ["rgb_array"],
        "render_fps": round(1 / CONTROL_PERIOD_S),
    }

    def __init__(
        self,
        suite: str = "embedded",
        task: int = 0,
        *,
        image_size: int = 128,
        fast: bool = True,
        variation: Variation | None = None,
        max_steps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise InputError(f"There is no render mode '{render_mode}'; choose 'rgb_array', or none.")
        self.render_mode = render_mode
        self.sim = SimEnv(
            suite, task, image_size=image_size, fast=fast, variation=variation, max_steps=max_steps
        )
        picture = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.observation_space: spaces.Space[Any] = spaces.Dict(
            {
                **dict.fromkeys(CAMERAS, picture),
                "proprioception": spaces.Box(-FURTHEST, FURTHEST, (PROPRIOCEPTION_DIM,), np.float64),
            }
        )
        self.action_space = spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[GymObservation, dict[str, Any]]:
        """Starts an episode.

        Args:
            seed: of the episode, as `SimEnv.reset` takes it; None draws the next one.
            options: none are known.

        Raises:
            ValueError: an option.
        """
        if options:
            raise InputError(f"reset takes no options, got {', '.join(map(str, options))}. Leave them out.")
        super().reset(seed=seed)
        obs = self.sim.reset(int(self.np_random.integers(SEEDS)) if seed is None else seed)
        return _seen(obs), self._info(obs)

    def step(self, action: NDArray[np.float32]) -> tuple[GymObservation, float, bool, bool, dict[str, Any]]:
        """Executes an action for one control period of 50 ms."""
        obs = self.sim.step(action)
        return (
            _seen(obs),
            float(obs.success),
            obs.success,
            obs.step >= self.sim.info.max_steps and not obs.success,
            self._info(obs),
        )

    def render(self) -> NDArray[np.uint8] | None:
        """Both cameras' pictures side by side, RGB uint8 [height, 2 width, 3]; None without a render mode."""
        return np.hstack(list(self.sim.pictures().values())) if self.render_mode else None

    def close(self) -> None:
        """Frees the scene; a second time does nothing."""
        self.sim.close()

    def _info(self, obs: Observation) -> dict[str, Any]:
        return {"instruction": self.sim.instruction, "success": obs.success}


def _seen(obs: Observation) -> GymObservation:
    """What a policy may see of an observation: no positions of objects."""
    opening = np.array([obs.gripper_opening_m])
    own = [obs.joint_positions, opening, obs.ee_position, obs.ee_quaternion]
    return {**obs.images, "proprioception": np.concatenate(own)}


for _suite in SUITES:
    register(f"dtvla/{_suite}-v0", f"{__name__}:{LiberoGymEnv.__name__}", kwargs={"suite": _suite})
