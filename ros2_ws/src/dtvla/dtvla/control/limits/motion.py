"""The limiter between what a policy wants and what an arm may do, for one end effector.

No clock and no ROS: the caller says how much time has passed. Call it once per tick, whatever happens;
without a request it brings the arm to rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtvla.control.limits.events import LimitEvent, OnLimit, too_large
from dtvla.control.limits.jerk import RateLimiter, approach_speed
from dtvla.control.limits.velocity_profile import Box, RateLimits
from dtvla.control.robots import RobotLimits
from dtvla.control.rotations import exp_rotation, log_rotation, orthonormal
from dtvla.errors import InputError

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Twist:
    """A velocity of the end effector in the base frame.

    Attributes:
        linear_m_s: [3].
        angular_rad_s: [3], axis times angular speed.
    """

    linear_m_s: Vector
    angular_rad_s: Vector


@dataclass(frozen=True)
class Pose:
    """A pose of the end effector in the base frame.

    Attributes:
        position_m: [3].
        rotation: [3, 3] rotation matrix.
    """

    position_m: Vector
    rotation: Vector


@dataclass(frozen=True)
class Motion:
    """What the end effector does during one tick, all in the base frame.

    Attributes:
        pose: at the end of the tick, when the arm has followed.
        twist: at the end of the tick.
        translation_m: [3] within the tick.
        rotation_rad: [3] axis-angle within the tick, applied from the left.
        at_rest: nothing moves any more.
    """

    pose: Pose
    twist: Twist
    translation_m: Vector
    rotation_rad: Vector
    at_rest: bool


@dataclass(frozen=True)
class MotionLimits:
    """Limits of an end effector's motion.

    Attributes:
        linear: of the position (m/s, m/s², m/s³).
        angular: of the orientation (rad/s, rad/s², rad/s³).
        workspace: box in the base frame (m) that the position must not leave, or None.
        max_linear_step_m, max_angular_step_rad: within one tick, however late it comes.
        longest_tick_s: a tick that comes later counts as one of this length.
        on_limit: what happens to a request beyond a limit of size.
    """

    linear: RateLimits
    angular: RateLimits
    workspace: Box | None = None
    max_linear_step_m: float = math.inf
    max_angular_step_rad: float = math.inf
    longest_tick_s: float = 0.1
    on_limit: OnLimit = OnLimit.CLAMP

    def __post_init__(self) -> None:
        for name in ("max_linear_step_m", "max_angular_step_rad", "longest_tick_s"):
            if not getattr(self, name) > 0:
                raise InputError(f"'{name}' is {getattr(self, name)}; give a figure above 0.")

    @classmethod
    def of(cls, robot: RobotLimits, *, share: float = 0.5, workspace: Box | None = None) -> MotionLimits:
        """A share (0 to 1) of what an arm itself allows, which aborts its motion at the full figures."""
        if not 0 < share <= 1:
            raise InputError(f"A share of the limits of {robot.name} must lie in (0, 1], not {share}.")

        def part(limits: RateLimits) -> RateLimits:
            return RateLimits(share * limits.velocity, share * limits.acceleration, share * limits.jerk)

        return cls(part(robot.linear), part(robot.angular), workspace)


def _within_steps(limits: RateLimits, max_step: float, longest_tick_s: float) -> RateLimits:
    velocity = min(limits.velocity, max_step / longest_tick_s)
    return RateLimits(velocity, limits.acceleration, limits.jerk)


class MotionLimiter:
    """Follows twist or pose requests within the limits.

    What comes out never exceeds a limit, whatever goes in: see `rate_limiter`. State is what was
    commanded, not what was measured; `reset` takes a new start.

    Args:
        limits: to keep.
        pose: of the resting end effector.
    """

    def __init__(self, limits: MotionLimits, pose: Pose) -> None:
        self.limits = limits
        tick_s = limits.longest_tick_s
        linear = _within_steps(limits.linear, limits.max_linear_step_m, tick_s)
        angular = _within_steps(limits.angular, limits.max_angular_step_rad, tick_s)
        self._linear = RateLimiter(linear, pose.position_m, limits.workspace)
        self._angular = RateLimiter(angular, np.zeros(3))
        self.reset(pose)

    def reset(self, pose: Pose) -> None:
        """Starts anew from `pose`, at rest there."""
        if not (np.isfinite(pose.position_m).all() and np.isfinite(pose.rotation).all()):
            raise InputError("The pose to start from holds a value that is not a finite number.")
        self._linear.reset(pose.position_m)
        self._angular.reset(np.zeros(3))
        self._rotation = orthonormal(pose.rotation)

    @property
    def pose(self) -> Pose:
        return Pose(self._linear.position.copy(), self._rotation.copy())

    @property
    def at_rest(self) -> bool:
        return self._linear.at_rest and self._angular.at_rest

    def limit(self, request: Twist | Pose | None, dt_s: float) -> tuple[Motion, tuple[LimitEvent, ...]]:
        """The motion of the next tick, and the limits that the request touched.

        Args:
            request: a velocity to reach, a pose to go to and rest at, or None to come to rest. One with a
                value that is not finite counts as None and is reported.
            dt_s: time until the next call; above 0.

        Raises:
            ValueError: `dt_s` is not a time.
        """
        if not (math.isfinite(dt_s) and dt_s > 0):
            raise InputError(f"The time until the next tick is {dt_s} s; it must be finite and above 0.")
        events = list(too_large("tick", dt_s, self.limits.longest_tick_s, "s"))
        dt_s = min(dt_s, self.limits.longest_tick_s)
        twist, refusals = self._wanted(request, dt_s)
        events += refusals
        if refusals and self.limits.on_limit is OnLimit.REFUSE:
            twist = Twist(np.zeros(3), np.zeros(3))
        events += self._sharp_edges(twist, dt_s)
        translation = self._linear.step(twist.linear_m_s, dt_s)
        rotation = self._angular.step(twist.angular_rad_s, dt_s)
        self._rotation = orthonormal(exp_rotation(rotation) @ self._rotation)
        self._angular.position = np.zeros(3)  # only its velocity matters; so it never grows
        reached = Twist(self._linear.velocity.copy(), self._angular.velocity.copy())
        return Motion(self.pose, reached, translation, rotation, self.at_rest), tuple(events)

    def towards(self, target: Pose, dt_s: float) -> Twist:
        """The velocity that leads to `target` and comes to rest there; for a request of the next `dt_s`."""
        return self._towards(target, dt_s)[0]

    def _wanted(self, request: Twist | Pose | None, dt_s: float) -> tuple[Twist, list[LimitEvent]]:
        """The twist asked for, and an event for each limit of size that it exceeds."""
        still = Twist(np.zeros(3), np.zeros(3))
        if request is None:
            return still, []
        if not all(np.isfinite(part).all() for part in vars(request).values()):
            return still, [LimitEvent("finite numbers", math.nan, 0.0, "")]
        if isinstance(request, Pose):
            return self._towards(request, dt_s)
        limits, linear, angular = self.limits, request.linear_m_s, request.angular_rad_s
        speed, turn = float(np.linalg.norm(linear)), float(np.linalg.norm(angular))
        events = [
            *too_large("linear velocity", speed, limits.linear.velocity, "m/s"),
            *too_large("angular velocity", turn, limits.angular.velocity, "rad/s"),
            *too_large("linear step", speed * dt_s, limits.max_linear_step_m, "m"),
            *too_large("angular step", turn * dt_s, limits.max_angular_step_rad, "rad"),
        ]
        linear = linear * min(1.0, self._linear.limits.velocity / max(speed, 1e-30))
        shaped = self._linear.shaped(linear, dt_s)
        for axis, asked, allowed in zip("xyz", np.abs(linear), np.abs(shaped), strict=True):
            events += too_large(f"workspace, speed along {axis}", float(asked), float(allowed), "m/s")
        return request, events

    def _towards(self, target: Pose, dt_s: float) -> tuple[Twist, list[LimitEvent]]:
        """The twist that leads to `target` and comes to rest there."""
        position, events = target.position_m, []
        if self.limits.workspace is not None:
            lower, upper = self.limits.workspace.lower, self.limits.workspace.upper
            position = np.clip(position, lower, upper)
            for axis, asked, allowed in zip("xyz", target.position_m, position, strict=True):
                if asked != allowed:
                    events.append(LimitEvent(f"workspace, {axis}", float(asked), float(allowed), "m"))
        way = position - self._linear.position
        turn = log_rotation(orthonormal(target.rotation) @ self._rotation.T)
        linear = _approach(way, self._linear.limits, dt_s)
        return Twist(linear, _approach(turn, self._angular.limits, dt_s)), events

    def _sharp_edges(self, twist: Twist, dt_s: float) -> list[LimitEvent]:
        """Events for a change of velocity that takes longer than this tick."""
        events: list[LimitEvent] = []
        for name, unit, wanted, limiter in (
            ("linear", "m", twist.linear_m_s, self._linear),
            ("angular", "rad", twist.angular_rad_s, self._angular),
        ):
            target = wanted * min(1.0, limiter.limits.velocity / max(float(np.linalg.norm(wanted)), 1e-30))
            asked = float(np.linalg.norm(target - limiter.velocity)) / dt_s
            events += too_large(f"{name} acceleration", asked, limiter.limits.acceleration, f"{unit}/s²")
            events += too_large(f"{name} jerk", asked / dt_s, limiter.limits.jerk, f"{unit}/s³")
        return events


def _approach(way: Vector, limits: RateLimits, dt_s: float) -> Vector:
    """Velocity [n] along `way` [n] that lets the motion come to rest at its end."""
    distance = float(np.linalg.norm(way))
    if distance == 0.0:
        return np.zeros_like(way)
    return np.asarray(way * (approach_speed(distance, limits, dt_s) / distance))
