"""Worker processes for an evaluation: each gets one episode at a time, and a dead one is replaced."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import Any, ClassVar, TypeVar

from dtvla.errors import DtvlaError
from dtvla.evaluation.results import EpisodeResult, EvalOptions, failed
from dtvla.evaluation.work_queue import MOST_DEATHS, Pair, WorkQueue

# Yields the result of each pair in turn; looks for the next pair only when it has handed in the last one.
Work = Callable[[EvalOptions, Iterable[Pair]], Iterable[EpisodeResult]]
END_TIMEOUT_S = 20.0  # a worker may have processes of its own to end


class EvaluationRefused(DtvlaError, RuntimeError):
    """No episode can be run; the message says why."""


_Started = TypeVar("_Started", bound="WorkerProcess")


@dataclass
class WorkerProcess:
    """A process at the other end of a pipe."""

    end_timeout_s: ClassVar[float] = END_TIMEOUT_S
    process: Any
    pipe: Connection

    @classmethod
    def start(cls: type[_Started], context: Any, target: Callable[..., None], *arguments: Any) -> _Started:
        """Starts one; `target` gets the arguments and its end of the pipe."""
        here, there = context.Pipe()
        process = context.Process(target=target, args=(*arguments, there), daemon=True)
        process.start()
        there.close()  # else its death would not close the pipe
        return cls(process, here)

    def how_it_ended(self) -> str:
        """How it ended, in words: it has just closed its pipe."""
        self.process.join(self.end_timeout_s)
        status = self.process.exitcode
        if status is None:
            return "fell silent"
        return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"

    def end(self) -> None:
        """Lets it end, and ends it if it does not."""
        self.pipe.close()
        self.process.join(self.end_timeout_s)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


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
    context = multiprocessing.get_context("spawn")  # a renderer does not survive a fork
    crew: dict[int, WorkerProcess] = {}
    try:
        for number in range(min(workers, len(queue))):
            crew[number] = _start_worker(context, work, options, queue.deal(number))
        while crew:
            ready = connection.wait([worker.pipe for worker in crew.values()])
            for number in [number for number, worker in crew.items() if worker.pipe in ready]:
                result = _receive(crew[number])
                if isinstance(result, EvaluationRefused):
                    raise result
                if isinstance(result, EpisodeResult):
                    queue.ended(number)
                    yield result
                    _go_on(crew, number, queue.deal(number))
                    continue
                lost = queue.died(number)
                crew.pop(number).end()
                if lost is not None:
                    yield failed(*lost, f"The worker process {result}.")
                if queue.hopeless:
                    why = f"Given up: {MOST_DEATHS} worker processes died one after the other."
                    yield from (failed(*pair, why) for pair in queue.give_up())
                elif len(queue):
                    crew[number] = _start_worker(context, work, options, queue.deal(number))
    finally:
        for worker in crew.values():
            worker.process.terminate()
        for worker in crew.values():
            worker.end()


def _start_worker(context: Any, work: Work, options: EvalOptions, first: Pair | None) -> WorkerProcess:
    worker = WorkerProcess.start(context, _worker, work, options)
    worker.pipe.send(first)
    return worker


def _go_on(crew: dict[int, WorkerProcess], number: int, pair: Pair | None) -> None:
    """Gives a worker its next episode, or lets it go."""
    try:
        crew[number].pipe.send(pair)
    except OSError:
        return  # it has just died: its end of the pipe says so on the next turn
    if pair is None:
        crew.pop(number).end()


def _receive(worker: WorkerProcess) -> EpisodeResult | EvaluationRefused | str:
    """What a worker handed in; or, in words, how it died."""
    try:
        received: EpisodeResult | EvaluationRefused = worker.pipe.recv()
        return received
    except (EOFError, OSError):
        return worker.how_it_ended()


def _worker(work: Work, options: EvalOptions, pipe: Connection) -> None:
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
