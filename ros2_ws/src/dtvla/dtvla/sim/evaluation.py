"""Closed-loop evaluation in process: the benchmark's protocol without the ROS graph.

Every episode is open loop between decisions (`execute_steps` rows of each chunk) and ends with the
task's own success check or its step limit. Same seed, same policy, same result; an episode whose
worker crashed is reported as an error and never counted as a failure of the policy.
"""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import os
import queue
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dtvla.policy.background import LaggingPolicy
from dtvla.policy.options import DecisionOptions
from dtvla.policy.runner import Policy
from dtvla.sim import libero_suites
from dtvla.sim.deciders import Decider, Script, script
from dtvla.sim.env import SimEnv, list_tasks
from dtvla.sim.jobs import NoJob
from dtvla.sim.results import (
    OUTCOMES,
    EpisodeResult,
    EvalOptions,
    outcome,
    pack_actions,
    wilson,
    write_results,
)
from dtvla.sim.thoughts import check_thought

__all__ = [
    "OUTCOMES",
    "EpisodeResult",
    "EvalOptions",
    "evaluate",
    "outcome",
    "plan",
    "run_episode",
    "wilson",
    "write_results",
]

LIFTED_M = 0.04  # an object this far above where it lay was picked up, not pushed


def run_episode(env: SimEnv, policy: Decider | Script, seed: int, execute_steps: int) -> EpisodeResult:
    """Runs one episode of the environment's task.

    Args:
        env: the environment; it needs no pictures when a script decides.
        policy: who decides.
        seed: see `SimEnv.reset`.
        execute_steps: actions executed of each decision.
    """
    obs = env.reset(seed)
    if isinstance(policy, Script):
        policy.start(env, seed, obs)
    else:
        policy.reset()
    states = hashlib.sha256(env.state().tobytes())
    rest = {name: position[2] for name, position in obs.objects.items()}
    lifted: dict[str, None] = {}
    thoughts: list[str] = []
    actions = []
    latencies, near, stated = [], [], []
    while obs.step < env.info.max_steps and not obs.success:
        started = time.perf_counter()
        if isinstance(policy, Script):
            decision: Any = policy.decide(obs)
        else:
            decision = policy.decide(obs.images, env.info.language)
        latencies.append(time.perf_counter() - started)
        thoughts.append(decision.thought)
        error_m = check_thought(decision.thought, obs)
        stated.append(error_m is not None)
        near.append(error_m is not None and error_m < 0.03)
        for row, action in enumerate(decision.raw_actions[:execute_steps]):
            last = row == execute_steps - 1
            obs = env.step(action, look=last)
            actions.append(action)
            states.update(env.state().tobytes())
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
        outcome=outcome(obs.success, list(lifted), *env.targets),
        state_sha256=states.hexdigest(),
        actions=pack_actions(actions),
    )


def plan(options: EvalOptions) -> list[tuple[int, int]]:
    """The (task, seed) pairs of an evaluation, grouped by task: building a task's scene takes seconds.

    Raises:
        ValueError: no such suite or task, or more trials than LIBERO has initial states.
    """
    infos = list_tasks(options.suite)
    tasks = options.tasks or tuple(info.index for info in infos)
    unknown = sorted(set(tasks) - {info.index for info in infos})
    if unknown:
        last = len(infos) - 1
        raise ValueError(
            f"Suite '{options.suite}' has tasks 0 to {last}, not {', '.join(map(str, unknown))}."
        )
    episodes = options.episodes if options.trials is None else options.trials * len(tasks)
    pairs = [(tasks[i % len(tasks)], options.first_seed + i // len(tasks)) for i in range(episodes)]
    if options.suite != "embedded" and pairs:
        states = len(libero_suites.init_states(options.suite, infos[tasks[0]].name))
        most = max(seed for _, seed in pairs) - options.first_seed + 1
        if most > states:  # they would be the same episodes again, and count twice
            raise ValueError(f"A task of '{options.suite}' has {states} initial states, not {most}.")
    return sorted(pairs)


def evaluate(
    options: EvalOptions,
    on_result: Callable[[EpisodeResult], None] = lambda result: None,
    finished: Sequence[EpisodeResult] = (),
) -> list[EpisodeResult]:
    """Runs all episodes, in `options.workers` processes.

    Args:
        options: what to evaluate.
        on_result: sees each episode as it ends.
        finished: results of episodes that need not be run again.

    Returns: all results, those that were finished before among them.
    """
    known = {(result.task, result.seed): result for result in finished}
    planned = plan(options)
    pairs = [pair for pair in planned if pair not in known]
    results = [known[pair] for pair in planned if pair in known]
    if options.workers <= 1:
        for result in _episodes(options, pairs):
            results.append(result)
            on_result(result)
        return sorted(results, key=lambda r: (r.task, r.seed))
    context = multiprocessing.get_context("spawn")  # a renderer does not survive fork
    done: multiprocessing.Queue[EpisodeResult] = context.Queue()
    shares = [pairs[i :: options.workers] for i in range(options.workers)]
    workers = [context.Process(target=_worker, args=(options, share, done), daemon=True) for share in shares]
    for worker in workers:
        worker.start()
    results += _gather(workers, shares, done, on_result)
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
    parent = multiprocessing.parent_process()
    for result in _episodes(options, pairs):
        done.put(result)
        if parent is not None and not parent.is_alive():
            return  # the evaluation was killed; nobody counts on the rest


def _decider(options: EvalOptions) -> tuple[Decider | Script, int]:
    """Who decides, and how many actions of each decision are executed."""
    if options.scripted:
        return script(str(options.policy)), 1
    loaded = Policy.load(
        options.policy,
        options.backend,
        threads=max(1, (os.cpu_count() or 1) // options.workers),
        options=DecisionOptions(options.decoding, drafts=options.thinking != "plain"),
    )
    policy: Decider = LaggingPolicy(loaded) if options.thinking == "lagging" else loaded
    return policy, options.execute_steps or loaded.bundle.spec.execute_steps


def _episodes(options: EvalOptions, pairs: list[tuple[int, int]]) -> Any:
    """Yields the results of (task, seed) pairs; one environment at a time, rebuilt when the task changes."""
    policy, execute_steps = _decider(options)
    render = not options.scripted
    env: SimEnv | None = None
    try:
        for task, seed in pairs:
            if env is None or env.info.index != task:
                if env is not None:
                    env.close()
                env = SimEnv(options.suite, task, image_size=options.image_size, render=render)
            try:
                yield run_episode(env, policy, seed, execute_steps)
            except NoJob as error:
                yield _failed(task, seed, str(error), env.info.name)
            except Exception as error:  # one broken episode must not cost the others
                where = traceback.format_exc(limit=-1).splitlines()[-2].strip()
                yield _failed(task, seed, f"{error} ({where})", env.info.name)
    finally:
        if env is not None:
            env.close()


def _failed(task: int, seed: int, error: str, name: str = "") -> EpisodeResult:
    nothing = (math.nan, math.nan, math.nan)
    return EpisodeResult(task, name or str(task), seed, False, 0, 0, *nothing, (), error=error)
