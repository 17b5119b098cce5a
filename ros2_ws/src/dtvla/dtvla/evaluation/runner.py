"""Closed-loop evaluation in process: the benchmark's protocol without the ROS graph.

Every episode is open loop between decisions (`execute_steps` rows of each chunk) and ends with the
task's own success check or its step limit. Same seed, same policy, same result; an episode whose
worker crashed is reported as an error and never counted as a failure of the policy.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from dtvla.errors import InputError
from dtvla.evaluation import worker_pool
from dtvla.evaluation.delayed_episode import Delay, run_delayed
from dtvla.evaluation.episode_record import EpisodeRecord
from dtvla.evaluation.policy_adapters import EpisodePolicy, Script, SwappedThoughtPolicy, script
from dtvla.evaluation.results import (
    OUTCOMES,
    EpisodeResult,
    EvalOptions,
    failed,
    outcome,
    write_results,
)
from dtvla.evaluation.work_queue import Pair
from dtvla.policy.async_thinking import LaggingPolicy
from dtvla.policy.bundle.policy_spec import PolicySpec
from dtvla.policy.options import DecisionOptions
from dtvla.policy.policy import Policy
from dtvla.sim.env import SimEnv, list_tasks
from dtvla.sim.expert.pick_and_place import CannotPlan
from dtvla.sim.perturbations.perturbation import Variation
from dtvla.sim.suites import embedded, libero

__all__ = [
    "OUTCOMES",
    "EpisodeResult",
    "EvalOptions",
    "evaluate",
    "outcome",
    "plan",
    "run_episode",
    "write_results",
]

Play = Callable[[SimEnv, int], EpisodeResult]  # an environment of the task, a seed
Runner = Callable[[EvalOptions, Sequence[Pair]], Iterable[EpisodeResult]]


def run_episode(env: SimEnv, policy: EpisodePolicy | Script, seed: int, execute_steps: int) -> EpisodeResult:
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
    record = EpisodeRecord(env, seed, obs)
    decisions = 0
    while obs.step < env.info.max_steps and not obs.success:
        started = time.perf_counter()
        if isinstance(policy, Script):
            decision: Any = policy.decide(obs)
        else:
            decision = policy.decide(obs.images, env.instruction)
        record.decided(decision, obs, time.perf_counter() - started)
        decisions += 1
        for row, action in enumerate(decision.raw_actions[:execute_steps]):
            obs = env.step(action, look=row == execute_steps - 1)
            record.stepped(action, obs, seam=row == 0 and decisions > 1)
            if obs.success or obs.step >= env.info.max_steps:
                break
    return record.result()


def plan(options: EvalOptions) -> list[tuple[int, int]]:
    """The (task, seed) pairs of an evaluation, grouped by task: building a task's scene takes seconds.

    Raises:
        InputError: no such suite or task, or more trials than LIBERO has initial states.
    """
    infos = list_tasks(options.suite)
    tasks = options.tasks or tuple(info.index for info in infos)
    unknown = sorted(set(tasks) - {info.index for info in infos})
    if unknown:
        last = len(infos) - 1
        raise InputError(
            f"Suite '{options.suite}' has tasks 0 to {last}, not {', '.join(map(str, unknown))}."
        )
    episodes = options.episodes if options.trials is None else options.trials * len(tasks)
    pairs = [(tasks[i % len(tasks)], options.first_seed + i // len(tasks)) for i in range(episodes)]
    if options.suite not in embedded.SUITES and pairs:
        states = len(libero.init_states(options.suite, infos[tasks[0]].name))
        most = max(seed for _, seed in pairs) - options.first_seed + 1
        if most > states:  # they would be the same episodes again, and count twice
            raise InputError(f"A task of '{options.suite}' has {states} initial states, not {most}.")
    return sorted(pairs)


def evaluate(
    options: EvalOptions,
    on_result: Callable[[EpisodeResult], None] = lambda result: None,
    finished: Sequence[EpisodeResult] = (),
    runner: Runner | None = None,
) -> list[EpisodeResult]:
    """Runs all episodes.

    Args:
        options: what to evaluate.
        on_result: sees each episode as it ends.
        finished: results of episodes that need not be run again.
        runner: runs the episodes that are left; None takes this process, or `options.workers` others.

    Returns: all results, those that were finished before among them.
    """
    known = {(result.task, result.seed): result for result in finished}
    planned = plan(options)
    pairs = [pair for pair in planned if pair not in known]
    results = [known[pair] for pair in planned if pair in known]
    for result in (runner or in_processes)(options, pairs):
        results.append(result)
        on_result(result)
    return sorted(results, key=lambda r: (r.task, r.seed))


def in_processes(options: EvalOptions, pairs: Sequence[Pair]) -> Iterable[EpisodeResult]:
    """Runs episodes in as many processes as the options say, or in this one."""
    return (
        worker_pool.run(episodes, options, pairs, options.workers)
        if options.workers
        else episodes(options, pairs)
    )


def player(options: EvalOptions, policy: EpisodePolicy, spec: PolicySpec) -> Play:
    """What plays an episode as the options ask, with a policy that sees."""
    delay, execute_steps = Delay.of(options), options.execute_steps or spec.execute_steps
    if delay is None:
        return lambda env, seed: run_episode(env, policy, seed, execute_steps)
    return lambda env, seed: run_delayed(env, policy, seed, spec, execute_steps, delay)


def decision_options(options: EvalOptions) -> DecisionOptions:
    """How a policy decides under these options."""
    decoding = "hybrid" if options.decoding == "swapped" else options.decoding
    return DecisionOptions(decoding, drafts=options.thinking != "plain")


def _own_player(options: EvalOptions) -> Play:
    """The same with whatever decides under the options, loaded into this process."""
    if options.scripted:
        by_script = script(str(options.policy))
        return lambda env, seed: run_episode(env, by_script, seed, 1)
    threads = threads_per_worker(options)
    loaded = Policy.load(options.policy, options.backend, threads, decision_options(options))
    policy: EpisodePolicy = LaggingPolicy(loaded) if options.thinking == "lagging" else loaded
    if options.decoding == "swapped":
        policy = SwappedThoughtPolicy(loaded, [info.language for info in list_tasks(options.suite)])
    return player(options, policy, loaded.bundle.spec)


def threads_per_worker(options: EvalOptions) -> int:
    """Inference threads for each worker, so that all processors are used."""
    return max(1, (os.cpu_count() or 1) // max(1, options.workers))


def episodes(
    options: EvalOptions, pairs: Iterable[Pair], play: Play | None = None
) -> Iterator[EpisodeResult]:
    """Yields the results of (task, seed) pairs; one environment at a time, rebuilt when the task changes.

    Args:
        options: what to evaluate.
        pairs: the next one is asked for when the result of the last was taken.
        play: plays an episode of an environment; None loads what the options name.
    """
    play = play or _own_player(options)
    env: SimEnv | None = None
    try:
        for task, seed in pairs:
            try:
                if env is None or env.info.index != task:
                    if env is not None:
                        env.close()
                    env = None  # nothing must hold the old one while the next is built
                    env = scene(options, task)
                yield play(env, seed)
            except CannotPlan as error:
                yield failed(task, seed, str(error), list_tasks(options.suite)[task].name)
            except Exception as error:  # one broken episode must not cost the others
                where = traceback.format_exc(limit=-1).splitlines()[-2].strip()
                yield failed(task, seed, f"{error} ({where})", list_tasks(options.suite)[task].name)
    finally:
        if env is not None:
            env.close()


def scene(options: EvalOptions, task: int) -> SimEnv:
    """The environment of a task; with pictures if somebody looks at them."""
    return SimEnv(
        options.suite,
        task,
        image_size=options.image_size,
        render=options.watched or not options.scripted,
        variation=Variation.parse(options.variation),
        max_steps=options.max_steps,
    )
