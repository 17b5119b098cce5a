"""One step of differential inverse kinematics within joint limits. Plain linear algebra, no robot model.

First the bounds: the joint velocities that come closest to the twist, exactly, in a box (an active-set
solution: with seven unknowns a quadratic programming package would be mostly its own overhead). If the box
forbids the twist even so, the twist is made shorter, not bent: the arm stays on its path and is only slower.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtvla.control.limits.events import LimitEvent

Vector = NDArray[np.float64]

# Below this smallest singular value (m or rad per rad) the arm is near a singularity and damping sets in, up
# to MAX_DAMPING at the singularity itself (Nakamura & Hanafusa, 1986).
SINGULAR_BELOW = 0.05
MAX_DAMPING = 0.05
LEAST_DAMPING = 1e-5  # settles the one free direction of seven joints: shortest joint motion
PATH_TOLERANCE = 1e-3  # deviation from the twist's direction, relative, that counts as none


@dataclass(frozen=True)
class JointStep:
    """Joint velocities for one tick.

    Attributes:
        velocities_rad_s: [n], within the bounds.
        twist: [6] m/s and rad/s that they make.
        share: of the twist asked for that could be followed, 0 to 1.
        damping: 0 away from singularities.
        events: joints at their bound.
    """

    velocities_rad_s: Vector
    twist: Vector
    share: float
    damping: float
    events: tuple[LimitEvent, ...]


def differential_step(jacobian: Vector, twist: Vector, bounds: tuple[Vector, Vector]) -> JointStep:
    """Joint velocities that make `twist`, or as much of it as the bounds allow.

    Args:
        jacobian: [6, n] of the tip in the base frame.
        twist: [6] m/s and rad/s wanted.
        bounds: (most negative, largest) velocities [n] rad/s; standing still must be within them.

    Raises:
        ValueError: a value is not finite, or the bounds forbid to stand still.
    """
    low, high = bounds
    if not all(np.isfinite(part).all() for part in (jacobian, twist, low, high)):
        raise ValueError("The Jacobian, the twist and the bounds must be finite numbers.")
    if (low > 0).any() or (high < 0).any():
        raise ValueError("The bounds of the joint velocities must allow 0, or the arm could never rest.")
    smallest = float(np.linalg.svd(jacobian, compute_uv=False)[-1])
    closeness = max(0.0, 1.0 - (smallest / SINGULAR_BELOW) ** 2)
    damping = MAX_DAMPING * float(np.sqrt(closeness))
    hessian = jacobian.T @ jacobian + (damping**2 + LEAST_DAMPING**2) * np.eye(jacobian.shape[1])
    free = np.linalg.solve(hessian, jacobian.T @ twist)
    reachable = jacobian @ free  # what damping leaves of the twist; the path is judged by this

    def attempt(share: float) -> tuple[Vector, bool]:
        velocities = bounded_minimum(hessian, jacobian.T @ (share * twist), low, high)
        miss = np.linalg.norm(jacobian @ velocities - share * reachable)
        return velocities, bool(miss <= PATH_TOLERANCE * share * np.linalg.norm(reachable) + 1e-12)

    share = 1.0
    velocities, followed = attempt(share)
    if not followed:
        worst = 1.0  # by how much the plain solution would have to be scaled: a share that is surely possible
        for value, lower, upper in zip(free, low, high, strict=True):
            if value > upper or value < lower:
                worst = min(worst, (upper if value > 0 else lower) / value)
        share, impossible, velocities = worst, 1.0, worst * free
        for _ in range(12):
            middle = 0.5 * (share + impossible)
            candidate, followed = attempt(middle)
            if followed:
                share, velocities = middle, candidate
            else:
                impossible = middle
    velocities = np.clip(velocities, low, high)
    return JointStep(velocities, jacobian @ velocities, share, damping, _events(free, bounds))


def bounded_minimum(hessian: Vector, gradient: Vector, low: Vector, high: Vector) -> Vector:
    """The x [n] in the box `low` to `high` that minimises x' H x / 2 - g' x, for a positive definite H.

    A primal active-set method: it walks from vertex to face, never leaves the box, and stops at the minimum,
    or after a number of steps that no case has been seen to need, with the best point so far.
    """
    x = np.clip(np.zeros_like(gradient), low, high)
    fixed = np.zeros(len(x), bool)
    for _ in range(10 * len(x)):
        free = ~fixed
        goal = x.copy()
        if free.any():
            right = gradient[free] - hessian[np.ix_(free, fixed)] @ x[fixed]
            goal[free] = np.linalg.solve(hessian[np.ix_(free, free)], right)
        step = goal - x
        room = np.where(step > 0, high - x, low - x)
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = np.where(free & (np.abs(step) > 1e-15), room / step, np.inf)
        first = int(np.argmin(shares))
        if shares[first] < 1.0:
            x = x + max(float(shares[first]), 0.0) * step
            x[first] = high[first] if step[first] > 0 else low[first]
            fixed[first] = True
            continue
        x = goal
        pull = gradient - hessian @ x  # where the function falls
        inwards = np.where(x >= high, -pull, pull) * fixed
        release = int(np.argmax(inwards))
        if inwards[release] <= 1e-12:
            break
        fixed[release] = False
    return np.asarray(np.clip(x, low, high))


def _events(free: Vector, bounds: tuple[Vector, Vector]) -> tuple[LimitEvent, ...]:
    """One event for each joint that would have to go beyond its bound."""
    low, high = bounds
    return tuple(
        LimitEvent(f"velocity of joint {joint}", abs(float(free[joint - 1])), abs(float(bound)), "rad/s")
        for joint, bound in enumerate(np.where(free > 0, high, low), 1)
        if abs(free[joint - 1]) > abs(bound) * (1 + 1e-9) + 1e-12
    )
