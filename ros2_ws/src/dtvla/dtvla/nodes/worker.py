"""One thread that decides, so that the node's callbacks stay short. No ROS."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from dtvla.nodes.eyes import Look

Discarded = Callable[[], bool]


@dataclass(frozen=True)
class Job:
    """One decision to take.

    Attributes:
        decision_id: its number.
        look: what it is taken on.
        instruction: what is to be done.
        fresh: True for the first decision after a new instruction or episode: earlier thoughts do not count.
        submitted_s: monotonic time of its making, for the figures.
    """

    decision_id: int
    look: Look
    instruction: str
    fresh: bool
    submitted_s: float = field(default_factory=time.monotonic)


class Worker:
    """Runs one job at a time; a job can be discarded while it runs.

    `work(job, discarded)` is called in the worker's thread; `discarded()` says whether its result is
    still wanted. It must not raise.
    """

    def __init__(self, work: Callable[[Job, Discarded], None]) -> None:
        self._work = work
        self._condition = threading.Condition()
        self._job: Job | None = None
        self._wanted: Job | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="decisions", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """A wanted job waits or runs. (One that was discarded but still winds down does not count.)"""
        with self._condition:
            return self._wanted is not None

    def submit(self, job: Job) -> None:
        """Puts a job in; it starts when a discarded one before it has wound down."""
        with self._condition:
            self._job = self._wanted = job
            self._condition.notify()

    def discard(self) -> None:
        """The result of whatever waits or runs is not wanted any more."""
        with self._condition:
            self._job = self._wanted = None

    def close(self, timeout_s: float = 5.0) -> None:
        """Discards everything and ends the thread."""
        with self._condition:
            self._closed = True
            self._job = self._wanted = None
            self._condition.notify()
        self._thread.join(timeout_s)

    def _loop(self) -> None:
        while True:
            with self._condition:
                while self._job is None and not self._closed:
                    self._condition.wait()
                if self._closed:
                    return
                job, self._job = self._job, None
            assert job is not None
            self._work(job, lambda job=job: self._wanted is not job)  # type: ignore[misc]
            with self._condition:
                if self._wanted is job:
                    self._wanted = None
