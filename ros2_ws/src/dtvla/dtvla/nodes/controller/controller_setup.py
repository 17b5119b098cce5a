"""Builds what the controller node runs from its parameters. No ROS in here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dtvla.control.action_scaling import HardwareScale
from dtvla.control.chunk_executor import ChunkExecutor, ExecutionMode
from dtvla.control.kinematics import Arm, read_urdf
from dtvla.control.limits.cartesian import Limits
from dtvla.control.limits.events import OnLimit
from dtvla.control.limits.gripper import GripperLimits, GripperRequest
from dtvla.control.limits.motion import MotionLimits
from dtvla.control.limits.velocity_profile import Box, RateLimits
from dtvla.control.options import SIMULATOR
from dtvla.control.pose_servo import Anchor, FollowingErrorLimit, PoseServo
from dtvla.control.robots import PANDA, ROBOTS
from dtvla.control.stopping import StoppingLimits
from dtvla.control.temporal_ensembling import Blending, Transition
from dtvla.nodes.common.parameters import Refusal, Settings
from dtvla.resources import resource

GRIP_SITE = "{robot}_grip_site"  # the point between the fingers in our own robot models


def is_arm(settings: Settings) -> bool:
    """Whether an arm is told target poses, instead of a simulated world its deltas."""
    return settings.text("robot") != SIMULATOR


def make_executor(settings: Settings) -> ChunkExecutor:
    """What decides on the rows.

    Raises:
        Refusal: parameters that do not go together.
    """
    arm, lockstep = is_arm(settings), settings.flag("lockstep")
    limits = Limits(
        min_gripper_opening_m=settings.number("min_gripper_opening_m"),
        max_gripper_opening_m=settings.number("max_gripper_opening_m"),
    )
    if not arm:  # an arm has its own limiter; a chunk's deltas are then judged by the benchmark's scale
        limits = replace(
            limits,
            max_linear_velocity_m_s=settings.number("max_linear_velocity_m_s"),
            max_angular_velocity_rad_s=settings.number("max_angular_velocity_rad_s"),
        )
    if limits.min_gripper_opening_m > limits.max_gripper_opening_m:
        raise Refusal("Parameter 'min_gripper_opening_m' is larger than 'max_gripper_opening_m'.")
    smooth = MotionLimits.of(PANDA)
    return ChunkExecutor(
        ExecutionMode(settings.text("chunk_mode")),
        limits,
        lockstep=lockstep,
        max_age_s=settings.number("max_chunk_age_s"),
        blend=Blending(seam=Transition(settings.text("chunk_seam"))),
        stopping=None
        if arm
        else StoppingLimits(smooth.linear, smooth.angular),  # an arm's limiter slows it down
        tick_ns=round(1e9 / settings.number("rate_hz")) if arm and not lockstep else None,
    )


def make_pose_servo(settings: Settings, executor: ChunkExecutor) -> PoseServo:
    """What turns rows into target poses of an arm.

    Raises:
        Refusal: parameters that do not go together, or a speed above the arm's own.
        KinematicsUnavailable: joint limits without Pinocchio or a robot model that fits.
    """
    robot = ROBOTS[settings.text("robot")]
    speeds = settings.number("max_linear_velocity_m_s"), settings.number("max_angular_velocity_rad_s")
    for name, speed, highest, unit in (
        ("max_linear_velocity_m_s", speeds[0], robot.linear.velocity, "m/s"),
        ("max_angular_velocity_rad_s", speeds[1], robot.angular.velocity, "rad/s"),
    ):
        if speed > highest:
            raise Refusal(
                f"Parameter '{name}' is {speed:g} {unit}; the {robot.name} itself allows {highest:g}. Use "
                f"the arm's own file: config/robots/{settings.text('robot')}.yaml."
            )
    share = settings.number("limit_share")
    limits = MotionLimits(
        RateLimits(speeds[0], share * robot.linear.acceleration, share * robot.linear.jerk),
        RateLimits(speeds[1], share * robot.angular.acceleration, share * robot.angular.jerk),
        workspace(settings),
        on_limit=OnLimit(settings.text("on_limit")),
    )
    opening = settings.number("min_gripper_opening_m"), settings.number("max_gripper_opening_m")
    gripper = GripperRequest(
        opening[1], settings.number("gripper_speed_m_s"), settings.number("gripper_force_n")
    )
    return PoseServo(
        executor,
        limits,
        robot,
        scale=HardwareScale(settings.number("translation_scale"), settings.number("rotation_scale")),
        anchor=Anchor(settings.text("anchor")),
        following_limit=FollowingErrorLimit(
            settings.number("max_following_error_m"), settings.number("max_following_error_rad")
        ),
        gripper=(gripper, GripperLimits(*opening)),
        arm=_kinematics(settings) if settings.flag("joint_limits") else None,
    )


def workspace(settings: Settings) -> Box:
    """The box the end effector stays in.

    Raises:
        Refusal: a lower side that is not below its upper side.
    """
    corners = [[settings.number(f"workspace_{axis}_{end}_m") for axis in "xyz"] for end in ("min", "max")]
    for axis, low, high in zip("xyz", *corners, strict=True):
        if low >= high:
            raise Refusal(f"'workspace_{axis}_min_m' is {low:g}; it must lie below the maximum, {high:g}.")
    return Box(*corners)  # type: ignore[arg-type]


def _kinematics(settings: Settings) -> Arm:
    robot = settings.text("robot")
    model = Path(settings.text("robot_model") or resource(f"urdf/{robot}.urdf.xacro"))
    tip = settings.text("tip_link") or GRIP_SITE.format(robot=robot)
    return Arm(read_urdf(model), tip=tip, base=settings.text("base_frame"))
