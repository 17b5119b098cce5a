"""Action chunks in time: which row of which chunk answers a tick.

A chunk is a promise about the near future: row k is meant for the time `stamp + k * period`. It
arrives late by the time the policy took, so the first rows may already be in the past.
Times are integer nanoseconds: a sum of periods then has no rounding to argue about.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NS_PER_S = 1_000_000_000


@dataclass(frozen=True)
class Chunk:
    """A policy's proposal, checked (see `limits.check_chunk`) and in metric units.

    Attributes:
        decision_id: counts the decisions of one policy process.
        stamp_ns: capture time of the newest image the decision saw.
        period_ns: time between two rows.
        execute_steps: rows to execute before the next decision is due.
        translations: float64 [horizon, 3], metres per period, base frame.
        rotations: float64 [horizon, 3], axis-angle in radians per period, base frame.
        gripper_openings: float64 [horizon], metres between the fingers.
        raw_actions: float64 [horizon, 7] in the policy's own units.
        hold: the policy plans nothing: the arm is to come to rest.
    """

    decision_id: int
    stamp_ns: int
    period_ns: int
    execute_steps: int
    translations: NDArray[np.float64]
    rotations: NDArray[np.float64]
    gripper_openings: NDArray[np.float64]
    raw_actions: NDArray[np.float64]
    hold: bool = False

    @property
    def horizon(self) -> int:
        return len(self.translations)

    @property
    def expires_ns(self) -> int:
        """The time from which no row of this chunk is to be executed any more."""
        return self.stamp_ns + self.execute_steps * self.period_ns


def row_at(chunk: Chunk, tick_ns: int) -> int | None:
    """The row of `chunk` for the tick at `tick_ns`, or None when the tick lies before or behind it."""
    row = (2 * (tick_ns - chunk.stamp_ns) + chunk.period_ns) // (2 * chunk.period_ns)  # rounds to nearest
    return row if 0 <= row < chunk.execute_steps else None
