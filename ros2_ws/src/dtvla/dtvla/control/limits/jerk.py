"""Follows velocity requests without ever exceeding velocity, acceleration, jerk or a box.

The invariant: at every moment a way to come to rest is known that keeps all limits. A new request is
followed for one tick only if such a way is also known from where that tick ends; otherwise the known
way is followed. So no request, whatever it is, can lead to a place from which only a violation leads on.

Not by Ruckig, which plans time-optimal ways to a goal within limits of each axis: ours bound the length of
the vectors, so that no direction is slower than another; and it follows a signal, a new request at every
tick, which Ruckig does in its closed edition only.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from dtvla.control.limits.velocity_profile import (
    Box,
    Plan,
    RateLimits,
    advance,
    direct_plan,
    duration_s,
    keeps,
    settled_plan,
    track,
)

Vector = NDArray[np.float64]

# What a motion towards a wall or a goal plans to use of acceleration and jerk for its braking. The rest is
# for following that plan: a change of velocity needs rounded corners, and is made anew at every tick.
BRAKING_SHARE = 0.25
# And the last stretch is covered at most by this share per tick.
APPROACH_PER_TICK = 0.25
# How many times as long as the way that first takes back the acceleration a single smooth change may take.
LONGEST_DETOUR = 2.0


def approach_speed(distance: float, limits: RateLimits, dt_s: float) -> float:
    """Largest speed (u/s) towards something `distance` (u) ahead.

    The square root of 2 a d where the acceleration limits the braking, the cube root of 2/3 j d² where the
    jerk does (a stop from v takes max(1.5 v / a, sqrt(6 v / j)) and half of that time as its way), and less
    in the last ticks.
    """
    if distance <= 0:
        return 0.0
    by_jerk: float = (2.0 / 3.0 * BRAKING_SHARE * limits.jerk * distance * distance) ** (1.0 / 3.0)
    return min(
        math.sqrt(2.0 * BRAKING_SHARE * limits.acceleration * distance),
        by_jerk,
        APPROACH_PER_TICK * distance / dt_s,
        limits.velocity,
    )


class RateLimiter:
    """State: position, velocity, acceleration [n] of what is commanded, and the known way to rest.

    Args:
        limits: of the length of the vectors.
        position: [n] at rest here.
        box: the position stays inside; from outside it may only come back. None: anywhere.
    """

    def __init__(self, limits: RateLimits, position: Vector, box: Box | None = None) -> None:
        self.limits = limits
        self.box = box
        self.reset(position)

    def reset(self, position: Vector) -> None:
        """At rest at `position` [n]: only true of an arm that really rests there."""
        self.position = np.array(position, np.float64)
        self.velocity = np.zeros_like(self.position)
        self.acceleration = np.zeros_like(self.position)
        self._stop: Plan = ()
        self._going: tuple[Vector, Plan] | None = None

    @property
    def at_rest(self) -> bool:
        return not self.velocity.any() and not self.acceleration.any()

    def step(self, wanted: Vector, dt_s: float) -> Vector:
        """Moves on by `dt_s` with `wanted` [n] as the velocity to reach; returns the displacement [n]."""
        before = self.position
        target = self._admissible(wanted, dt_s)
        for plan in self._plans(target):
            if self._follow(target, plan, dt_s):
                return self.position - before
        self._going = None
        state = advance(self._stop, self.position, self.velocity, dt_s)
        self.position, self.velocity, self.acceleration, self._stop = state
        return self.position - before

    def shaped(self, wanted: Vector, dt_s: float) -> Vector:
        """`wanted` with each component towards a wall slow enough to stop before it."""
        if self.box is None:
            return wanted
        shaped = np.array(wanted)
        for axis, speed in enumerate(wanted):
            wall = self.box.upper[axis] if speed > 0 else self.box.lower[axis]
            distance = (wall - self.position[axis]) * np.sign(speed)
            most = approach_speed(distance, self.limits, dt_s)
            shaped[axis] = np.sign(speed) * min(abs(speed), most)
        return shaped

    def _admissible(self, wanted: Vector, dt_s: float) -> Vector:
        shaped = self.shaped(wanted, dt_s)
        length = float(np.linalg.norm(shaped))
        return shaped if length <= self.limits.velocity else shaped * (self.limits.velocity / length)

    def _plans(self, target: Vector) -> list[Plan]:
        """Ways to the wanted velocity, the best first; each keeps velocity, acceleration and jerk."""
        plans: list[Plan] = []
        if self._going is not None and np.array_equal(self._going[0], target):
            plans.append(self._going[1])  # so that a lasting request is reached in a finite time
        direct = direct_plan(self.velocity, self.acceleration, target, self.limits)
        settled = settled_plan(self.velocity, self.acceleration, target, self.limits)
        ways = [settled] if keeps(settled, self.limits) else []
        if direct is not None:  # the smoother one, unless an acceleration the other way makes it a detour
            detour = bool(ways) and duration_s(direct) > LONGEST_DETOUR * duration_s(settled)
            ways.insert(len(ways) if detour else 0, direct)
        return plans + ways

    def _follow(self, target: Vector, plan: Plan, dt_s: float) -> bool:
        """Follows `plan` for one tick if a way to rest is known behind it."""
        box = self.box.including(self.position) if self.box is not None else None
        if box is not None and not box.holds(track(plan, self.position, self.velocity, dt_s)):
            return False
        position, velocity, acceleration, rest = advance(plan, self.position, self.velocity, dt_s)
        still = np.zeros_like(velocity)
        ways = [settled_plan(velocity, acceleration, still, self.limits)]
        direct = direct_plan(velocity, acceleration, still, self.limits)
        for way in ways if direct is None else [direct, *ways]:
            if keeps(way, self.limits) and (box is None or box.holds(track(way, position, velocity))):
                self.position, self.velocity, self.acceleration = position, velocity, acceleration
                self._stop, self._going = way, (target, rest)
                return True
        return False
