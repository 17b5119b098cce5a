"""Several opinions about one moment, and the seam where one plan takes over from another.

Rotations are blended as vectors. A row's axis-angle vector divided by the period is an angular velocity in
the fixed base frame, and angular velocities are vectors: their weighted mean is a mean angular velocity, in
any order. As a mean of the finite rotations it differs from the geodesic mean only in third order (the
commutators cancel in second); a test bounds it at LIBERO's full scale.
The gripper is never blended: half open is an opinion nobody had.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from dtvla.errors import InputError

Vector = NDArray[np.float64]


class Transition(Enum):
    """How the arm goes over from one plan to the next."""

    CUT = "cut"
    SPLINE = "spline"


@dataclass(frozen=True)
class Blending:
    """How chunks become one motion.

    Attributes:
        ensemble_rate: weight of a chunk is exp(-rate * n), n counted from the newest (0). Above 0 the newest
            look counts most; 0 is the plain mean; below 0 the oldest counts most (as in the ACT paper,
            arXiv:2304.13705, whose m = 0.01 is a rate of -0.01).
        seam: CUT executes rows as they are; SPLINE makes position, velocity and acceleration continuous.
        seam_rows: how many rows a plan takes to take over (SPLINE).
    """

    ensemble_rate: float = 0.5
    seam: Transition = Transition.CUT
    seam_rows: float = 3.0

    def __post_init__(self) -> None:
        if not np.isfinite(self.ensemble_rate):
            raise InputError(f"'ensemble_rate' is {self.ensemble_rate}; give a finite number.")
        if not (np.isfinite(self.seam_rows) and self.seam_rows > 0):
            raise InputError(f"'seam_rows' is {self.seam_rows}; give a finite number above 0.")


def ensemble_weights(count: int, rate: float) -> Vector:
    """Weights [count] of the newest to the oldest chunk; they add up to 1."""
    exponents = -rate * np.arange(count, dtype=np.float64)
    weights = np.exp(exponents - exponents.max())
    return np.asarray(weights / weights.sum())


class Path:
    """The way that rows of deltas describe: through their running sums, once per row.

    Args:
        deltas: [h, 6] translation (m) and rotation (rad) per period.
        smooth: a cubic spline with continuous velocity and acceleration, which starts and ends with the
            first and last row's velocity; False: straight from sum to sum.
    """

    def __init__(self, deltas: Vector, *, smooth: bool) -> None:
        self._deltas = np.asarray(deltas, np.float64)
        self._knots = np.vstack([np.zeros((1, 6)), np.cumsum(self._deltas, axis=0)])
        self._slopes = _spline_slopes(self._deltas) if smooth else None

    @property
    def rows(self) -> int:
        return len(self._deltas)

    def state(self, row: float) -> tuple[Vector, Vector, Vector]:
        """Sum of the deltas [6] up to `row` (a fraction is possible), and its two derivatives by row."""
        index = int(min(max(row, 0.0), self.rows - 1))
        s = min(max(row - index, 0.0), 1.0)
        start, delta = self._knots[index], self._deltas[index]
        if self._slopes is None:
            return start + s * delta, delta, np.zeros(6)
        begin, end = self._slopes[index], self._slopes[index + 1]
        second, third = 3.0 * delta - 2.0 * begin - end, begin + end - 2.0 * delta
        return (
            start + s * (begin + s * (second + s * third)),
            begin + s * (2.0 * second + 3.0 * s * third),
            2.0 * second + 6.0 * s * third,
        )


def _spline_slopes(deltas: Vector) -> Vector:
    """Slopes [h + 1, 6] at the knots of the cubic spline with fixed end slopes (Thomas' algorithm)."""
    count = len(deltas)
    slopes = np.empty((count + 1, deltas.shape[1]))
    slopes[0], slopes[-1] = deltas[0], deltas[-1]
    factors = np.zeros(count + 1)
    for k in range(1, count):  # slopes[k-1] + 4 slopes[k] + slopes[k+1] = 3 (deltas[k-1] + deltas[k])
        factors[k] = 1.0 / (4.0 - factors[k - 1])
        slopes[k] = (3.0 * (deltas[k - 1] + deltas[k]) - slopes[k - 1]) * factors[k]
    for k in range(count - 1, 0, -1):
        slopes[k] -= factors[k] * slopes[k + 1]
    return slopes


@dataclass(frozen=True)
class Handover:
    """What the motion still carries of the plan before, fading out with a quintic.

    It begins with position difference 0 (both plans are deltas from here), the difference of velocity and of
    acceleration, and ends after `rows` with all three 0: the new plan is then followed exactly, and not a
    millimetre of it was lost. The price of catching up: where the velocities differ by dv, the velocity goes
    0.51 dv beyond the new plan's on its way, and the acceleration peaks at 3.94 dv / T.

    Attributes:
        velocity, acceleration: [6] old minus new, per row and per row squared.
        rows: duration.
    """

    velocity: Vector
    acceleration: Vector
    rows: float

    def state(self, row: float) -> tuple[Vector, Vector, Vector]:
        """Offset [6] from the new plan and its two derivatives, `row` rows after the seam."""
        s, rows = min(max(row / self.rows, 0.0), 1.0), self.rows
        v, a = self.velocity, self.acceleration
        return (
            rows * v * (s - 6 * s**3 + 8 * s**4 - 3 * s**5)
            + rows**2 * a * (0.5 * s**2 - 1.5 * s**3 + 1.5 * s**4 - 0.5 * s**5),
            v * (1 - 18 * s**2 + 32 * s**3 - 15 * s**4) + rows * a * (s - 4.5 * s**2 + 6 * s**3 - 2.5 * s**4),
            v / rows * (-36 * s + 96 * s**2 - 60 * s**3) + a * (1 - 9 * s + 18 * s**2 - 10 * s**3),
        )
