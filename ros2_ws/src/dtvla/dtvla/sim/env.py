"""One simulated world: reset it, step it with the raw 7-d action, look through its two cameras."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtvla.errors import InputError
from dtvla.policy.options import CAMERAS
from dtvla.sim import assets, bootstrap, rendering
from dtvla.sim.geometry import collision_boxes
from dtvla.sim.perturbations.perturbation import PerturbedWorld, Variation
from dtvla.sim.suites import embedded, libero

ACTION_DIM = 7
CONTROL_PERIOD_S = 0.05
POSITION_SCALE_M = 0.05  # OSC_POSE: an action of 1.0 moves the goal by 5 cm
ROTATION_SCALE_RAD = 0.5  # and turns it by 0.5 rad (axis-angle, base frame)
GRIPPER_OPENING_M = 0.08
IDLE_ACTION = (0.0,) * 6 + (-1.0,)  # hold the pose, gripper open
SETTLE_STEPS = 10  # LIBERO's protocol: objects fall onto the table before the episode starts
MOST_DEALS = 100  # of an embedded scene; one in forty is dealt a second time
MAX_STEPS = {**dict.fromkeys(embedded.SUITES, 260), **libero.MAX_STEPS}
SUITES = tuple(MAX_STEPS)
MUJOCO_CAMERAS = dict(zip(CAMERAS, ("agentview", "robot0_eye_in_hand"), strict=True))
JOINT_NAMES = tuple(f"panda_joint{i}" for i in range(1, 8))


@dataclass(frozen=True)
class Observation:
    """What the world shows after a step.

    Images are RGB uint8 [height, width, 3], already rotated as the benchmark's policies expect.
    Positions are metres in the robot's base frame (x away from the base, y to its left, z up),
    orientations quaternions (x, y, z, w). `objects` holds privileged positions in the same frame:
    for the expert and for checks, never for a policy; so does `regions` for what the goal speaks of beside
    objects: fixtures, and the middle of regions such as the inside of a basket.
    """

    images: dict[str, NDArray[np.uint8]]
    joint_positions: NDArray[np.float64]  # [7] rad
    joint_velocities: NDArray[np.float64]  # [7] rad/s
    gripper_opening_m: float
    ee_position: NDArray[np.float64]  # [3]
    ee_quaternion: NDArray[np.float64]  # [4]
    objects: dict[str, NDArray[np.float64]]
    step: int
    success: bool
    regions: dict[str, NDArray[np.float64]] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskInfo:
    """A task of a suite as the rest of the system sees it."""

    suite: str
    index: int
    name: str
    language: str
    max_steps: int


def upright(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rotates the simulator's picture by 180 degrees. The one place where this happens.

    LIBERO's renderer hands images upside down and the benchmark's policies are trained on both axes
    flipped (reference: experiments/libero_utils.py); every image that leaves this package is upright.
    """
    return np.ascontiguousarray(image[::-1, ::-1])


def list_tasks(suite: str) -> list[TaskInfo]:
    """The tasks of a suite, in its own order.

    Raises:
        InputError: the suite is not known.
    """
    if suite not in SUITES:
        raise InputError(f"Unknown suite '{suite}'. This build serves: {', '.join(SUITES)}.")
    if suite in embedded.SUITES:
        said = [(task.name, task.language) for task in embedded.SUITES[suite].tasks]
    else:
        said = [(name, libero.language(name)) for name in libero.task_names(suite)]
    return [TaskInfo(suite, i, name, words, MAX_STEPS[suite]) for i, (name, words) in enumerate(said)]


def raw_action(
    translation: Sequence[float], rotation: Sequence[float], gripper_opening_m: float
) -> NDArray[np.float64]:
    """The benchmark's 7-d action for a metric delta (m, rad axis-angle) and an opening (m)."""
    moves = [value / POSITION_SCALE_M for value in translation] + [
        value / ROTATION_SCALE_RAD for value in rotation
    ]
    gripper = 1.0 - 2.0 * gripper_opening_m / GRIPPER_OPENING_M
    action: NDArray[np.float64] = np.clip(np.array([*moves, gripper]), -1.0, 1.0)
    return action


def metric_actions(raw: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """The benchmark's raw actions [n, 7] as translations [n, 3] m, rotations [n, 3] rad, openings [n] m."""
    openings = GRIPPER_OPENING_M * (1.0 - np.clip(raw[:, 6], -1.0, 1.0)) / 2
    return raw[:, :3] * POSITION_SCALE_M, raw[:, 3:6] * ROTATION_SCALE_RAD, openings


class SimEnv:
    """A LIBERO environment for one task; one per process at a time (its renderer is global).

    Args:
        suite: name of the suite, one of `SUITES`. Those of LIBERO need its assets (`dtvla.sim.assets`).
        task: index of the task in the suite.
        image_size: side of the square camera images in pixels.
        render: False skips the cameras (`images` is then empty).
        fast: render without shadows, multi-sampling and reflections (three to four times cheaper).
        variation: what differs from the suite's own world.
        max_steps: control periods of an episode; None takes the suite's limit.

    Raises:
        InputError: no such suite or task.
        SimulatorUnavailable: the suite's assets, a package or GL is missing.
    """

    def __init__(
        self,
        suite: str,
        task: int,
        *,
        image_size: int = 128,
        render: bool = True,
        fast: bool = True,
        variation: Variation | None = None,
        max_steps: int | None = None,
    ) -> None:
        tasks = list_tasks(suite)
        if not 0 <= task < len(tasks):
            raise InputError(f"Suite '{suite}' has tasks 0 to {len(tasks) - 1}; task {task} does not exist.")
        self.info = tasks[task]
        self.limit(max_steps)
        self._render = render
        self._image_size = image_size
        self._states: NDArray[np.float64] | None = None
        if suite in embedded.SUITES:
            folder = embedded.write_scenes()
            files = {"bddl_file_name": str(folder / f"{self.info.name}.bddl")}
            files["scene_xml"] = str(folder / "scenes" / "emb_table.xml")
        else:
            folder = assets.find()
            files = {"bddl_file_name": str(libero.bddl_file(suite, self.info.name))}
            self._states = libero.init_states(suite, self.info.name)
        bootstrap.prepare(folder)
        from libero.libero.envs.env_wrapper import ControlEnv

        if suite in embedded.SUITES:
            embedded.register_objects(folder)
        with rendering.fast_models(fast):
            self._env: Any = ControlEnv(
                **files,
                camera_heights=image_size,
                camera_widths=image_size,
                use_camera_obs=False,  # we render below, and only the frames somebody will look at
                has_offscreen_renderer=render,
                has_renderer=False,
                hard_reset=False,  # 6 to 160 ms instead of 1 to 4 s
                ignore_done=True,
            )
        self._fast = fast
        self._varied = PerturbedWorld(variation)
        self._step = 0
        self._obs: dict[str, Any] = {}

    @property
    def scene(self) -> embedded.EmbeddedTask:
        """The task of an embedded suite, for its expert and its thoughts; LIBERO's tasks have none."""
        if self._states is not None:
            raise InputError(f"A task of '{self.info.suite}' is none of the embedded suites'.")
        return embedded.SUITES[self.info.suite].tasks[self.info.index]

    @property
    def instruction(self) -> str:
        """What a policy is told: the task in the benchmark's words, unless they are varied."""
        return self._varied.instruction(self.info.language)

    @property
    def goals(self) -> list[tuple[str, ...]]:
        """The predicates that must all hold, such as `("in", "milk_1", "basket_1_contain_region")`."""
        return [tuple(goal) for goal in self._env.env.parsed_problem["goal_state"]]

    @property
    def targets(self) -> tuple[str, ...]:
        """The objects that the goal wants moved, in its order."""
        return tuple(goal[1] for goal in self.goals if goal[1] in self._env.env.objects_dict)

    @property
    def variants(self) -> int | None:
        """In how many ways an episode can begin: LIBERO's fixed initial states; None: a new one per seed."""
        return None if self._states is None else len(self._states)

    def holds(self, goal: tuple[str, ...]) -> bool:
        """Whether one of `goals` is met now, by the benchmark's own check."""
        return bool(self._env.env._eval_predicate(list(goal)))

    def reset(self, seed: int, *, settle_steps: int = SETTLE_STEPS, look: bool = True) -> Observation:
        """Starts an episode, lets the objects settle, and returns the first observation.

        The embedded suite deals its objects as `seed` says. In LIBERO's suites the seed is the index of the
        fixed initial state, modulo their number (50): trial i of the benchmark is `reset(i)`. The reference
        seeds the places of the fixtures once per task, so that they depend on the trials before; here each
        trial has its own, and any trial can be run alone.
        """
        if self._states is None:
            self._deal(seed)
        else:
            trial = seed % len(self._states)
            self._begin(trial)
            self._set_state(self._states[trial])
        self._varied.begin(self._env.env, seed)
        for _ in range(settle_steps):
            self._obs = self._env.step(np.array(IDLE_ACTION))[0]
        self._step = 0
        return self._observation(look)

    def vary(self, variation: Variation | None) -> None:
        """From the next reset on the world differs in this, and in nothing else."""
        self._varied.become(variation)

    def limit(self, max_steps: int | None) -> None:
        """From now on an episode has so many control periods; None takes the suite's limit."""
        self.info = replace(self.info, max_steps=max_steps or MAX_STEPS[self.info.suite])

    def step(self, action: NDArray[np.floating], *, look: bool = True) -> Observation:
        """Executes one raw 7-d action (each value in [-1, 1]) for one control period of 50 ms.

        Args:
            action: the action.
            look: False skips the pictures of this step (rendering is three quarters of its cost).

        Raises:
            ValueError: the action is not seven finite numbers.
        """
        values = np.asarray(action, np.float64)
        if values.shape != (ACTION_DIM,) or not np.isfinite(values).all():
            raise InputError(f"The action must be {ACTION_DIM} finite numbers, got {values!r}.")
        self._obs = self._env.step(values)[0]
        self._step += 1
        return self._observation(look)

    def state(self) -> NDArray[np.float64]:
        """The flattened MuJoCo state (time, positions, velocities): two equal runs agree in every bit."""
        return np.array(self._env.get_sim_state())

    def shapes(self, name: str) -> NDArray[np.float64]:
        """The corners [G, 8, 3] (metres, base frame) of the boxes around an object's or fixture's collision
        shapes, as it stands now: for the expert and for checks, never for a policy. A region has none.
        """
        env = self._env.env
        if name not in env.obj_body_id:
            return np.empty((0, 8, 3))
        base: NDArray[np.float64] = np.asarray(env.robots[0].base_pos, np.float64)
        return collision_boxes(env.sim, env.obj_body_id[name]) - base

    def part_of(self, name: str) -> str:
        """The object or fixture that a region of the goal belongs to; other names are their own."""
        site = self._env.env.object_sites_dict.get(name)
        return str(site.parent_name) if site is not None and site.parent_name else name

    def close(self) -> None:
        """Frees the scene and its renderer. A second live environment in one process would render nothing.

        Simulation and renderer refer to each other, so only the collector frees them, and the C library keeps
        what was freed: without both calls three scenes of 100 MB stay behind (tests/faults/soak.py).
        """
        if self._env is not None:
            self._env.close()
        self._env, self._obs = None, {}
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # a C library without it
            ctypes.CDLL(None).malloc_trim(0)

    def _begin(self, seed: int) -> None:
        """A fresh scene with everything where LIBERO's sampler puts it."""
        self._env.seed(seed)
        self._obs = self._env.reset()
        # robosuite moves the fingers' command a little per physics step and forgets it only in a hard reset,
        # as the reference does: else an episode would depend on how the one before ended.
        gripper = self._env.env.robots[0].gripper
        gripper.current_action = np.zeros(gripper.dof)
        if self._render and self._fast:
            rendering.drop_reflections(self._env.env.sim)

    def _deal(self, seed: int) -> None:
        """Deals the embedded suite's objects, again while one stands in another.

        LIBERO's sampler keeps circles apart, but receptacles are square: in one of forty scenes of
        `embedded_tray` their corners met, and the first step flung them through the room.
        """
        for attempt in range(MOST_DEALS):
            self._begin(seed if attempt == 0 else int(np.random.default_rng((seed, attempt)).integers(2**31)))
            self._shuffle_places(seed)
            if not self._objects_meet():
                return
        raise RuntimeError(f"Seed {seed} of '{self.info.suite}' gave no scene in which objects stand apart.")

    def _objects_meet(self) -> bool:
        """Whether an object stands in another."""
        env = self._env.env
        sim, bodies = env.sim, {env.obj_body_id[name] for name in env.objects_dict}
        pairs = sim.model.geom_bodyid[sim.data.contact.geom[: sim.data.ncon]]
        return any(one != other and {one, other} <= bodies for one, other in pairs.tolist())

    def _shuffle_places(self, seed: int) -> None:
        """Deals objects and receptacles to their places, so that a place says nothing of the task."""
        suite = embedded.SUITES[self.info.suite]
        sim, rng = self._env.env.sim, np.random.default_rng(seed)
        for names in (
            [thing.target for thing in suite.things],
            [f"{receptacle}_1" for receptacle, _ in suite.receptacles],
        ):
            joints = [self._env.env.objects_dict[name].joints[-1] for name in names]
            poses = [np.array(sim.data.get_joint_qpos(joint)) for joint in joints]
            for joint, pose, source in zip(joints, poses, rng.permutation(len(names)), strict=True):
                pose = pose.copy()
                pose[:2] = poses[source][:2]
                sim.data.set_joint_qpos(joint, pose)
        sim.forward()

    def _set_state(self, state: NDArray[np.float64]) -> None:
        size = len(self.state())
        if len(state) != size:
            raise InputError(
                f"The initial states of '{self.info.name}' have {len(state)} numbers, this scene has {size}: "
                "the assets do not belong to this version of LIBERO. See `dtvla assets check`."
            )
        self._obs = self._env.set_init_state(state)

    def _regions(self) -> dict[str, NDArray[np.float64]]:
        """World positions of the fixtures and of the regions that the goal names."""
        env = self._env.env
        named = {name for goal in self.goals for name in goal[1:]} & set(env.object_sites_dict)
        places = {name: env.sim.data.get_site_xpos(name) for name in named}
        return places | {name: env.sim.data.body_xpos[env.obj_body_id[name]] for name in env.fixtures_dict}

    def _observation(self, look: bool = True) -> Observation:
        obs = self._obs
        robot = self._env.env.robots[0]
        base = np.asarray(robot.base_pos)
        objects = {
            name: np.asarray(obs[f"{name}_pos"]) - base
            for name in self._env.env.objects_dict
            if f"{name}_pos" in obs
        }
        fingers = np.asarray(obs["robot0_gripper_qpos"])
        return Observation(
            images=self.pictures() if look else {},
            joint_positions=np.array(robot._joint_positions),
            joint_velocities=np.array(robot._joint_velocities),
            gripper_opening_m=float(np.abs(fingers).sum()),
            ee_position=np.asarray(obs["robot0_eef_pos"]) - base,
            ee_quaternion=np.asarray(obs["robot0_eef_quat"]),
            objects=objects,
            step=self._step,
            success=bool(self._env.check_success()),
            regions={name: np.asarray(place) - base for name, place in self._regions().items()},
        )

    def pictures(self) -> dict[str, NDArray[np.uint8]]:
        """What the cameras see now, as in `Observation.images`; looking changes nothing in the world."""
        if not self._render:
            return {}
        size = self._image_size
        sim = self._env.env.sim
        rendered = {
            name: sim.render(camera_name=key, width=size, height=size) for name, key in MUJOCO_CAMERAS.items()
        }
        return {
            name: self._varied.picture(upright(image), number, self._step)
            for number, (name, image) in enumerate(rendered.items())
        }
