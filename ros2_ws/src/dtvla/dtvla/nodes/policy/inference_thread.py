"""One thread that decides, so that the node's callbacks stay short. No ROS."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from dtvla.nodes.policy.image_synchroniser import SynchronisedImages

Discarded = Callable[[], bool]


@dataclass(frozen=True)
class InferenceRequest:
    """One decision to take.

    Attributes:
        robot: whose it is; empty for the only one.
        decision_id: its number.
        observation: what it is taken on.
        instruction: what is to be done.
        fresh: True for the first decision after a new instruction or episode: earlier thoughts do not count.
        submitted_s: monotonic time of its making, for the figures.
    """

    robot: str
    decision_id: int
    observation: SynchronisedImages
    instruction: str
    fresh: bool
    submitted_s: float = field(default_factory=time.monotonic)


class InferenceThread:
    """Runs the requests that wait, all at once; a request can be discarded while it runs.

    `work(requests)` is called in this thread with one request per robot and, for each, a function that says
    whether its result is still wanted. It must not raise.
    """

    def __init__(self, work: Callable[[list[tuple[InferenceRequest, Discarded]]], None]) -> None:
        self._work = work
        self._condition = threading.Condition()
        self._waiting: dict[str, InferenceRequest] = {}
        self._wanted: dict[str, InferenceRequest] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="decisions", daemon=True)
        self._thread.start()

    def busy(self, robot: str) -> bool:
        """A wanted job of this robot waits or runs; a discarded one that still winds down does not count."""
        with self._condition:
            return robot in self._wanted

    def submit(self, request: InferenceRequest) -> None:
        """Puts a job in; it starts when what runs before it has wound down."""
        with self._condition:
            self._waiting[request.robot] = self._wanted[request.robot] = request
            self._condition.notify()

    def discard(self, robot: str) -> None:
        """The result of whatever waits or runs for this robot is not wanted any more."""
        with self._condition:
            self._waiting.pop(robot, None)
            self._wanted.pop(robot, None)

    def close(self, timeout_s: float = 5.0) -> None:
        """Discards everything and ends the thread."""
        with self._condition:
            self._closed = True
            self._waiting.clear()
            self._wanted.clear()
            self._condition.notify()
        self._thread.join(timeout_s)

    def _loop(self) -> None:
        while True:
            with self._condition:
                while not self._waiting and not self._closed:
                    self._condition.wait()
                if self._closed:
                    return
                requests = list(self._waiting.values())
                self._waiting.clear()
            self._work([(request, partial(self._is_discarded, request)) for request in requests])
            with self._condition:
                for request in requests:
                    if self._wanted.get(request.robot) is request:
                        del self._wanted[request.robot]

    def _is_discarded(self, request: InferenceRequest) -> bool:
        return self._wanted.get(request.robot) is not request
