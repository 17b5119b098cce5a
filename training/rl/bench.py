"""How much of the simulators' own speed is left when a policy thinks, decides and is recorded.

    python -m training.rl.bench --checkpoint CHECKPOINT

Rollouts are played once, which warms up; then in every round they are played again, and the simulators alone
repeat what was done in them, action by action, in as many worker processes. Both render what a policy looks
at. A machine's speed drifts by several percent within a minute, so that the two ways take turns.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from dtvla.evaluation.results import machine
from dtvla.evaluation.worker_pool import READY
from dtvla.policy.bundle.policy_spec import PolicySpec
from dtvla.policy.policy import Decision, raw_actions
from dtvla.sim.env import list_tasks
from training.common.settings import parse
from training.rl import rollouts
from training.rl.settings import EvaluationSettings, RolloutSettings
from training.rl.trajectory import RolloutJob, Trajectory
from training.rl.workers import Lost, RolloutWork, Weights, Workers
from training.sft.bench import add_figures


@dataclass(frozen=True)
class RlBench:
    """What to measure."""

    checkpoint: str
    episodes: int = 8  # of each way in a round
    rounds: int = 4
    output: Path | None = None  # JSON file for the figures; others in it stay
    rollout: RolloutSettings = field(
        default_factory=partial(RolloutSettings, thought_tokens=64, first_seed=400_000)
    )


@dataclass(frozen=True)
class Throughput:
    """Environment steps per second over all workers, and per second of processor time."""

    simulators: float
    rollouts: float
    simulators_cpu: float
    rollouts_cpu: float
    decision_tokens: float  # thought tokens of a decision
    shares: tuple[float, ...]  # of the single rounds

    @property
    def share(self) -> float:
        """What is left of the simulators' own speed."""
        return self.rollouts / self.simulators

    @property
    def cpu_share(self) -> float:
        """The same in processor time, which other programs on the machine disturb less."""
        return self.rollouts_cpu / self.simulators_cpu


def measure(config: RlBench) -> Throughput:
    """Plays both ways.

    Raises:
        TrainingError: nothing can be played.
    """
    work = RolloutWork(Path(config.checkpoint), config.rollout, EvaluationSettings(), 0)
    tasks = config.rollout.tasks or tuple(info.index for info in list_tasks(config.rollout.suite))
    tasks = tasks[: config.rollout.workers]  # a worker builds the scene of its task once
    jobs = [
        RolloutJob(tasks[i % len(tasks)], config.rollout.first_seed + i, 0, i)
        for i in range(max(config.episodes, config.rollout.workers))
    ]
    with contextlib.closing(Workers(work)) as policies:
        played = _played(policies.play(jobs))
        done = {t.job: [move.columns for move in t.moves] for t in played}
        with contextlib.closing(Workers(work, partial(_simulate, done))) as simulators:
            _played(simulators.play(jobs))
            rounds = [_both(policies, simulators, jobs, number) for number in range(config.rounds)]
    rollouts, alone = (_Timed.sum(way) for way in zip(*rounds, strict=True))
    return Throughput(
        alone.steps / alone.seconds,
        rollouts.steps / rollouts.seconds,
        alone.steps / alone.cpu_seconds,
        rollouts.steps / rollouts.cpu_seconds,
        sum(t.tokens for t in played) / max(1, sum(len(t.moves) for t in played)),
        tuple(bare.seconds / rollout.seconds for rollout, bare in rounds),
    )


class _Timed(NamedTuple):
    """Steps that were made, and how long they took."""

    steps: int
    seconds: float
    cpu_seconds: float

    @staticmethod
    def sum(parts: Sequence[_Timed]) -> _Timed:
        return _Timed(*(sum(values) for values in zip(*parts, strict=True)))


def _both(
    policies: Workers, simulators: Workers, jobs: Sequence[RolloutJob], number: int
) -> tuple[_Timed, _Timed]:
    """One round: the rollouts and the simulators alone, each of them first in every second one."""
    if number % 2:
        alone, rollouts = _timed(simulators, jobs), _timed(policies, jobs)
    else:
        rollouts, alone = _timed(policies, jobs), _timed(simulators, jobs)
    if alone.steps != rollouts.steps:
        raise RuntimeError(
            f"The simulators alone made {alone.steps} steps where the rollouts made {rollouts.steps}: the "
            "same actions did not give the same episodes, so that their times cannot be compared."
        )
    return rollouts, alone


def _timed(crew: Workers, jobs: Sequence[RolloutJob]) -> _Timed:
    started = time.perf_counter()
    played = _played(crew.play(jobs))
    seconds = time.perf_counter() - started
    return _Timed(sum(t.finish_step for t in played), seconds, sum(t.seconds for t in played))


def _played(results: Iterator[Trajectory | Lost]) -> list[Trajectory]:
    return [each for each in results if isinstance(each, Trajectory)]


class _Repeating:
    """A `Player` that takes no time: the actions of a rollout, and a thought of tags."""

    def __init__(self, spec: PolicySpec, done: dict[RolloutJob, list[NDArray[np.int16]]]) -> None:
        layout = spec.layout
        self._thought = np.array([layout.think, *layout.closing], np.int64)
        self._spec, self._done = spec, done

    def begin(self, job: RolloutJob) -> None:
        self._rest = iter(self._done[job])

    def decide(self, images: dict[str, NDArray[np.uint8]], instruction: str) -> rollouts.Drawn:
        columns = next(self._rest).astype(np.int64)
        log_probs = np.zeros(len(columns) + len(self._thought), np.float32)
        return Decision(raw_actions(self._spec, columns), "", self._thought, False, {}), columns, log_probs


def _simulate(done: dict[RolloutJob, list[NDArray[np.int16]]], work: RolloutWork, pipe: Connection) -> None:
    """A worker without a policy."""
    spec, tokenizer = rollouts.frame(work.folder)
    environments, player = rollouts.RolloutEnvironments(work.rollout), _Repeating(spec, done)
    prompt_of = rollouts.prompts(spec, tokenizer)
    pipe.send(READY)
    try:
        while True:
            message: tuple[RolloutJob, Weights] = pipe.recv()
            env = environments.env(message[0].task, work.rollout.max_steps)
            pipe.send(rollouts.play(env, player, message[0], spec, prompt_of, work.rollout))
    except (EOFError, BrokenPipeError):
        return


def main(config: RlBench) -> None:
    """Measures and prints."""
    found = measure(config)
    Console().print(
        f"simulators alone {found.simulators:.1f} steps/s, rollouts {found.rollouts:.1f} steps/s: "
        f"{100 * found.share:.0f} % ({100 * min(found.shares):.0f} to {100 * max(found.shares):.0f} % in "
        f"{config.rounds} rounds); per second of processor time {found.simulators_cpu:.1f} and "
        f"{found.rollouts_cpu:.1f}: {100 * found.cpu_share:.0f} % ({config.rollout.workers} workers, "
        f"{found.decision_tokens:.0f} thought tokens per decision)",
        highlight=False,
    )
    if config.output is not None:
        figures = asdict(found) | {"share": found.share, "cpu_share": found.cpu_share, "machine": machine()}
        add_figures(config.output, "rollouts", figures)


def command(arguments: Sequence[str] | None = None) -> None:
    """`python -m training.rl.bench`."""
    main(parse(RlBench, __doc__ or "", arguments))


if __name__ == "__main__":
    command()
