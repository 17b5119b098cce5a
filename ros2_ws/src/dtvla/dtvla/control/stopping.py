"""How an arm comes to rest when its plan ends while it moves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtvla.control.action_chunk import NS_PER_S
from dtvla.control.limits.velocity_profile import RateLimits, change_duration_s

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class StoppingLimits:
    """Limits of the slowing down.

    Attributes:
        linear: m/s² and m/s³ (its velocity does not matter).
        angular: rad/s² and rad/s³.
    """

    linear: RateLimits
    angular: RateLimits

    def time_ns(self, velocity: Vector, period_ns: int) -> int:
        """Time to come to rest from `velocity` [6], m and rad per period; one time, so the path stays."""
        per_s = velocity * (NS_PER_S / period_ns)
        linear, angular = float(np.linalg.norm(per_s[:3])), float(np.linalg.norm(per_s[3:]))
        time_s = max(change_duration_s(linear, self.linear), change_duration_s(angular, self.angular))
        return max(round(time_s * NS_PER_S), 1)


@dataclass
class StoppingMotion:
    """A motion that fades out with the factor 1 - 3 s² + 2 s³ (s: share of the time that is over).

    Args:
        velocity: [6] per period at its beginning.
        time_ns: until rest.
    """

    velocity: Vector
    time_ns: int
    _done_ns: int = 0

    @property
    def over(self) -> bool:
        return self._done_ns >= self.time_ns

    def advance(self, tick_ns: int) -> tuple[int, Vector]:
        """Motion time covered in the next `tick_ns`, and the velocity [6] at its end."""
        before = self._covered()
        self._done_ns += tick_ns
        share = min(self._done_ns / self.time_ns, 1.0)
        return round(self._covered() - before), self.velocity * (1.0 - 3.0 * share**2 + 2.0 * share**3)

    def _covered(self) -> float:
        share = min(self._done_ns / self.time_ns, 1.0)
        return self.time_ns * (share - share**3 + 0.5 * share**4)
