"""Worker processes for an evaluation, rollouts and recording: each gets one job at a time.

One that dies, or is stuck, costs the job that it had, and is replaced.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import signal
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import Any

from dtvla.errors import DtvlaError
from dtvla.evaluation.results import EpisodeResult, EvalOptions, failed
from dtvla.evaluation.work_queue import MOST_DEATHS, Pair, WorkQueue

# Yields the result of each pair in turn; looks for the next pair only when it has handed in the last one.
Work = Callable[[Any, Iterable[Pair]], Iterable[Any]]
END_TIMEOUT_S = 20.0  # a worker may have processes of its own to end
READY = "ready"  # what a worker may say once it has begun: from then on its job has its own time


class EvaluationRefused(DtvlaError, RuntimeError):
    """No episode can be run; the message says why."""


@dataclass(frozen=True)
class WorkerDied:
    """What a job comes to whose worker died."""

    how: str  # goes on from "The worker"


@dataclass
class WorkerProcess:
    """A process at the other end of a pipe."""

    process: Any
    pipe: Connection
    deadline_s: float = math.inf  # the end of our patience with its job; of the monotonic clock
    ready: bool = False  # it has said so

    @classmethod
    def start(cls, context: Any, target: Callable[..., None], *arguments: Any) -> WorkerProcess:
        """Starts one; `target` gets the arguments and its end of the pipe."""
        here, there = context.Pipe()
        process = context.Process(target=target, args=(*arguments, there), daemon=True)
        process.start()
        there.close()  # else its death would not close the pipe
        return cls(process, here)

    def how_it_ended(self) -> str:
        """How it ended, in words: it has just closed its pipe."""
        self.process.join(END_TIMEOUT_S)
        status = self.process.exitcode
        if status is None:
            return "fell silent"
        return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"

    def end(self) -> None:
        """Lets it end, and ends it if it does not."""
        self.pipe.close()
        self.process.join(END_TIMEOUT_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _itself(pair: Pair) -> Pair:
    return pair


class WorkerPool:
    """Processes that are started when there is a job for them.

    Args:
        start: makes one.
        workers: how many at most.
        stay: they wait for the next round when no job is left; else each is sent None, and ends.
        start_timeout_s: what a worker may take before it says `READY`, beside its first job's time.
        job_timeout_s: what a job may take.
    """

    def __init__(
        self,
        start: Callable[[], WorkerProcess],
        workers: int,
        *,
        stay: bool = False,
        start_timeout_s: float = 0.0,
        job_timeout_s: float = math.inf,
    ) -> None:
        self._start, self._workers, self._stay = start, workers, stay
        self._start_timeout_s, self._job_timeout_s = start_timeout_s, job_timeout_s
        self._crew: dict[int, WorkerProcess] = {}

    def results(
        self, queue: WorkQueue, message: Callable[[Pair], Any] = _itself
    ) -> Generator[tuple[Pair, Any], None, None]:
        """Does every job of the queue once, and yields what each comes to: a worker's answer or `WorkerDied`.

        Once the queue is hopeless nothing more is begun; what runs then goes on. A caller that wants no more
        closes the iterator, which ends the workers that have a job.

        Args:
            queue: the jobs.
            message: what a worker is sent for one.

        Raises:
            Exception: what a worker sent instead of an answer: the same would come of every job.
        """
        busy: dict[int, Pair] = {}
        try:
            for number in range(min(self._workers, len(queue))):
                self._deal(number, queue, message, busy)
            while busy:
                for number in self._heard(busy):
                    answer = self._receive(self._crew[number])
                    if isinstance(answer, str) and answer == READY:
                        self._crew[number].ready = True
                        self._crew[number].deadline_s = time.monotonic() + self._job_timeout_s
                        continue
                    if isinstance(answer, Exception):
                        raise answer
                    pair = busy.pop(number)
                    if isinstance(answer, WorkerDied):
                        self._crew.pop(number).end()
                        queue.died(number)
                    else:
                        queue.ended(number)
                    yield pair, answer
                    self._deal(number, queue, message, busy)
        finally:
            self._end(busy)

    def close(self) -> None:
        """Ends all workers."""
        self._end(self._crew)

    def _end(self, numbers: Iterable[int]) -> None:
        ending = [self._crew.pop(number) for number in list(numbers) if number in self._crew]
        for worker in ending:
            worker.process.terminate()
        for worker in ending:
            worker.end()

    def _deal(
        self, number: int, queue: WorkQueue, message: Callable[[Pair], Any], busy: dict[int, Pair]
    ) -> None:
        """Gives a worker its next job, and makes the worker first when there is none; or lets it go."""
        pair = None if queue.hopeless else queue.deal(number)
        if pair is None:
            if number in self._crew and not self._stay:
                worker = self._crew.pop(number)
                with contextlib.suppress(OSError):  # it has just died
                    worker.pipe.send(None)
                worker.end()
            return
        if number not in self._crew:
            self._crew[number] = self._start()
        worker = self._crew[number]
        worker.deadline_s = time.monotonic() + self._job_timeout_s
        if not worker.ready:
            worker.deadline_s += self._start_timeout_s
        busy[number] = pair
        with contextlib.suppress(OSError):  # it has just died: its end of the pipe says so on the next turn
            worker.pipe.send(message(pair))

    def _heard(self, busy: Iterable[int]) -> list[int]:
        """Waits for an answer, for a worker to die, or for the patience with one to be over."""
        soonest = min(self._crew[number].deadline_s for number in busy)
        pipes = {self._crew[number].pipe: number for number in busy}
        patience = None if math.isinf(soonest) else max(0.0, soonest - time.monotonic())
        ready = connection.wait(list(pipes), patience)
        found = [number for pipe, number in pipes.items() if pipe in ready]
        now = time.monotonic()
        return found or [number for number in busy if self._crew[number].deadline_s <= now]

    def _receive(self, worker: WorkerProcess) -> Any:
        """What a worker handed in, or how it ended."""
        if not worker.pipe.poll():
            worker.process.kill()
            return WorkerDied(f"was stuck for {self._job_timeout_s:g} s")
        try:
            return worker.pipe.recv()
        except (EOFError, OSError):
            return WorkerDied(worker.how_it_ended())


def run(work: Work, options: EvalOptions, pairs: Iterable[Pair], workers: int) -> Iterator[EpisodeResult]:
    """Runs episodes in processes, and yields their results as they end.

    A worker that dies costs the episode that it ran, which is reported as an error.

    Args:
        work: what a worker does; a function of a module, or a `partial` of one.
        options: what to evaluate.
        pairs: the (task, seed) pairs to run.
        workers: number of processes.

    Raises:
        EvaluationRefused: a worker could not even begin, for instance because the bundle is broken.
    """
    queue = WorkQueue(pairs)
    with contextlib.closing(pool_of(work, options, workers)) as pool:
        for pair, result in pool.results(queue):
            if not isinstance(result, WorkerDied):
                yield result
                continue
            yield failed(*pair, f"The worker process {result.how}.")
            if queue.hopeless:
                why = f"Given up: {MOST_DEATHS} worker processes died one after the other."
                yield from (failed(*each, why) for each in queue.give_up())


def pool_of(work: Work, options: Any, workers: int, *, stay: bool = False) -> WorkerPool:
    """Workers that do the same work with every pair.

    Args:
        work: what they do; a function of a module, or a `partial` of one.
        options: its first argument.
        workers: how many at most.
        stay: see `WorkerPool`.
    """
    context = multiprocessing.get_context("spawn")  # a renderer does not survive a fork
    return WorkerPool(lambda: WorkerProcess.start(context, _worker, work, options), workers, stay=stay)


def _worker(work: Work, options: Any, pipe: Connection) -> None:
    """A worker's process: takes pairs from the pipe, puts results into it, until it gets None or an end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends us
    try:
        for result in work(options, _until_none(pipe)):
            pipe.send(result)
    except (EOFError, BrokenPipeError):
        return  # the parent is gone; nobody counts on the rest
    except (ValueError, RuntimeError, OSError) as error:
        pipe.send(EvaluationRefused(str(error)))


def _until_none(pipe: Connection) -> Iterator[Pair]:
    while True:
        pair = pipe.recv()
        if pair is None:
            return
        yield pair
