"""Records episodes of an embedded suite with the expert's labels: cameras, thought, actions, instruction.

    python -m training.collect --episodes 200                            # the expert drives
    python -m training.collect --detours --episodes 100 --seed0 200000   # first towards a wrong object
    python -m training.collect --policy BUNDLE --episodes 30 --seed0 300000 --every 5   # the learner drives

In two of three of the expert's episodes smoothed noise is added to what the arm executes while the label
stays what the expert would do from there: the learner sees how to come back. With `--detours` the arm
first heads for a wrong object, and the episode ends once it is above the right one. With `--policy` the
learner's own actions are executed (DAgger: Ross et al. 2011). While nothing has been lifted, every picture
also gets the labels of the suite's *other* instructions (`other_labels`): otherwise whatever is under the
gripper is the target, and the instruction could be ignored from there on. Episodes are files of their own,
written atomically; a second run skips what is there, and what the expert failed.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.progress import Progress

from dtvla.evaluation.work_queue import MOST_DEATHS, Pair, WorkQueue
from dtvla.evaluation.worker_pool import EvaluationRefused, WorkerDied, pool_of
from dtvla.policy.options import CAMERAS
from dtvla.policy.policy import Policy
from dtvla.sim.env import MAX_STEPS, POSITION_SCALE_M, Observation, SimEnv
from dtvla.sim.expert.scripted_expert import BEFORE_LIFT, Expert, Phase
from dtvla.sim.suites.embedded import SUITES, EmbeddedTask
from dtvla.sim.thoughts import thought

NOISE_LEVELS = (0.0, 0.08, 0.16)  # in turn; standard deviation of the noise's driving term, action units
NOISE_MEMORY = 0.8
ROTATION_NOISE_SHARE = 0.25


@dataclass(frozen=True)
class Collect:
    """What to record."""

    suite: str = "embedded"  # or embedded_tray
    out: Path = Path("data/embedded")  # folder of the episode files
    episodes: int = 120  # episodes per task
    seed0: int = 100_000  # first seed; evaluation uses 10,000 and up
    workers: int = 2
    image_size: int = 128  # pixels
    every: int = 3  # steps between two pictures: more episodes per hour, neighbours look alike anyway
    detours: bool = False  # record ways from a wrong object to the right one
    policy: Path | None = None  # a bundle that drives instead of the expert; all its episodes are kept
    block: int = 10  # episodes of every task before the next of any is begun


DETOUR_STEPS = (8, 32)  # how long the arm heads for the wrong object
HORIZON = 10  # steps of a chunk, for the labels that are predicted and not recorded
# How the gripper follows its command, fitted to recorded free motion (residual 0.6 mm per step): each step
# it moves by this share of its last movement and this share of the movement asked for.
FOLLOW_LAST, FOLLOW_ASKED = 0.548, 0.118
ROTATION_DECAY = 0.8  # the expert takes back this share of a rotation error from one step to the next


class Driver(Protocol):
    """Who moves the arm while the expert only says what it would do."""

    def act(self, obs: Observation, label: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """The action [7] to execute, or None when the episode is to end here."""


class NoisyExpert:
    """Executes the label with smoothed noise, whose level the episode's seed decides."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        level = NOISE_LEVELS[seed // 3 % len(NOISE_LEVELS)]  # neighbouring seeds are of different tasks
        self._scale = level * np.array([1, 1, 1] + [ROTATION_NOISE_SHARE] * 3)
        self._noise = np.zeros(6)

    def act(self, obs: Observation, label: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """The label with this step's noise on its six motion values."""
        self._noise = NOISE_MEMORY * self._noise + self._rng.normal(size=6) * self._scale
        executed: NDArray[np.float64] = label.copy()
        executed[:6] = np.clip(executed[:6] + self._noise, -1, 1)
        return executed


class Detour:
    """Heads for another object than the task's, for a number of steps drawn from the episode's seed.

    Ends the episode when the gripper has then arrived above the right one.
    """

    def __init__(self, env: SimEnv, expert: Expert, seed: int) -> None:
        rng = np.random.default_rng(seed)
        others = other_tasks(env)
        self._right, self._wrong = expert, Expert(others[rng.integers(len(others))])
        self._steps_left = int(rng.integers(*DETOUR_STEPS))
        self._noisy = NoisyExpert(seed)

    def act(self, obs: Observation, label: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """The noisy action towards the wrong object, then the noisy label."""
        self._steps_left -= 1
        wrong = self._wrong.act(obs)
        if self._steps_left >= 0 and self._wrong.phase is Phase.REACH:
            return self._noisy.act(obs, wrong)
        self._steps_left = 0
        return self._noisy.act(obs, label) if self._right.phase is Phase.REACH else None


class PolicyDriver:
    """Executes what a policy decides, as many rows of each chunk as its bundle says."""

    def __init__(self, policy: Policy, instruction: str) -> None:
        self._policy, self._instruction = policy, instruction
        self._rows: list[NDArray[np.float64]] = []
        policy.reset()

    def act(self, obs: Observation, label: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """The next row; a new decision whenever the rows are used up and there is a picture."""
        if not self._rows and obs.images:
            decision = self._policy.decide(obs.images, self._instruction)
            self._rows = list(decision.raw_actions[: self._policy.bundle.spec.execute_steps])
        return self._rows.pop(0) if self._rows else label


def other_tasks(env: SimEnv) -> list[EmbeddedTask]:
    """The suite's tasks but the one that is asked for."""
    return [task for task in SUITES[env.info.suite].tasks if task is not env.scene]


def _arrived(task: EmbeddedTask, obs: Observation, home: Observation) -> tuple[Expert, NDArray[np.float64]]:
    """An expert in the phase in which one that had come here would be, and its action [7]."""
    expert = Expert(task)
    before: Phase | None = None
    expert.reset(home)
    action = expert.act(obs)
    while expert.phase in BEFORE_LIFT and expert.phase is not before:
        before = expert.phase
        action = expert.act(obs)
    return expert, action


def predict_chunk(
    expert: Expert, obs: Observation, movement_m: NDArray[np.float64], action: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The next `HORIZON` actions [H, 7] of an expert that was not asked to drive, by predicted free motion.

    Args:
        expert: the expert, which has just chosen `action` on `obs`; its state is advanced.
        obs: the observation the chunk starts at.
        movement_m: the gripper's movement [3] during the last step, base frame.
        action: the first action [7].
    """
    rows = [action]
    turn = action[3:6]
    while len(rows) < HORIZON:
        movement_m = FOLLOW_LAST * movement_m + FOLLOW_ASKED * POSITION_SCALE_M * rows[-1][:3]
        obs = replace(obs, ee_position=obs.ee_position + movement_m)
        turn = ROTATION_DECAY * turn
        rows.append(np.concatenate([expert.act(obs)[:3], turn, action[6:]]))
    return np.stack(rows)


def other_labels(
    env: SimEnv,
    expert: Expert,
    obs: Observation,
    action: NDArray[np.float64],
    movement_m: NDArray[np.float64],
    home: Observation,
) -> tuple[list[str], NDArray[np.float32]]:
    """What the experts of the other tasks would think and do on this observation.

    For a task with the same object that is what `expert` thinks and does, which has just chosen `action`; an
    expert that was not there is asked until it knows where it stands: it goes one phase on at a time.

    Returns: their thoughts and chunks [O, H, 7], in the suite's order; thoughts are empty once the target has
    been lifted, for from there on the actions depend on contacts that are not predicted.
    """
    others = other_tasks(env)
    thoughts, chunks = [], np.zeros((len(others), HORIZON, 7), np.float32)
    if expert.phase not in BEFORE_LIFT:
        return [""] * len(chunks), chunks
    for i, task in enumerate(others):
        if task.target == env.scene.target:
            other, first = copy(expert), action
        else:
            other, first = _arrived(task, obs, home)
        thoughts.append(thought(other, obs))
        chunks[i] = predict_chunk(other, obs, movement_m, first)
    return thoughts, chunks


def record_episode(
    env: SimEnv, seed: int, every: int = 1, *, detours: bool = False, policy: Policy | None = None
) -> dict[str, np.ndarray] | None:
    """One episode as arrays (T steps), or None when the expert failed.

    actions float32 [T, 7] (the expert's, in [-1, 1]); frames int32 [F] (the steps that were looked at)
    and for each of them images uint8 [F, 2, H, W, 3] (agentview, wrist), thoughts str [F], other_thoughts
    str [F, O] and other_chunks float32 [F, O, 10, 7] (see `other_labels`), truth float32 [F, 3, 3] (gripper,
    grasp point, receptacle; metres, base frame: for checks of the thought, never an input); instruction,
    other_instructions str [O], task, seed, success.
    """
    home = obs = env.reset(seed)
    expert = Expert(env.scene)
    expert.reset(home)
    driver: Driver = NoisyExpert(seed)
    if detours:
        driver = Detour(env, expert, seed)
    if policy is not None:
        driver = PolicyDriver(policy, env.info.language)
    rows: dict[str, list[Any]] = {
        key: [] for key in ("frames", "images", "thoughts", "other_thoughts", "other_chunks", "truth")
    }
    actions = []
    movement = np.zeros(3)
    for step in range(MAX_STEPS[env.info.suite]):
        action = expert.act(obs)
        executed = driver.act(obs, action)
        if executed is None:
            break
        actions.append(action)
        if obs.images:
            others, chunks = other_labels(env, expert, obs, action, movement, home)
            rows["frames"].append(step)
            rows["images"].append(np.stack([obs.images[name] for name in CAMERAS]))
            rows["thoughts"].append(thought(expert, obs))
            rows["other_thoughts"].append(others)
            rows["other_chunks"].append(chunks)
            rows["truth"].append(
                np.stack([obs.ee_position, expert.grasp_point(obs), obs.objects[expert.task.place]])
            )
        before = obs.ee_position
        obs = env.step(executed, look=(step + 1) % every == 0)
        movement = obs.ee_position - before
        if obs.success:
            break
    if not obs.success and policy is None and (not detours or expert.phase is Phase.REACH):
        return None
    kinds = {"frames": np.int32, "other_chunks": np.float32, "truth": np.float32}
    others_said = [task.language for task in other_tasks(env)]
    return {key: np.array(values, kinds.get(key)) for key, values in rows.items()} | {
        "actions": np.array(actions, np.float32),
        "instruction": np.array(env.info.language),
        "other_instructions": np.array(others_said),
        "task": np.array(env.info.name),
        "seed": np.array(seed),
        "success": np.array(obs.success),
    }


def save_episode(path: Path, arrays: dict[str, Any]) -> None:
    """Writes an episode so that the file is whole or absent."""
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as handle:
        np.savez_compressed(handle, **arrays)
    os.chmod(handle.name, 0o644)
    os.replace(handle.name, path)


def _record(config: Collect, pairs: Iterable[Pair]) -> Iterator[bool]:
    """What a worker does: records each episode, and says whether the expert made it."""
    policy = None if config.policy is None else Policy.load(config.policy, threads=1)
    env: SimEnv | None = None
    for task, seed in pairs:
        if env is None or env.info.index != task:
            if env is not None:
                env.close()
            env = SimEnv(config.suite, task, image_size=config.image_size)
        arrays = record_episode(env, seed, config.every, detours=config.detours, policy=policy)
        if arrays is None:
            _failed(_file(config, (task, seed))).touch()
        else:
            save_episode(_file(config, (task, seed)), arrays)
        yield arrays is not None
    if env is not None:
        env.close()


def _file(config: Collect, pair: Pair) -> Path:
    """Of an episode."""
    task, seed = pair
    return config.out / f"{SUITES[config.suite].tasks[task].name}_{seed}.npz"


def _failed(path: Path) -> Path:
    """What stands for an episode that the expert failed, so that it is not played again."""
    return path.with_suffix(".failed")


def main(config: Collect) -> None:
    """Records the episodes, with a progress bar; prints how many the expert failed."""
    if config.suite not in SUITES:
        raise SystemExit(f"There is no embedded suite '{config.suite}'; choose one of {', '.join(SUITES)}.")
    config.out.mkdir(parents=True, exist_ok=True)
    tasks = len(SUITES[config.suite].tasks)
    # Another layout for every episode.
    pairs = [(task, config.seed0 + tasks * i + task) for i in range(config.episodes) for task in range(tasks)]
    missing = [
        pair for pair in pairs if not (_file(config, pair).exists() or _failed(_file(config, pair)).exists())
    ]
    lost = 0
    with Progress() as bar:
        line = bar.add_task("expert episodes", total=len(pairs), completed=len(pairs) - len(missing))
        for made in _recorded(config, missing):
            lost += made is None
            bar.advance(line)
    failed = sum(_failed(_file(config, pair)).exists() for pair in pairs)
    kept = len(pairs) - failed - lost
    print(f"{kept} episodes in {config.out}; the expert failed {failed}, which were left out")
    if lost:
        raise SystemExit(f"Episodes lost with their workers: {lost}. Run the same command again, it resumes.")


def _recorded(config: Collect, pairs: list[Pair]) -> Iterator[bool | None]:
    """Records episodes; yields whether the expert made each, or None when its worker died.

    Raises:
        SystemExit: none can be recorded.
    """
    blocks: dict[int, list[Pair]] = {}
    for task, seed in pairs:
        number = (seed - config.seed0) // len(SUITES[config.suite].tasks)
        blocks.setdefault(number // config.block, []).append((task, seed))
    with contextlib.closing(pool_of(_record, config, config.workers, stay=True)) as pool:
        try:
            for block in blocks.values():
                queue = WorkQueue(block)
                for _, result in pool.results(queue):
                    if isinstance(result, WorkerDied) and queue.hopeless:
                        raise SystemExit(
                            f"{MOST_DEATHS} recording workers ended one after the other; the last one "
                            f"{result.how}. Run the same command again, it resumes."
                        )
                    yield None if isinstance(result, WorkerDied) else bool(result)
        except EvaluationRefused as refusal:
            raise SystemExit(str(refusal)) from refusal


if __name__ == "__main__":
    main(tyro.cli(Collect, description=__doc__))
