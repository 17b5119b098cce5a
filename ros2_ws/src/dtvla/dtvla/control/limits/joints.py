"""Joint commands that keep position, velocity, acceleration and jerk of every joint."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dtvla.control.limits.jerk import RateLimiter
from dtvla.control.limits.velocity_profile import Box, RateLimits
from dtvla.control.robots import JOINT_MARGIN_RAD, RobotLimits, joint_velocity_bounds
from dtvla.errors import InputError

Vector = NDArray[np.float64]


class JointLimiter:
    """Seven rate limiters, one per joint, each in the box that its ends leave.

    Args:
        robot: whose limits.
        positions: [7] rad of the resting arm.
        share: of the velocity and acceleration of the robot that is used.
        margin_rad: distance kept from the ends of the joints.
    """

    def __init__(
        self,
        robot: RobotLimits,
        positions: Vector,
        *,
        share: float = 0.9,
        margin_rad: float = JOINT_MARGIN_RAD,
    ) -> None:
        if not 0 < share <= 1:
            raise InputError(f"A share of the limits of {robot.name} must lie in (0, 1], not {share}.")
        self._robot, self._share, self._margin_rad = robot, share, margin_rad
        low = np.array(robot.min_joint_position_rad) + margin_rad
        high = np.array(robot.max_joint_position_rad) - margin_rad
        self._joints = [
            RateLimiter(RateLimits(share * velocity, share * acceleration, jerk), start, box)
            for velocity, acceleration, jerk, start, box in zip(
                robot.max_joint_velocity_rad_s,
                robot.max_joint_acceleration_rad_s2,
                robot.max_joint_jerk_rad_s3,
                np.asarray(positions, np.float64).reshape(-1, 1),
                [Box(low[k : k + 1], high[k : k + 1]) for k in range(len(low))],
                strict=True,
            )
        ]

    @property
    def positions(self) -> Vector:
        return np.concatenate([joint.position for joint in self._joints])

    @property
    def velocities(self) -> Vector:
        return np.concatenate([joint.velocity for joint in self._joints])

    @property
    def at_rest(self) -> bool:
        return all(joint.at_rest for joint in self._joints)

    def step(self, velocities: Vector, dt_s: float) -> Vector:
        """Joint positions [7] rad to command, with `velocities` [7] rad/s as what to reach.

        Raises:
            ValueError: a velocity is not finite, or `dt_s` is not a time above 0.
        """
        if not (np.isfinite(velocities).all() and np.isfinite(dt_s) and dt_s > 0):
            raise InputError(
                f"Joint velocities {velocities} for {dt_s} s: all must be finite, the time above 0."
            )
        # Where a joint will be at the end of the tick, it may already be on its way there: two ticks ahead.
        low, high = joint_velocity_bounds(
            self._robot, self.positions, 2.0 * dt_s, margin_rad=self._margin_rad, share=self._share
        )
        for joint, velocity in zip(self._joints, np.clip(velocities, low, high), strict=True):
            joint.step(np.array([velocity]), dt_s)
        return self.positions
