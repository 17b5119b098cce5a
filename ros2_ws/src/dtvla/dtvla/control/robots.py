"""What the arms themselves allow: figures of the Panda (FER) and of the Franka Research 3.

Sources, by field:
- joint positions, velocities, accelerations, jerks and torques, Cartesian velocities, accelerations and
  jerks: libfranka `include/franka/rate_limiting.h` (0.9 for the Panda, 0.13 and later for the FR3) and the
  "Robot and interface specifications" of Franka's FCI documentation;
- reach: data sheets of both arms; gripper: data sheet of the Franka Hand and `franka_ros2`'s URDF.
A robot aborts its motion at these figures, so a controller should be given a share of them (`share`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtvla.control.limits.events import LimitEvent
from dtvla.control.limits.gripper import GripperLimits
from dtvla.control.limits.velocity_profile import RateLimits

Vector = NDArray[np.float64]
Seven = tuple[float, float, float, float, float, float, float]

JOINTS = 7
# MoveIt Servo stays so far from the ends of the joints by default (`joint_limit_margins`).
JOINT_MARGIN_RAD = 0.1
# libfranka takes so much off each limit against rounding (`kLimitEps`).
VELOCITY_SLACK_RAD_S = 1e-3


@dataclass(frozen=True)
class RobotLimits:
    """Limits of one kind of arm.

    The velocity of a joint at the distance d from its end is limited to
    `min(max_joint_velocity, -offset + sqrt(slope * d))`: the FR3's own law. The Panda knows only the fixed
    figure; its slope is chosen so that half of its acceleration brakes it before the end.

    Attributes:
        name: of the arm.
        min_joint_position_rad, max_joint_position_rad: [7] mechanical ends (FR3: where the velocity is 0).
        max_joint_velocity_rad_s, max_joint_acceleration_rad_s2, max_joint_jerk_rad_s3: [7].
        velocity_offset_rad_s, velocity_slope_rad_s2: [7] of the law above.
        max_torque_nm: [7].
        linear: Cartesian limits of the end effector's position (m).
        angular: Cartesian limits of its orientation (rad).
        reach_m: farthest flange position from the shoulder (the model's own is 3 mm more).
        gripper: of the Franka Hand.
    """

    name: str
    min_joint_position_rad: Seven
    max_joint_position_rad: Seven
    max_joint_velocity_rad_s: Seven
    max_joint_acceleration_rad_s2: Seven
    max_joint_jerk_rad_s3: Seven
    velocity_offset_rad_s: Seven
    velocity_slope_rad_s2: Seven
    max_torque_nm: Seven
    linear: RateLimits
    angular: RateLimits
    reach_m: float
    gripper: GripperLimits


PANDA = RobotLimits(
    name="Panda (FER)",
    min_joint_position_rad=(-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973),
    max_joint_position_rad=(2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973),
    max_joint_velocity_rad_s=(2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61),
    max_joint_acceleration_rad_s2=(15.0, 7.5, 10.0, 12.5, 15.0, 20.0, 20.0),
    max_joint_jerk_rad_s3=(7500.0, 3750.0, 5000.0, 6250.0, 7500.0, 10000.0, 10000.0),
    velocity_offset_rad_s=(0.0,) * 7,
    velocity_slope_rad_s2=(15.0, 7.5, 10.0, 12.5, 15.0, 20.0, 20.0),
    max_torque_nm=(87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0),
    linear=RateLimits(1.7, 13.0, 6500.0),
    angular=RateLimits(2.5, 25.0, 12500.0),
    reach_m=0.855,
    gripper=GripperLimits(),
)

FR3 = RobotLimits(
    name="Franka Research 3",
    min_joint_position_rad=(-2.7501, -1.7918, -2.9065, -3.0481, -2.8101, 0.54092, -3.0196),
    max_joint_position_rad=(2.7501, 1.7918, 2.9065, -0.1458, 2.8101, 4.5205, 3.0196),
    max_joint_velocity_rad_s=(2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26),
    max_joint_acceleration_rad_s2=(10.0,) * 7,
    max_joint_jerk_rad_s3=(5000.0,) * 7,
    velocity_offset_rad_s=(0.30, 0.20, 0.20, 0.30, 0.35, 0.35, 0.35),
    velocity_slope_rad_s2=(12.0, 5.17, 7.0, 8.0, 34.0, 11.0, 34.0),
    max_torque_nm=(87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0),
    linear=RateLimits(3.0, 9.0, 4500.0),
    angular=RateLimits(2.5, 17.0, 8500.0),
    reach_m=0.855,
    gripper=GripperLimits(),
)

ROBOTS = {"panda": PANDA, "fr3": FR3}


def velocity_law(robot: RobotLimits, positions: Vector) -> tuple[Vector, Vector]:
    """Velocities [7], rad/s, that the arm itself allows at `positions` [7], rad: (most negative, largest)."""
    offset, slope = np.array(robot.velocity_offset_rad_s), np.array(robot.velocity_slope_rad_s2)
    cap = np.array(robot.max_joint_velocity_rad_s)

    def towards(distance: Vector) -> Vector:
        return np.asarray(np.clip(np.sqrt(slope * np.maximum(distance, 0.0)) - offset, 0.0, cap))

    upper = towards(np.array(robot.max_joint_position_rad) - positions)
    lower = towards(positions - np.array(robot.min_joint_position_rad))
    return -lower, upper


def joint_velocity_bounds(
    robot: RobotLimits,
    positions: Vector,
    dt_s: float,
    *,
    margin_rad: float = JOINT_MARGIN_RAD,
    share: float = 1.0,
) -> tuple[Vector, Vector]:
    """Velocities [7], rad/s, that may be commanded for the next `dt_s`: (most negative, largest).

    Stricter than the arm's own law in four ways, so that the law holds with sampled control: it looks at
    where the joint will be when the tick is over, not where it is; the ends lie `margin_rad` further in; the
    slope is at most the acceleration limit, so that braking along the law takes half of it (the FR3's joints
    5 and 7 would need 17 of their 10 rad/s²); and libfranka's slack is taken off. A joint beyond its margin
    may only come back.

    Args:
        robot: whose limits.
        positions: [7] rad.
        dt_s: until the next command.
        margin_rad: distance kept from the ends.
        share: of the arm's highest velocities.
    """
    offset = np.array(robot.velocity_offset_rad_s)
    slope = np.minimum(robot.velocity_slope_rad_s2, robot.max_joint_acceleration_rad_s2)
    cap = share * np.array(robot.max_joint_velocity_rad_s) - VELOCITY_SLACK_RAD_S

    def towards(distance: Vector) -> Vector:
        # v = sqrt(slope (d - v dt)) - offset, solved for v; without the offset's head start the margin
        # alone would still let a joint touch its end.
        linear = 2.0 * offset + slope * dt_s
        constant = offset**2 - slope * np.maximum(distance, 0.0)
        root = np.sqrt(np.maximum(linear**2 - 4.0 * constant, 0.0))
        speed = np.where(constant < 0, 0.5 * (root - linear), 0.0) - VELOCITY_SLACK_RAD_S
        return np.asarray(np.clip(speed, 0.0, np.minimum(cap, np.maximum(distance, 0.0) / dt_s)))

    upper = towards(np.array(robot.max_joint_position_rad) - margin_rad - positions)
    lower = towards(positions - np.array(robot.min_joint_position_rad) - margin_rad)
    return -lower, upper


def joint_slowdown(velocities: Vector, bounds: tuple[Vector, Vector]) -> tuple[float, tuple[LimitEvent, ...]]:
    """Factor 0 to 1 that brings joint velocities [7] into `bounds` with their direction kept, and the events.

    The Cartesian path of the motion stays what it was; it is only covered more slowly.
    """
    factor, events = 1.0, []
    for joint, (speed, low, high) in enumerate(zip(velocities, *bounds, strict=True), 1):
        allowed = high if speed > 0 else low
        if abs(speed) > abs(allowed) * (1 + 1e-9) + 1e-12:
            factor = min(factor, allowed / speed)
            events.append(
                LimitEvent(f"velocity of joint {joint}", abs(float(speed)), abs(float(allowed)), "rad/s")
            )
    return max(float(factor), 0.0), tuple(events)


def reach_event(robot: RobotLimits, position_m: Vector) -> tuple[LimitEvent, ...]:
    """An event when `position_m` [3] of the flange, in the base frame, lies out of reach.

    The shoulder is 0.333 m above the base (Denavit-Hartenberg parameters of Franka's documentation).
    """
    distance = math.dist(position_m, (0.0, 0.0, 0.333))
    return (LimitEvent("reach", distance, robot.reach_m, "m"),) if distance > robot.reach_m else ()
