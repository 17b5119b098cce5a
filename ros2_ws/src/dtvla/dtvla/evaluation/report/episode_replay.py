"""Videos of evaluated episodes, made afterwards: the recorded actions are executed again, with rendering."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dtvla.evaluation.results import EpisodeResult, EvalOptions, unpack_actions
from dtvla.evaluation.runner import scene
from dtvla.evaluation.video import Caption, EpisodeVideo, Painter
from dtvla.sim.env import CONTROL_PERIOD_S, Observation, SimEnv

FOLDER = "videos"
SIDE_PX = 256  # pictures are rendered at least so large; what the policy saw may be smaller
FRAME_RATE_HZ = 1 / CONTROL_PERIOD_S  # one frame per control period: frame n shows step n
FINAL_FRAMES = 20  # the outcome stays readable for a second


@dataclass(frozen=True)
class EpisodeReplay:
    """A video of an episode.

    Attributes:
        task, seed: of the episode.
        path: of the file.
        same: whether the world went through the very states of the evaluation.
    """

    task: int
    seed: int
    path: Path
    same: bool


def file_of(folder: Path, result: EpisodeResult) -> Path:
    """Where an episode's video belongs."""
    return folder / FOLDER / f"task{result.task}_seed{result.seed}.mp4"


def choose(results: Sequence[EpisodeResult], count: int) -> list[EpisodeResult]:
    """Which episodes to look at: failures first, of every kind and task in turn, then one success per task.

    Args:
        results: episodes; those without recorded actions cannot be shown.
        count: at most so many.
    """
    shown = [result for result in results if result.actions and not result.error]
    failures, successes = ([r for r in shown if r.success == solved] for solved in (False, True))
    order = _in_turn(failures, lambda r: (r.outcome, r.task)) + _in_turn(successes, lambda r: (r.task,))
    return order[:count]


def _in_turn(
    results: Sequence[EpisodeResult], kind: Callable[[EpisodeResult], object]
) -> list[EpisodeResult]:
    """The first of every kind, then the second of every kind, and so on."""
    seen: dict[object, int] = {}
    ranked = []
    for place, result in enumerate(results):
        seen[kind(result)] = seen.get(kind(result), 0) + 1
        ranked.append((seen[kind(result)], place, result))
    return [result for *_, result in sorted(ranked, key=lambda each: each[:2])]


def replay_episodes(
    options: EvalOptions, results: Sequence[EpisodeResult], folder: Path
) -> Iterator[EpisodeReplay]:
    """Makes the videos of episodes, one after the other, in a process of its own.

    Args:
        options: of the evaluation.
        results: the episodes, with their actions.
        folder: of the evaluation.
    """
    by_task = sorted(results, key=lambda result: (result.task, result.seed))
    jobs = [(options, result, file_of(folder, result)) for result in by_task]
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # a process serves one environment at a time
        yield from pool.imap(_make, jobs)


_STAGE: list[SimEnv] = []  # the worker process keeps its scene while the task stays the same


def _make(job: tuple[EvalOptions, EpisodeResult, Path]) -> EpisodeReplay:
    options, result, path = job
    if not _STAGE or _STAGE[0].info.index != result.task:
        if _STAGE:
            _STAGE.pop().close()
        side = max(SIDE_PX, options.image_size)
        _STAGE.append(scene(replace(options, image_size=side, watched=True), result.task))
    part = path.with_suffix(".part.mp4")
    same = _replay(_STAGE[0], result, part)
    part.replace(path)  # a video that was cut off is none
    return EpisodeReplay(result.task, result.seed, path, same)


def _replay(env: SimEnv, result: EpisodeResult, path: Path) -> bool:
    """Plays an episode again and films it; returns whether all states were the recorded ones."""
    obs = env.reset(result.seed)
    states = hashlib.sha256(env.state().tobytes())
    painter, video = Painter(), EpisodeVideo(path, FRAME_RATE_HZ)
    actions = unpack_actions(result.actions)
    try:
        for action in actions:
            video.add(painter.frame(obs.images, _caption(env, result, obs)))
            obs = env.step(action)
            states.update(env.state().tobytes())
        ending = replace(_caption(env, result, obs), outcome=obs.success)
        video.add(painter.frame(obs.images, ending), FINAL_FRAMES)
    finally:
        video.close()
    return states.hexdigest() == result.state_sha256


def _caption(env: SimEnv, result: EpisodeResult, obs: Observation) -> Caption:
    place = thought_at(result, obs.step)
    return Caption(
        instruction=env.instruction,
        thought=result.thoughts[place] if place is not None else "",
        decision=f"decision {place + 1} of {len(result.thoughts)}" if place is not None else "",
        progress=f"step {obs.step} of {env.info.max_steps}, seed {result.seed}",
        outcome=None,
        kept_from=result.thoughts[place - 1] if place else "",
    )


def thought_at(result: EpisodeResult, step: int) -> int | None:
    """The place of the newest thought at a step; None before the first, and when that is not on record."""
    known = [place for place, at in enumerate(result.decided_at) if at <= step]
    return known[-1] if known else None
