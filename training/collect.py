"""Records expert episodes of the embedded suite: both cameras, thought, action, instruction.

    python -m training.collect --episodes 120 --workers 2 --out data/embedded

In two of three episodes smoothed noise is added to what the arm executes while the label stays what
the expert would do from there: the learner sees how to come back. With `--detours` the arm first heads
for a wrong object, and the episode ends once it is above the right one: in other episodes whatever is
under the gripper is the target, so the instruction can be ignored from there on. Episodes are files
of their own, written atomically; a second run skips what is there.

    python -m training.collect --detours --seed0 200000 --episodes 40 --every 2
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.progress import Progress

from dtvla.sim.embedded import BASKET, TASKS
from dtvla.sim.env import MAX_STEPS, Observation, SimEnv
from dtvla.sim.expert import Expert, Phase
from dtvla.sim.thoughts import thought

NOISE_LEVELS = (0.0, 0.08, 0.16)  # by seed; standard deviation of the noise's driving term, action units
NOISE_MEMORY = 0.8
ROTATION_NOISE_SHARE = 0.25


@dataclass(frozen=True)
class Collect:
    """What to record."""

    out: Path = Path("data/embedded")  # folder of the episode files
    episodes: int = 120  # episodes per task
    seed0: int = 100_000  # first seed; evaluation uses 10,000 and up
    workers: int = 2
    image_size: int = 128  # pixels
    every: int = 3  # steps between two pictures: more episodes per hour, neighbours look alike anyway
    detours: bool = False  # record ways from a wrong object to the right one
    block: int = 10  # episodes of one task before a worker turns to the next


DETOUR_STEPS = (8, 32)  # how long the arm heads for the wrong object


class Detour:
    """Heads for another object than the task's, for a number of steps drawn from the episode's seed."""

    def __init__(self, env: SimEnv, rng: np.random.Generator) -> None:
        others = [task for task in TASKS if task is not env.scene]
        self._expert = Expert(others[rng.integers(len(others))])
        self._steps_left = int(rng.integers(*DETOUR_STEPS))

    def act(self, obs: Observation) -> np.ndarray | None:
        """The action towards the wrong object, or None when the detour is over."""
        self._steps_left -= 1
        action = self._expert.act(obs)
        return action if self._steps_left >= 0 and self._expert.phase is Phase.REACH else None


def record_episode(
    env: SimEnv, seed: int, every: int = 1, *, detours: bool = False
) -> dict[str, np.ndarray] | None:
    """One episode as arrays (T steps), or None when the expert failed.

    actions float32 [T, 7] (the expert's, in [-1, 1]); frames int32 [F] (the steps that were looked at)
    and for each of them images uint8 [F, 2, H, W, 3] (agentview, wrist), thoughts str [F], truth float32
    [F, 3, 3] (gripper, grasp point, basket; metres, base frame: for checks of the thought, never an
    input); instruction, task, seed.
    """
    rng = np.random.default_rng(seed)
    level = NOISE_LEVELS[seed % len(NOISE_LEVELS)]
    scale = level * np.array([1, 1, 1] + [ROTATION_NOISE_SHARE] * 3)
    obs = env.reset(seed)
    expert = Expert(env.scene)
    expert.reset(obs)
    detour = Detour(env, rng) if detours else None
    images, frames, actions, thoughts, truth = [], [], [], [], []
    noise = np.zeros(6)
    for step in range(MAX_STEPS["embedded"]):
        action = expert.act(obs)
        wrong = detour.act(obs) if detour is not None else None
        if wrong is None and detours:
            detour = None
            if expert.phase is not Phase.REACH:
                break
        actions.append(action)
        if obs.images:
            frames.append(step)
            images.append(np.stack([obs.images["agentview"], obs.images["wrist"]]))
            thoughts.append(thought(expert, obs))
            truth.append(np.stack([obs.ee_position, expert.grasp_point(obs), obs.objects[f"{BASKET}_1"]]))
        noise = NOISE_MEMORY * noise + rng.normal(size=6) * scale
        executed = action.copy() if wrong is None else wrong
        executed[:6] = np.clip(executed[:6] + noise, -1, 1)
        obs = env.step(executed, look=(step + 1) % every == 0)
        if obs.success:
            break
    if not obs.success and (not detours or expert.phase is Phase.REACH):
        return None
    return {
        "frames": np.array(frames, np.int32),
        "images": np.stack(images),
        "actions": np.array(actions, np.float32),
        "thoughts": np.array(thoughts),
        "truth": np.array(truth, np.float32),
        "instruction": np.array(env.info.language),
        "task": np.array(env.info.name),
        "seed": np.array(seed),
    }


def save_episode(path: Path, arrays: dict[str, Any]) -> None:
    """Writes an episode so that the file is whole or absent."""
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as handle:
        np.savez_compressed(handle, **arrays)
    os.chmod(handle.name, 0o644)
    os.replace(handle.name, path)


def _worker(
    config: Collect, jobs: list[tuple[int, list[int]]], done: multiprocessing.Queue[tuple[str, bool]]
) -> None:
    for task, seeds in jobs:
        paths = {seed: config.out / f"{TASKS[task].name}_{seed}.npz" for seed in seeds}
        missing = [seed for seed in seeds if not paths[seed].exists()]
        for seed in set(seeds) - set(missing):
            done.put((paths[seed].name, True))
        if not missing:
            continue
        env = SimEnv("embedded", task, image_size=config.image_size)
        for seed in missing:
            if not _parent_lives():
                return
            arrays = record_episode(env, seed, config.every, detours=config.detours)
            if arrays is not None:
                save_episode(paths[seed], arrays)
            done.put((paths[seed].name, arrays is not None))
        env.close()
        del env


def _parent_lives() -> bool:
    """False once the recorder was killed: its workers then stop after the episode at hand."""
    parent = multiprocessing.parent_process()
    return parent is None or parent.is_alive()


def main(config: Collect) -> None:
    """Records the episodes, with a progress bar; prints how many the expert failed."""
    config.out.mkdir(parents=True, exist_ok=True)
    jobs = [
        (task, list(range(config.seed0 + start, config.seed0 + min(start + config.block, config.episodes))))
        for start in range(0, config.episodes, config.block)
        for task in range(len(TASKS))
    ]
    context = multiprocessing.get_context("spawn")  # a renderer does not survive fork
    done: multiprocessing.Queue[tuple[str, bool]] = context.Queue()
    workers = [
        context.Process(target=_worker, args=(config, jobs[i :: config.workers], done), daemon=True)
        for i in range(config.workers)
    ]
    for worker in workers:
        worker.start()
    failed = 0
    total = config.episodes * len(TASKS)
    with Progress() as bar:
        line = bar.add_task("expert episodes", total=total)
        for _ in range(total):
            while done.empty() and any(worker.is_alive() for worker in workers):
                workers[0].join(0.2)
            if done.empty():
                raise SystemExit("A recording worker died; run the same command again, it resumes.")
            _, success = done.get()
            failed += not success
            bar.advance(line)
    print(f"{total - failed} episodes in {config.out}; the expert failed {failed}, which were left out")


if __name__ == "__main__":
    main(tyro.cli(Collect, description=__doc__))
