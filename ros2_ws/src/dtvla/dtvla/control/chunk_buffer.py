"""The chunks that have something to say about now, in motion time: one plan of all of them.

Pure bookkeeping for `executor`: which row of which chunk, and where the path leads. No limits in here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtvla.control.action_chunk import Chunk
from dtvla.control.temporal_ensembling import Blending, Handover, Path, Transition, ensemble_weights

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class AnchoredChunk:
    """A chunk with its place in motion time.

    Attributes:
        chunk: as offered.
        start_ns: motion time at its stamp: row k belongs to `start_ns + k * period`.
        path: of its rows.
    """

    chunk: Chunk
    start_ns: int
    path: Path

    def row(self, now_ns: int) -> float:
        """The row, with its fraction, at the motion time `now_ns`."""
        return (now_ns - self.start_ns) / self.chunk.period_ns

    def whole_row(self, now_ns: int, tick_ns: int) -> int:
        """The row of a tick of length `tick_ns`: the one in which the tick's middle lies."""
        period_ns = self.chunk.period_ns
        return (2 * (now_ns - self.start_ns) + tick_ns) // (2 * period_ns)

    def delta(self, row: int) -> Vector:
        """Translation and rotation [6] of a row."""
        return np.concatenate([self.chunk.translations[row], self.chunk.rotations[row]])


@dataclass(frozen=True)
class WantedMotion:
    """What the chunks want during one tick.

    Attributes:
        plan: the newest chunk that takes part, which also decides on the gripper.
        row: of that chunk.
        delta: [6] translation (m) and rotation (rad) per period.
        velocity: [6] per period at the end of the tick.
        raw_action: [7] when this is exactly one row of the policy, else None.
    """

    plan: AnchoredChunk
    row: int
    delta: Vector
    velocity: Vector
    raw_action: Vector | None


class ChunkBuffer:
    """The chunks in force, newest last.

    Args:
        blend: how they become one motion.
        overlap: False keeps the newest only.
    """

    def __init__(self, blend: Blending, *, overlap: bool) -> None:
        self.blend = blend
        self.overlap = overlap
        self.clear()

    @property
    def newest(self) -> AnchoredChunk | None:
        return self._plans[-1] if self._plans else None

    def clear(self) -> None:
        """Forgets all chunks."""
        self._plans: list[AnchoredChunk] = []
        self._active: list[AnchoredChunk] = []
        self._handover: tuple[int, Handover] | None = None

    def pause(self) -> None:
        """The arm does not follow: when it does again, it starts from the velocity that it then has."""
        self._active = []

    def knows(self, chunk: Chunk) -> bool:
        """True for the newest chunk sent again.

        Its anchor stays then: a second look-up of its stamp could shift it and replay a row.
        """
        if self.newest is None:
            return False
        newest = self.newest.chunk
        return (newest.decision_id, newest.stamp_ns) == (chunk.decision_id, chunk.stamp_ns)

    def add(self, chunk: Chunk, start_ns: int, now_ns: int) -> None:
        """Takes in a newer chunk, whose row 0 belongs to the motion time `start_ns`, at `now_ns`."""
        newest = self.newest
        if not self.overlap or (newest is not None and newest.chunk.period_ns != chunk.period_ns):
            self._plans.clear()
        deltas = np.hstack([chunk.translations, chunk.rotations])
        path = Path(deltas, smooth=self.blend.seam is Transition.SPLINE)
        self._plans = [plan for plan in self._plans if plan.row(now_ns) < plan.path.rows]
        self._plans.append(AnchoredChunk(chunk, start_ns, path))

    def wanted(self, now_ns: int, tick_ns: int, velocity: Vector, *, due: bool) -> WantedMotion | None:
        """What is wanted during `tick_ns` from the motion time `now_ns`, or None when nothing is.

        Args:
            now_ns: motion time.
            tick_ns: length of the tick.
            velocity: [6] per period with which the arm moves if no plan was followed in the last tick.
            due: True counts the newest chunk as used up after its `execute_steps` rows.
        """
        active = self._active_chunks(now_ns, tick_ns, due=due)
        if not active:
            self._active = []
            return None
        plan = active[0]
        row = plan.whole_row(now_ns, tick_ns)
        if self.blend.seam is Transition.SPLINE:
            self._hand_over(active, now_ns, velocity)
            begin, end = self._state(now_ns), self._state(now_ns + tick_ns)
            delta = (end[0] - begin[0]) * (plan.chunk.period_ns / tick_ns)
            return WantedMotion(plan, row, delta, end[1], None)
        self._active = active
        deltas = np.array([each.delta(each.whole_row(now_ns, tick_ns)) for each in active])
        if len(active) == 1:
            raw = plan.chunk.raw_actions[row] if tick_ns == plan.chunk.period_ns else None
            return WantedMotion(plan, row, deltas[0], deltas[0], raw)
        mean = ensemble_weights(len(active), self.blend.ensemble_rate) @ deltas
        return WantedMotion(plan, row, mean, mean, None)

    def _active_chunks(self, now_ns: int, tick_ns: int, *, due: bool) -> list[AnchoredChunk]:
        """The chunks with a row for this tick, the newest first; none when the newest is used up."""
        newest = self.newest
        if newest is None:
            return []
        last = newest.chunk.execute_steps if due else newest.chunk.horizon
        if newest.whole_row(now_ns, tick_ns) >= last:
            return []
        rows = ((plan, plan.whole_row(now_ns, tick_ns)) for plan in reversed(self._plans))
        return [plan for plan, row in rows if 0 <= row < plan.chunk.horizon]

    def _hand_over(self, active: list[AnchoredChunk], now_ns: int, velocity: Vector) -> None:
        """Whenever other chunks speak than before, the old motion fades out instead of ending."""
        if active == self._active:
            return
        if self._active:
            _, velocity, acceleration = self._state(now_ns)
        else:
            acceleration = np.zeros(6)
        self._active, self._handover = active, None
        _, new_velocity, new_acceleration = self._state(now_ns)
        differences = (velocity - new_velocity, acceleration - new_acceleration)
        self._handover = (now_ns, Handover(*differences, rows=self.blend.seam_rows))

    def _state(self, now_ns: int) -> tuple[Vector, Vector, Vector]:
        """Position [6] of the path that is followed, and its two derivatives by row."""
        weights = ensemble_weights(len(self._active), self.blend.ensemble_rate)
        states = np.array([np.array(each.path.state(each.row(now_ns))) for each in self._active])
        blended = np.tensordot(weights, states, axes=1)
        if self._handover is not None:
            begin_ns, handover = self._handover
            period_ns = self._active[0].chunk.period_ns
            blended += np.array(handover.state((now_ns - begin_ns) / period_ns))
        return blended[0], blended[1], blended[2]
