"""Smooth changes of velocity with closed-form bounds: the arithmetic below the limiter.

A change from velocity v0 with acceleration a0 to velocity v1 without acceleration in the time T is a
cubic in time. In Bernstein form its control points are v0, v0 + T a0 / 3, v1, v1. A Bézier curve stays
in the convex hull of its control points, and its derivative and integral are Bézier curves again: so
"is every limit kept at every instant?" is a handful of norms instead of a search. And the rest of such
a curve, cut anywhere, is the same curve (de Casteljau): what was proved once stays proved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtvla.errors import InputError

Vector = NDArray[np.float64]

ROUNDING = 1e-9  # relative


@dataclass(frozen=True)
class RateLimits:
    """Largest length of the derivatives of some quantity with unit u (m or rad).

    Attributes:
        velocity: u/s.
        acceleration: u/s².
        jerk: u/s³.
    """

    velocity: float
    acceleration: float
    jerk: float

    def __post_init__(self) -> None:
        for name, figure in vars(self).items():
            if not (math.isfinite(figure) and figure > 0):
                raise InputError(f"The limit of {name} is {figure}; give a positive, finite figure.")


@dataclass(frozen=True)
class Box:
    """An axis-aligned box; `lower` and `upper` [n] in the unit of the position, `lower` < `upper`."""

    lower: Vector
    upper: Vector

    def __post_init__(self) -> None:
        lower, upper = np.asarray(self.lower, np.float64), np.asarray(self.upper, np.float64)
        if lower.shape != upper.shape or not (np.isfinite(lower) & np.isfinite(upper)).all():
            raise InputError(f"A box needs two finite corners of one size, not {lower} and {upper}.")
        if not (lower < upper).all():
            raise InputError(f"The lower corner {lower} of a box must lie below its upper corner {upper}.")
        object.__setattr__(self, "lower", lower)
        object.__setattr__(self, "upper", upper)

    def including(self, position: Vector) -> Box:
        """The box, stretched to hold `position` [n]: who stands outside may come back, and no further out."""
        return Box(np.minimum(self.lower, position), np.maximum(self.upper, position))

    def holds(self, points: Vector) -> bool:
        """True when all `points` [m, n] lie inside, up to rounding."""
        slack = 1e-12 * (1.0 + np.maximum(np.abs(self.lower), np.abs(self.upper)))
        return bool((points >= self.lower - slack).all() and (points <= self.upper + slack).all())


@dataclass(frozen=True)
class Segment:
    """A cubic change of velocity that ends without acceleration.

    Attributes:
        controls: [4, n] Bézier control points of the velocity, u/s.
        accelerations: [3, n] control points of the acceleration, u/s². They follow from the others, but the
            differences of nearly equal velocities over a microsecond would be mostly rounding.
        duration_s: above 0.
    """

    controls: Vector
    accelerations: Vector
    duration_s: float

    def positions(self, start: Vector) -> Vector:
        """[5, n] control points of the position, which starts at `start` [n]."""
        steps = self.controls * (self.duration_s / 4.0)
        return np.vstack([start, start + np.cumsum(steps, axis=0)])

    def peak_acceleration(self) -> float:
        """An upper bound of the acceleration, u/s², exact where both of its control points point one way.

        (1 - s)² x + 2 s (1 - s) y, with the lengths x and y of the first two, is largest at
        s = (y - x) / (2 y - x), or at the beginning.
        """
        first, middle = (float(np.linalg.norm(point)) for point in self.accelerations[:2])
        return first if middle <= first else middle * middle / (2.0 * middle - first)

    def keeps(self, limits: RateLimits) -> bool:
        """True when velocity, acceleration and jerk stay within the limits at every instant."""
        jerks = np.diff(self.accelerations, axis=0) * (2.0 / self.duration_s)
        checks = (
            (_longest(self.controls), limits.velocity),
            (self.peak_acceleration(), limits.acceleration),
            (_longest(jerks), limits.jerk),
        )
        return all(figure <= limit * (1.0 + ROUNDING) for figure, limit in checks)

    def split(self, time_s: float) -> tuple[Segment, Segment]:
        """The parts before and after `time_s`, which lies strictly inside the duration."""
        share = time_s / self.duration_s
        (left, right), (left_a, right_a) = _cut(self.controls, share), _cut(self.accelerations, share)
        return Segment(left, left_a, time_s), Segment(right, right_a, self.duration_s - time_s)


def _longest(points: Vector) -> float:
    return math.sqrt(float((points * points).sum(axis=1).max()))


Plan = tuple[Segment, ...]  # one after the other; behind the last one, its last velocity goes on


def duration_s(plan: Plan) -> float:
    """How long a plan takes to its last velocity."""
    return sum(segment.duration_s for segment in plan)


def _cut(points: Vector, share: float) -> tuple[Vector, Vector]:
    """Control points of both parts of a Bézier curve (de Casteljau's algorithm)."""
    left, right = [points[0]], [points[-1]]
    while len(points) > 1:
        points = points[:-1] * (1.0 - share) + points[1:] * share
        left.append(points[0])
        right.append(points[-1])
    return np.array(left), np.array(right[::-1])


def change(
    velocity: Vector,
    acceleration: Vector,
    target: Vector,
    duration_s: float,
    difference: Vector | None = None,
) -> Segment:
    """From (`velocity`, `acceleration`) to (`target`, 0), all [n], in `duration_s`.

    `difference` is `target - velocity` where that is known better than by subtracting.
    """
    difference = target - velocity if difference is None else difference
    second = velocity + acceleration * (duration_s / 3.0)
    middle = difference * (3.0 / duration_s) - acceleration
    return Segment(
        np.array([velocity, second, target, target]),
        np.array([acceleration, middle, np.zeros_like(velocity)]),
        duration_s,
    )


def change_duration_s(difference: float, limits: RateLimits) -> float:
    """Shortest time of a change of velocity by `difference` (u/s) that starts without acceleration.

    Its acceleration peaks at 1.5 difference / T in the middle, its jerk at 6 difference / T² at the ends.
    """
    return max(1.5 * difference / limits.acceleration, math.sqrt(6.0 * difference / limits.jerk))


def direct_plan(velocity: Vector, acceleration: Vector, target: Vector, limits: RateLimits) -> Plan | None:
    """One smooth change to `target` in about the shortest time, or None when a limit stands in the way."""
    difference = target - velocity
    length, start = float(np.linalg.norm(difference)), float(np.linalg.norm(acceleration))
    if length <= 1e-12 * limits.velocity and start <= 1e-12 * limits.acceleration:
        return ()
    along = float(difference @ acceleration)

    def jerk(u: float) -> float:
        """The larger of the jerks at both ends, for the duration 1/u: twice the steps between 0, c and a0."""
        squares = 9.0 * (length * u) ** 2
        begin = squares - 12.0 * along * u + 4.0 * start * start
        end = squares - 6.0 * along * u + start * start
        return 2.0 * u * math.sqrt(max(begin, end, 0.0))

    # c = 3 u difference - a0 is the middle control point of the acceleration. `Segment.peak_acceleration`
    # gives the largest |c|, and with it the largest u.
    spare = max(limits.acceleration - start, 0.0)
    largest_c = limits.acceleration + math.sqrt(limits.acceleration * spare)
    root = math.sqrt(max(along * along + length * length * (largest_c**2 - start**2), 0.0))
    highest = min((along + root) / (3.0 * max(length * length, 1e-30)), 1e6)
    if highest <= 0.0:  # the acceleration stands at its limit, and rounding says above it
        return None
    u = highest
    while jerk(u) > limits.jerk:
        u *= 0.5
    low, high = u, min(2.0 * u, highest)
    for _ in range(8):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if jerk(middle) <= limits.jerk else (low, middle)
    segment = change(velocity, acceleration, target, 1.0 / low)
    return (segment,) if segment.keeps(limits) else None


def settled_plan(velocity: Vector, acceleration: Vector, target: Vector, limits: RateLimits) -> Plan:
    """First the acceleration goes to 0 at full jerk, then the velocity to `target`: slower, but almost
    always within the limits (always, from a state that `direct_plan` or this one can leave behind)."""
    plan: Plan = ()
    start = float(np.linalg.norm(acceleration))
    if start > 1e-12 * limits.acceleration:
        time_s = start / limits.jerk
        difference = acceleration * (0.5 * time_s)
        middle = velocity + difference
        plan, velocity = (change(velocity, acceleration, middle, time_s, difference),), middle
    length = float(np.linalg.norm(target - velocity))
    if length > 0.0:
        plan += (change(velocity, np.zeros_like(velocity), target, change_duration_s(length, limits)),)
    return plan


def advance(
    plan: Plan, position: Vector, velocity: Vector, time_s: float
) -> tuple[Vector, Vector, Vector, Plan]:
    """Position, velocity, acceleration [n] and the rest of the plan after `time_s`.

    Args:
        plan: what is followed; behind its end, or without one, the last velocity goes on.
        position, velocity: at its beginning.
        time_s: how long.
    """
    for number, segment in enumerate(plan):
        if time_s < segment.duration_s * (1.0 - 1e-9):
            done, rest = segment.split(time_s)
            return (
                done.positions(position)[4],
                rest.controls[0],
                rest.accelerations[0],
                (rest, *plan[number + 1 :]),
            )
        position, velocity = segment.positions(position)[4], segment.controls[3]
        time_s = max(time_s - segment.duration_s, 0.0)
    return position + velocity * time_s, velocity, np.zeros_like(velocity), ()


def track(plan: Plan, position: Vector, velocity: Vector, time_s: float = math.inf) -> Vector:
    """Control points [m, n] whose hull holds every position on the way, for `time_s` or to the plan's end."""
    points = [position[None]]
    for segment in plan:
        if time_s <= 0:
            break
        if time_s < segment.duration_s * (1.0 - 1e-9):
            segment = segment.split(time_s)[0]
        points.append(segment.positions(points[-1][-1]))
        velocity = segment.controls[3]
        time_s -= segment.duration_s
    if 0 < time_s < math.inf:
        points.append(points[-1][-1:] + velocity * time_s)
    return np.vstack(points)


def keeps(plan: Plan, limits: RateLimits) -> bool:
    """True when the whole plan stays within the limits."""
    return all(segment.keeps(limits) for segment in plan)
