"""Closed-loop evaluation in process: the benchmark's protocol without the ROS graph.

Every episode is open loop between decisions (`execute_steps` rows of each chunk) and ends with the
task's own success check or its step limit. Same seed, same policy, same result; an episode whose
worker crashed is reported as an error and never counted as a failure of the policy.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import platform
import queue
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dtvla.policy.background import LaggingPolicy
from dtvla.policy.bundle import Bundle
from dtvla.policy.options import BackendName, DecisionOptions, Decoding, Thinking
from dtvla.policy.runner import Policy
from dtvla.sim.env import SimEnv, list_tasks
from dtvla.sim.thoughts import check_thought

OUTCOMES = ("solved", "picked up nothing", "another object first", "picked it up, did not place it")
LIFTED_M = 0.04  # an object this far above where it lay was picked up, not pushed


@dataclass(frozen=True)
class EvalOptions:
    """What to evaluate: `episodes` are dealt to the tasks in turn, with seeds from `seed0` upwards."""

    policy: Path
    backend: BackendName = "auto"
    suite: str = "embedded"
    episodes: int = 60
    seed0: int = 10_000
    workers: int = 1
    image_size: int = 128  # pixels, as the shipped policy's training data
    execute_steps: int | None = None  # rows executed per decision; None takes the bundle's
    tasks: tuple[int, ...] = ()  # empty: all tasks of the suite
    thinking: Thinking = "drafts"
    decoding: Decoding = "hybrid"  # one of the variants that the paper compares

    def __post_init__(self) -> None:
        if self.thinking == "lagging" and self.decoding != "hybrid":
            raise ValueError(f"Lagging thoughts need hybrid decoding, not {self.decoding}.")


@dataclass(frozen=True)
class EpisodeResult:
    """One episode; `error` is set when it could not be run to its end."""

    task: int
    task_name: str
    seed: int
    success: bool
    steps: int
    decisions: int
    latency_p50_ms: float
    target_within_3cm: float  # share of thoughts that place what they name within 3 cm of the truth
    phase_stated: float  # share of thoughts in the form that can be checked
    thoughts: tuple[str, ...]
    outcome: str = ""  # how it ended, one of `OUTCOMES`
    error: str = ""


class Decider(Protocol):
    """What an episode needs of a policy."""

    def reset(self) -> None: ...

    def decide(self, images: dict[str, NDArray[np.uint8]], instruction: str) -> Any: ...


def run_episode(env: SimEnv, policy: Decider, seed: int, execute_steps: int) -> EpisodeResult:
    """Runs one episode of the environment's task."""
    policy.reset()
    obs = env.reset(seed)
    rest = {name: position[2] for name, position in obs.objects.items()}
    lifted: dict[str, None] = {}
    thoughts: list[str] = []
    latencies, near, stated = [], [], []
    while obs.step < env.info.max_steps and not obs.success:
        started = time.perf_counter()
        decision = policy.decide(obs.images, env.info.language)
        latencies.append(time.perf_counter() - started)
        thoughts.append(decision.thought)
        error_m = check_thought(decision.thought, obs)
        stated.append(error_m is not None)
        near.append(error_m is not None and error_m < 0.03)
        for row, action in enumerate(decision.raw_actions[:execute_steps]):
            last = row == execute_steps - 1
            obs = env.step(action, look=last)
            lifted |= {n: None for n, position in obs.objects.items() if position[2] > rest[n] + LIFTED_M}
            if obs.success or obs.step >= env.info.max_steps:
                break
    return EpisodeResult(
        task=env.info.index,
        task_name=env.info.name,
        seed=seed,
        success=obs.success,
        steps=obs.step,
        decisions=len(thoughts),
        latency_p50_ms=1e3 * float(np.median(latencies)),
        target_within_3cm=float(np.mean(near)),
        phase_stated=float(np.mean(stated)),
        thoughts=tuple(thoughts),
        outcome=outcome(obs.success, list(lifted), env.scene.target),
    )


def outcome(success: bool, lifted: Sequence[str], target: str) -> str:
    """How an episode ended, one of `OUTCOMES`.

    Args:
        success: the task's own check.
        lifted: the objects that were picked up, in the order in which they first were.
        target: the object that the task asks for.
    """
    if success:
        return OUTCOMES[0]
    if not lifted:
        return OUTCOMES[1]
    return OUTCOMES[2] if lifted[0] != target else OUTCOMES[3]


def plan(options: EvalOptions) -> list[tuple[int, int]]:
    """The (task, seed) pairs of an evaluation, grouped by task: building a task's scene takes seconds."""
    tasks = options.tasks or tuple(task.index for task in list_tasks(options.suite))
    pairs = [(tasks[i % len(tasks)], options.seed0 + i // len(tasks)) for i in range(options.episodes)]
    return sorted(pairs)


def evaluate(
    options: EvalOptions, on_result: Callable[[EpisodeResult], None] = lambda result: None
) -> list[EpisodeResult]:
    """Runs all episodes, in `options.workers` processes; `on_result` sees each one as it ends."""
    pairs = plan(options)
    if options.workers <= 1:
        results = []
        for result in _episodes(options, pairs):
            results.append(result)
            on_result(result)
        return results
    context = multiprocessing.get_context("spawn")  # a renderer does not survive fork
    done: multiprocessing.Queue[EpisodeResult] = context.Queue()
    shares = [pairs[i :: options.workers] for i in range(options.workers)]
    workers = [context.Process(target=_worker, args=(options, share, done), daemon=True) for share in shares]
    for worker in workers:
        worker.start()
    results = _gather(workers, shares, done, on_result)
    for worker in workers:
        worker.join(10)
    return sorted(results, key=lambda r: (r.task, r.seed))


def _gather(
    workers: Sequence[Any],
    shares: list[list[tuple[int, int]]],
    done: multiprocessing.Queue[EpisodeResult],
    on_result: Callable[[EpisodeResult], None],
) -> list[EpisodeResult]:
    """Collects results until every episode is accounted for; a dead worker's episodes become errors."""
    missing = {pair for share in shares for pair in share}
    results: list[EpisodeResult] = []
    while missing:
        try:
            result = done.get(timeout=1.0)
        except queue.Empty:
            dead = {
                pair
                for worker, share in zip(workers, shares, strict=True)
                if not worker.is_alive()
                for pair in share
                if pair in missing
            }
            if not dead or not done.empty():
                continue
            for task, seed in sorted(dead):
                results.append(_failed(task, seed, "the worker process died"))
                on_result(results[-1])
            missing -= dead
            continue
        missing.discard((result.task, result.seed))
        results.append(result)
        on_result(result)
    return results


def _worker(
    options: EvalOptions, pairs: list[tuple[int, int]], done: multiprocessing.Queue[EpisodeResult]
) -> None:
    for result in _episodes(options, pairs):
        done.put(result)


def _episodes(options: EvalOptions, pairs: list[tuple[int, int]]) -> Any:
    """Yields the results of (task, seed) pairs; one environment at a time, rebuilt when the task changes."""
    loaded = Policy.load(
        options.policy,
        options.backend,
        threads=max(1, (os.cpu_count() or 1) // options.workers),
        options=DecisionOptions(options.decoding, drafts=options.thinking != "plain"),
    )
    policy: Decider = LaggingPolicy(loaded) if options.thinking == "lagging" else loaded
    execute_steps = options.execute_steps or loaded.bundle.spec.execute_steps
    env: SimEnv | None = None
    try:
        for task, seed in pairs:
            if env is None or env.info.index != task:
                if env is not None:
                    env.close()
                env = SimEnv(options.suite, task, image_size=options.image_size)
            try:
                yield run_episode(env, policy, seed, execute_steps)
            except Exception as error:  # one broken episode must not cost the others
                yield _failed(
                    task, seed, f"{error} ({traceback.format_exc(limit=-1).splitlines()[-2].strip()})"
                )
    finally:
        if env is not None:
            env.close()


def _failed(task: int, seed: int, error: str) -> EpisodeResult:
    return EpisodeResult(task, str(task), seed, False, 0, 0, math.nan, math.nan, math.nan, (), error=error)


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a success rate (z = 1.96: 95 %). Returns (low, high); (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    p = successes / trials
    centre = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials)) / (1 + z * z / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


def write_results(path: Path, options: EvalOptions, results: Sequence[EpisodeResult]) -> None:
    """Writes every episode, the totals, and which policy on which machine they are of, as JSON."""
    ran = [r for r in results if not r.error]
    successes = sum(r.success for r in ran)
    path.parent.mkdir(parents=True, exist_ok=True)
    summary = {
        "policy": options.policy.name,
        "fingerprint": Bundle.load(options.policy).fingerprint,
        "machine": f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}",
        "options": {key: str(value) for key, value in asdict(options).items() if key != "policy"},
        "episodes": len(ran),
        "errors": len(results) - len(ran),
        "successes": successes,
        "success_rate": successes / len(ran) if ran else None,
        "interval_95": wilson(successes, len(ran)),
        "results": [asdict(r) for r in results],
    }
    path.write_text(json.dumps(summary, indent=1))
