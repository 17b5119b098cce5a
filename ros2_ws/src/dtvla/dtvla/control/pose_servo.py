"""From chunks to target poses that a real arm can follow: what the controller node runs on hardware.

A row is turned into a velocity, scaled to what the arm on which the policy was trained really did
(`scaling`), shortened where the joints could not follow (`differential`), and handed to the limiter
(`motion`), which alone decides on the target pose. Whatever is wrong, the answer is the same: the request is
dropped and the limiter brings the target to rest within its limits.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from dtvla.control.action_chunk import NS_PER_S
from dtvla.control.action_scaling import HardwareScale
from dtvla.control.chunk_executor import ChunkExecutor
from dtvla.control.differential_ik import differential_step
from dtvla.control.kinematics import Arm
from dtvla.control.limits.events import LimitEvent, OnLimit
from dtvla.control.limits.gripper import GripperLimits, GripperRequest, limit_gripper
from dtvla.control.limits.motion import MotionLimiter, MotionLimits, Pose, Twist
from dtvla.control.open_loop_executor import Command
from dtvla.control.robots import RobotLimits, joint_velocity_bounds
from dtvla.control.rotations import exp_rotation
from dtvla.control.watchdogs import distance

Vector = NDArray[np.float64]
BOUND_TICKS = 2.0  # a joint may already be on its way when its bound is taken: look two ticks ahead


class Anchor(Enum):
    """What a delta is added to.

    LAST_TARGET: the target before; the motion is the sum of the deltas, and the arm catches up.
    MEASURED: the measured pose, as LIBERO's controller does; an arm that is held back is not pushed harder.
    """

    LAST_TARGET = "last_target"
    MEASURED = "measured"


@dataclass(frozen=True)
class FollowingErrorLimit:
    """How far the target may be from the measured arm: beyond, something holds the arm back.

    Attributes:
        length_m, turn_rad: largest difference.
    """

    length_m: float
    turn_rad: float


@dataclass(frozen=True)
class Target:
    """What the arm's own controller is told at one tick, in the base frame.

    Attributes:
        command: the row or hold behind it.
        pose: to be at when the tick is over.
        twist: of the target then.
        translation_m, rotation_rad: [3] each, of the target within the tick.
        gripper: opening, speed and force.
        at_rest: the target does not move any more.
        events: the limits that were touched.
    """

    command: Command
    pose: Pose
    twist: Twist
    translation_m: Vector
    rotation_rad: Vector
    gripper: GripperRequest
    at_rest: bool
    events: tuple[LimitEvent, ...]


class PoseServo:
    """A state machine: `measure` the arm as its state comes, `step` once per tick.

    Args:
        executor: says which row of which chunk is due.
        limits: of the target's motion.
        robot: whose joint limits are kept, where an `arm` is given.
        scale: from the policy's deltas to the arm's.
        anchor: what a delta is added to.
        following_limit: how far the target may run ahead.
        gripper: what is told beside the opening, and its limits.
        arm: kinematics for the joint limits; None leaves them to the robot.
    """

    def __init__(
        self,
        executor: ChunkExecutor,
        limits: MotionLimits,
        robot: RobotLimits,
        *,
        scale: HardwareScale,
        anchor: Anchor,
        following_limit: FollowingErrorLimit,
        gripper: tuple[GripperRequest, GripperLimits],
        arm: Arm | None = None,
    ) -> None:
        self.executor = executor
        self._limits, self._robot, self._scale = limits, robot, scale
        self._anchor, self._following_limit, self._arm = anchor, following_limit, arm
        self._gripper, self._gripper_limits = gripper
        self._measured: Pose | None = None
        self._joints: Vector | None = None
        self._limiter: MotionLimiter | None = None
        self.strayed: tuple[float, float] | None = None  # how far the arm is off, while it is too far

    @property
    def engaged(self) -> bool:
        """Whether a chunk has been followed since the start: before, the arm is told nothing."""
        return self._limiter is not None

    @property
    def joint_names(self) -> tuple[str, ...]:
        """The joints whose positions are needed; none where no joint limits are kept."""
        return self._arm.joint_names if self._arm is not None else ()

    def measure(self, pose: Pose) -> None:
        """Takes in where the end effector is."""
        self._measured = pose

    def measure_joints(self, positions: Vector) -> None:
        """Takes in where the joints [7] are, rad."""
        self._joints = np.asarray(positions, np.float64)

    def begin(self) -> None:
        """The arm was put elsewhere (a new episode): its target starts where it is, with the next chunk."""
        self._limiter, self.strayed = None, None
        self.executor.drop_plans()

    def rest(self) -> None:
        """The arm was told nothing for a while: it rests at its last target, and starts from there."""
        if self._limiter is not None:
            self._limiter.reset(self._limiter.pose)

    def step(
        self, tick_ns: int, dt_s: float, *, lasts_s: float | None = None, suspended: bool = False
    ) -> Target | None:
        """The target for the tick at `tick_ns`, `dt_s` before the next one.

        `lasts_s` is what the tick consumes of the chunk, where that is more: the arm stood for a while.
        None while there is nothing to say: the arm's pose is not known, no chunk has come yet, or a lockstep
        world has to wait for one.
        """
        if self._measured is None:
            return None
        self._look_after(self._measured)
        waits = suspended or self.strayed is not None
        command = self.executor.step(tick_ns, suspended=waits, lasts_ns=round((lasts_s or dt_s) * NS_PER_S))
        if command is None:
            return None
        if self._limiter is None:
            if command.hold:
                return None
            self._limiter = MotionLimiter(self._limits, self._measured)
        events: tuple[LimitEvent, ...] = ()
        request: Twist | Pose | None = None
        if self.strayed is not None and not (self.executor.stopped or suspended):
            request = self._measured  # gives way, within the limits; not to a pose that may be an old one
        elif not command.hold:
            request, events = self._within_joints(self._wanted(command), dt_s)
        motion, touched = self._limiter.limit(request, dt_s)
        events += touched
        asked = GripperRequest(command.gripper_opening_m, self._gripper.speed_m_s, self._gripper.force_n)
        self._gripper, refused = limit_gripper(
            asked, self._gripper, self._gripper_limits, self._limits.on_limit
        )
        return Target(
            command,
            motion.pose,
            motion.twist,
            motion.translation_m,
            motion.rotation_rad,
            self._gripper,
            motion.at_rest,
            (*events, *refused),
        )

    def _wanted(self, command: Command) -> Twist:
        """The velocity that a row asks for."""
        assert self._limiter is not None
        assert self._measured is not None
        translation = command.translation * self._scale.translation
        rotation = command.rotation * self._scale.rotation
        if self._anchor is Anchor.LAST_TARGET:
            seconds = command.period_ns / NS_PER_S
            return Twist(translation / seconds, rotation / seconds)
        goal = Pose(self._measured.position_m + translation, exp_rotation(rotation) @ self._measured.rotation)
        return self._limiter.towards(goal, command.period_ns / NS_PER_S)

    def _within_joints(self, twist: Twist, dt_s: float) -> tuple[Twist | None, tuple[LimitEvent, ...]]:
        """The twist, shortened to what the joints can follow; None where that is refused instead."""
        if self._arm is None or self._joints is None:
            return twist, ()
        bounds = joint_velocity_bounds(self._robot, self._joints, BOUND_TICKS * dt_s)
        wanted = np.concatenate([twist.linear_m_s, twist.angular_rad_s])
        step = differential_step(self._arm.jacobian(self._joints), wanted, bounds)
        if step.events and self._limits.on_limit is OnLimit.REFUSE:
            return None, step.events
        return Twist(step.share * twist.linear_m_s, step.share * twist.angular_rad_s), step.events

    def _look_after(self, measured: Pose) -> None:
        """Notes whether the arm is too far from its target; half the limit must be won back."""
        if self._limiter is None:
            return
        length_m, turn_rad = distance(self._limiter.pose, measured)
        share = 1.0 if self.strayed is None else 0.5
        far = (
            length_m > share * self._following_limit.length_m
            or turn_rad > share * self._following_limit.turn_rad
        )
        self.strayed = (length_m, turn_rad) if far else None
