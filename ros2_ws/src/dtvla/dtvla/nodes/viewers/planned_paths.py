"""Where chunks want the gripper to go, and when they open or close it. No ROS.

Positions are metres in the base frame.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtvla.control.action_chunk import Chunk

Vector = NDArray[np.float64]
TRACK_STEP_NS = 10_000_000
TRACK_LENGTH = 600


class MeasuredTrack:
    """Where the gripper has been during the last seconds."""

    def __init__(self) -> None:
        self._stamps: deque[int] = deque(maxlen=TRACK_LENGTH)
        self._places: deque[Vector] = deque(maxlen=TRACK_LENGTH)

    def add(self, stamp_ns: int, position: Vector) -> None:
        """Notes a measured position [3], unless it follows the one before too closely to matter."""
        if self._stamps and stamp_ns < self._stamps[-1]:  # the clock was set back: those are of another time
            self._stamps.clear()
            self._places.clear()
        if not self._stamps or stamp_ns - self._stamps[-1] >= TRACK_STEP_NS:
            self._stamps.append(stamp_ns)
            self._places.append(position)

    def at(self, stamp_ns: int) -> Vector | None:
        """The position [3] measured closest to `stamp_ns`; None before the first."""
        if not self._stamps:
            return None
        index = bisect_left(self._stamps, stamp_ns)
        around = range(max(index - 1, 0), min(index + 1, len(self._stamps)))
        return self._places[min(around, key=lambda i: abs(self._stamps[i] - stamp_ns))]


@dataclass(frozen=True)
class GripperEvent:
    """With `row` of its chunk the plan begins to open the gripper, or to close it."""

    row: int
    opens: bool


@dataclass(frozen=True)
class PlannedPath:
    """What a chunk wants.

    Attributes:
        key: tells it from other chunks.
        points: [rows + 1, 3], where the gripper is to be before the first row and after each.
        executed: leading rows that are meant to be executed.
        events: of the gripper, in order.
        open_after: whether the gripper is open after the executed rows.
    """

    key: tuple[int, int]
    points: Vector
    executed: int
    events: tuple[GripperEvent, ...]
    open_after: bool


def planned_path(start: Vector, translations: Vector) -> Vector:
    """Where the gripper will go: [rows + 1, 3], from `start` [3] by the chunk's translations [rows, 3]."""
    return np.vstack([start, start + np.cumsum(translations, axis=0)])


def gripper_events(is_open: NDArray[np.bool_], open_before: bool) -> tuple[GripperEvent, ...]:
    """The changes in `is_open` [rows] of a gripper that is `open_before` row 0."""
    before = np.append(open_before, is_open[:-1])
    return tuple(GripperEvent(int(row), bool(is_open[row])) for row in np.flatnonzero(is_open != before))


class PlannedPaths:
    """The newest plan and a few past ones, newest first.

    Args:
        past: how many past ones stay.
        half_open_m: above this opening a gripper counts as open.
        scale: share of a planned translation that the arm makes.
    """

    def __init__(self, past: int, half_open_m: float, scale: float = 1.0) -> None:
        self._plans: deque[PlannedPath] = deque(maxlen=past + 1)
        self._half_open_m, self._scale = half_open_m, scale

    def add(self, chunk: Chunk, start: Vector) -> None:
        """Adds a chunk's plan, from `start` [3] on; the same chunk once more changes nothing."""
        newest = self._plans[0] if self._plans else None
        key = chunk.decision_id, chunk.stamp_ns
        if newest is not None and newest.key == key:
            return
        is_open = chunk.gripper_openings > self._half_open_m
        # What the plan before ended with, not what is measured: fingers around a thing are half open.
        events = gripper_events(is_open, newest.open_after if newest is not None else bool(is_open[0]))
        points = planned_path(start, self._scale * chunk.translations)
        after = bool(is_open[chunk.execute_steps - 1])
        self._plans.appendleft(PlannedPath(key, points, chunk.execute_steps, events, after))

    def clear(self) -> None:
        self._plans.clear()

    def __len__(self) -> int:
        return len(self._plans)

    def __iter__(self) -> Iterator[PlannedPath]:
        return iter(self._plans)


def outside(points: Vector, box_m: Vector) -> NDArray[np.bool_]:
    """For each of `points` [n, 3], whether it lies outside the box between the corners `box_m` [2, 3]."""
    return np.asarray(((points < box_m[0]) | (points > box_m[1])).any(axis=1))


def box_edges(box_m: Vector) -> Vector:
    """The twelve edges of the box between the corners `box_m` [2, 3], as pairs of points [24, 3]."""
    bits = np.arange(8)[:, None] >> np.arange(3) & 1
    corners = box_m[bits, np.arange(3)]
    pairs = [(a, b) for a in range(8) for b in range(a + 1, 8) if (a ^ b).bit_count() == 1]
    return np.asarray(corners[np.array(pairs).ravel()])
