"""What tells the controller that its picture of the world cannot be trusted. No ROS and no clock in here.

Each watch answers with None, or with one plain sentence; a sentence means that the arm holds.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from dtvla.control.action_chunk import NS_PER_S
from dtvla.control.limits.motion import Pose
from dtvla.control.rotations import log_rotation

JITTER_NS = NS_PER_S // 2  # stamps that are late by less than this were overtaken on the way


@dataclass
class Silence:
    """Something that must be heard again and again.

    Args:
        what: in words, with its topic.
        timeout_s: silence for so long is too long.
        remedy: what to do, a whole sentence.
    """

    what: str
    timeout_s: float
    remedy: str
    heard_s: float | None = None

    def hear(self, now_s: float) -> None:
        """It was heard at `now_s` (steady time, s)."""
        self.heard_s = now_s

    def sentence(self, now_s: float) -> str | None:
        """Why the arm holds, or None."""
        if self.heard_s is None:
            return f"Nothing has been heard from {self.what} yet. {self.remedy}"
        silent_s = now_s - self.heard_s
        if silent_s < self.timeout_s:
            return None
        return f"Nothing has been heard from {self.what} for more than {self.timeout_s:g} s. {self.remedy}"


@dataclass
class StampWatch:
    """Stamps of one stream: each newer than the one before, and close to now.

    Args:
        what: the stream in words.
        max_age_s: stamps further from now than this, either way, are refused; 0 does not compare with now.
    """

    what: str
    max_age_s: float
    newest_ns: int | None = None

    def sentence(self, stamp_ns: int, now_ns: int) -> str | None:
        """Why this message is not used, or None. One that is merely overtaken leaves the newest as it was."""
        age_s = (now_ns - stamp_ns) / NS_PER_S
        if self.max_age_s and abs(age_s) > self.max_age_s:
            side = f"{age_s:.3g} s old" if age_s > 0 else f"{-age_s:.3g} s in the future"
            return (
                f"The newest stamp of {self.what} is {side}; {self.max_age_s:g} s are allowed. Check that "
                "all machines and nodes use one clock."
            )
        late_ns = 0 if self.newest_ns is None else self.newest_ns - stamp_ns
        if 0 < late_ns < JITTER_NS:
            return f"A message of {self.what} came {late_ns / NS_PER_S:.3g} s after a newer one."
        self.newest_ns = stamp_ns
        return None


@dataclass
class ClockWatch:
    """Compares the node's clock with a steady one: a set clock moves all stamps against the arm's motion.

    Args:
        tolerance_s: a smaller difference between two calls is no jump.
    """

    tolerance_s: float
    _last: tuple[int, float] | None = None
    _moved_s: float = 0.0  # steady time at which the clock was last seen to go on

    def jump_s(self, now_ns: int, steady_s: float) -> float | None:
        """By how much the clock jumped since the last call (s), or None."""
        last, self._last = self._last, (now_ns, steady_s)
        if last is None or now_ns != last[0]:
            self._moved_s = steady_s
        if last is None:
            return None
        jump_s = (now_ns - last[0]) / NS_PER_S - (steady_s - last[1])
        return jump_s if abs(jump_s) > self.tolerance_s else None

    @property
    def still_s(self) -> float | None:
        """For how long the clock had not gone on at the last call (s), if longer than the tolerance."""
        still_s = 0.0 if self._last is None else self._last[1] - self._moved_s
        return still_s if still_s > self.tolerance_s else None


@dataclass
class RestWatch:
    """Whether the measured arm is at rest: it stayed within a small ball for a while.

    Args:
        window_s: for so long, by the stamps of its poses.
        within_m, within_rad: its size.
    """

    window_s: float = 0.2
    within_m: float = 0.002
    within_rad: float = 0.02
    _seen: deque[tuple[int, Pose]] = field(default_factory=deque)

    def see(self, stamp_ns: int, pose: Pose) -> None:
        """Takes in a measured pose."""
        if self._seen and stamp_ns < self._seen[-1][0]:
            self._seen.clear()
        self._seen.append((stamp_ns, pose))
        begin_ns = stamp_ns - round(self.window_s * NS_PER_S)
        while len(self._seen) > 1 and self._seen[1][0] <= begin_ns:
            self._seen.popleft()

    @property
    def moved(self) -> tuple[float, float] | None:
        """Largest distance (m) and turn (rad) from the newest pose within the window; None: no pose yet."""
        if not self._seen:
            return None
        newest = self._seen[-1][1]
        return max(distance(pose, newest) for _, pose in self._seen)

    @property
    def at_rest(self) -> bool:
        moved = self.moved
        return moved is not None and moved[0] <= self.within_m and moved[1] <= self.within_rad


def distance(one: Pose, other: Pose) -> tuple[float, float]:
    """Between two poses: metres and radians."""
    turn = log_rotation(one.rotation @ other.rotation.T)
    return math.dist(one.position_m, other.position_m), float(np.linalg.norm(turn))
