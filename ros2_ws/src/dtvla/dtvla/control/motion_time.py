"""How much of a plan the arm has lived through, and how long decisions take.

A chunk's row k is meant for `stamp + k * period` of an arm that moves on meanwhile. An arm that stood
still since the picture has lived through none of it, whatever the wall clock says: with a policy that
takes two seconds, aligning by wall time would throw away every row of every chunk. So rows are counted
in motion time, which runs only while rows are executed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field

from dtvla.control.action_chunk import NS_PER_S

KEPT_TICKS = 20_000  # 20 s at 1 kHz, far more than any decision takes


class MotionClock:
    """Counts the time spent executing, tick by tick, and remembers it.

    `now_ns` is the motion time at the newest tick. All times are integer nanoseconds.
    """

    def __init__(self) -> None:
        self.now_ns = 0
        self._pending_ns = 0
        self._stamps: list[int] = []
        self._readings: list[int] = []
        self._cut = False

    def tick(self, tick_ns: int) -> None:
        """A tick begins at `tick_ns`: what was announced with `spend` is over now."""
        self.now_ns += self._pending_ns
        self._pending_ns = 0
        self._stamps.append(tick_ns)
        self._readings.append(self.now_ns)
        if len(self._stamps) > 2 * KEPT_TICKS:
            del self._stamps[:KEPT_TICKS], self._readings[:KEPT_TICKS]
            self._cut = True

    def spend(self, duration_ns: int) -> None:
        """The command for the newest tick executes so much motion time, until the next tick."""
        self._pending_ns = duration_ns

    def at(self, stamp_ns: int) -> int | None:
        """Motion time at `stamp_ns`, or None when that is longer ago than what is remembered."""
        if not self._stamps:
            return 0
        index = bisect_right(self._stamps, stamp_ns) - 1
        if index < 0:
            return None if self._cut else self._readings[0]
        start, reading = self._stamps[index], self._readings[index]
        if index + 1 == len(self._stamps):
            return reading + min(stamp_ns - start, self._pending_ns)
        span, spent = self._stamps[index + 1] - start, self._readings[index + 1] - reading
        return reading + spent * (stamp_ns - start) // span


@dataclass
class DelayEstimate:
    """Time from picture to chunk, over the last decisions.

    Args:
        warm_up: first decisions of a policy process that do not count: they load kernels and fill caches
            and may take ten times as long.
        window: decisions that are looked at.
    """

    warm_up: int = 2
    window: int = 20
    _seen: int = 0
    _newest_id: int = -1
    _delays_s: deque[float] = field(default_factory=deque)

    def observe(self, decision_id: int, delay_ns: int) -> None:
        """Takes in the delay of a decision; one that is sent again does not count twice."""
        if decision_id == self._newest_id:
            return
        self._newest_id = decision_id
        self._seen += 1
        if self._seen > self.warm_up:
            self._delays_s.append(max(delay_ns, 0) / NS_PER_S)
            if len(self._delays_s) > self.window:
                self._delays_s.popleft()

    def forget(self) -> None:
        """A new policy process starts, cold."""
        self._seen, self._newest_id = 0, -1
        self._delays_s.clear()

    @property
    def mean_s(self) -> float | None:
        return sum(self._delays_s) / len(self._delays_s) if self._delays_s else None

    @property
    def worst_s(self) -> float | None:
        return max(self._delays_s, default=None)
