"""When a policy that looks all the time decides: once per executed chunk, as soon as it is free. No clock."""

from __future__ import annotations

from dataclasses import dataclass

from dtvla.control.action_chunk import NS_PER_S

JUMP_NS = NS_PER_S // 2  # stamps that jump by more than this mean another episode


@dataclass
class ReplanningRule:
    """Says when the next decision is due: once per `execute_steps` control periods, or after a jump."""

    interval_ns: int
    period_ns: int
    last_ns: int | None = None

    def due(self, stamp_ns: int) -> bool:
        """Whether a decision on a look at `stamp_ns` is due."""
        if self.last_ns is None or stamp_ns < self.last_ns:
            return True
        waited = stamp_ns - self.last_ns
        return 2 * waited >= 2 * self.interval_ns - self.period_ns or waited - self.interval_ns > JUMP_NS
