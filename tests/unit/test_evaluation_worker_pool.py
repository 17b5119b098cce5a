"""Workers of an evaluation: who runs which episode, and what a dead one costs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtvla.evaluation.results import EpisodeResult, EvalOptions
from dtvla.evaluation.work_queue import Pair, WorkQueue
from dtvla.evaluation.worker_pool import EvaluationRefused, run

OPTIONS = EvalOptions("expert")
PAIRS = [(task, seed) for task in range(2) for seed in range(3)]
DEADLY = (1, 1)


@given(st.sets(st.tuples(st.integers(0, 3), st.integers(0, 5))), st.integers(1, 4), st.randoms())
def test_every_episode_is_dealt_once_and_a_worker_stays_with_its_task(
    pairs: set[Pair], workers: int, chance: object
) -> None:
    queue, dealt = WorkQueue(sorted(pairs)), []
    last: dict[int, int] = {}
    while len(queue):
        worker = chance.randrange(workers)  # type: ignore[attr-defined]
        waiting = {task for task, _ in pairs - set(dealt)}
        pair = queue.deal(worker)
        assert pair is not None
        if last.get(worker) in waiting:
            assert pair[0] == last[worker]
        last[worker] = pair[0]
        dealt.append(pair)
    assert sorted(dealt) == sorted(pairs)
    assert queue.deal(0) is None


def test_workers_begin_with_different_tasks() -> None:
    queue = WorkQueue(PAIRS)
    assert {queue.deal(0)[0], queue.deal(1)[0]} == {0, 1}  # type: ignore[index]


def _well(options: EvalOptions, pairs: Iterable[Pair]) -> Iterator[EpisodeResult]:
    for task, seed in pairs:
        yield EpisodeResult(task, "a task", seed, True, os.getpid(), 1, 0.0, 0.0, 0.0, ())


def _deadly(options: EvalOptions, pairs: Iterable[Pair]) -> Iterator[EpisodeResult]:
    for pair in pairs:
        if pair == DEADLY:
            os.kill(os.getpid(), signal.SIGKILL)
        yield from _well(options, [pair])


def _doomed(options: EvalOptions, pairs: Iterable[Pair]) -> Iterator[EpisodeResult]:
    os._exit(7)
    yield


def _refusing(options: EvalOptions, pairs: Iterable[Pair]) -> Iterator[EpisodeResult]:
    raise ValueError("The bundle is broken.")
    yield


def test_a_worker_that_dies_costs_one_episode_and_is_replaced() -> None:
    results = {(r.task, r.seed): r for r in run(_deadly, OPTIONS, PAIRS, 1)}
    assert sorted(results) == PAIRS
    lost = results.pop(DEADLY)
    assert (lost.success, lost.error) == (False, "The worker process was ended by SIGKILL.")
    assert all(result.success and not result.error for result in results.values())
    assert len({result.steps for result in results.values()}) == 2, "the dead one and its successor"


def test_workers_that_all_die_are_given_up() -> None:
    results = list(run(_doomed, OPTIONS, PAIRS, 1))
    assert sorted((r.task, r.seed) for r in results) == PAIRS
    assert [r.error for r in results[:3]] == ["The worker process ended with status 7."] * 3
    assert all(r.error.startswith("Given up: 3 worker processes died") for r in results[3:])


def test_what_would_fail_for_all_episodes_ends_the_evaluation_with_its_sentence() -> None:
    with pytest.raises(EvaluationRefused, match=r"The bundle is broken\."):
        list(run(_refusing, OPTIONS, PAIRS, 2))


def test_an_evaluation_that_is_broken_off_leaves_no_process() -> None:
    running = run(_well, OPTIONS, PAIRS, 1)
    pid = next(running).steps
    running.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
