"""From chunks to target poses: how the arm's targets move, and when they do not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtvla.control.action_chunk import NS_PER_S, Chunk
from dtvla.control.action_scaling import HardwareScale
from dtvla.control.chunk_executor import ChunkExecutor, ExecutionMode
from dtvla.control.limits.cartesian import Limits
from dtvla.control.limits.events import OnLimit
from dtvla.control.limits.gripper import GripperLimits, GripperRequest
from dtvla.control.limits.motion import MotionLimits, Pose
from dtvla.control.limits.velocity_profile import Box, RateLimits
from dtvla.control.pose_servo import Anchor, FollowingErrorLimit, PoseServo, Target
from dtvla.control.robots import PANDA
from dtvla.control.rotations import exp_rotation
from dtvla.control.temporal_ensembling import Blending, Transition

TICK_S = 0.01
TICK_NS = round(TICK_S * NS_PER_S)
PERIOD_NS = 50_000_000
LIMITS = MotionLimits(
    RateLimits(0.25, 6.5, 3250.0),
    RateLimits(0.6, 12.5, 6250.0),
    Box(np.array([0.15, -0.5, 0.0]), np.array([0.8, 0.5, 0.8])),
)
FOLLOWING_LIMIT = FollowingErrorLimit(0.1, 0.5)
START = Pose(np.array([0.4, 0.0, 0.3]), np.eye(3))


def chunk(number: int, stamp_ns: int, translation: tuple[float, float, float], rows: int = 10) -> Chunk:
    return Chunk(
        decision_id=number,
        stamp_ns=stamp_ns,
        period_ns=PERIOD_NS,
        execute_steps=rows // 2,
        translations=np.tile(translation, (rows, 1)),
        rotations=np.zeros((rows, 3)),
        gripper_openings=np.full(rows, 0.08),
        raw_actions=np.zeros((rows, 7)),
    )


def servo(
    mode: ExecutionMode = ExecutionMode.RECEDING,
    *,
    anchor: Anchor = Anchor.LAST_TARGET,
    limits: MotionLimits = LIMITS,
    scale: float = 0.25,
    following_limit: FollowingErrorLimit = FOLLOWING_LIMIT,
) -> PoseServo:
    executor = ChunkExecutor(
        mode,
        Limits(1.0, 2.4),
        lockstep=False,
        max_age_s=1.0,
        blend=Blending(seam=Transition.SPLINE),
        tick_ns=TICK_NS,
    )
    return PoseServo(
        executor,
        limits,
        PANDA,
        scale=HardwareScale(scale, scale),
        anchor=anchor,
        following_limit=following_limit,
        gripper=(GripperRequest(0.08), GripperLimits()),
    )


class Run:
    """A follower with an arm that is always where it is told to be."""

    def __init__(self, arm: PoseServo, *, obedient: bool = True) -> None:
        self.arm, self.tick, self.obedient = arm, 0, obedient
        self.targets: list[Target] = []
        arm.measure(START)

    @property
    def now_ns(self) -> int:
        return self.tick * TICK_NS

    def ticks(self, count: int, *, suspended: bool = False) -> list[Target]:
        """Steps so often; returns the targets of these ticks."""
        found = []
        for _ in range(count):
            target = self.arm.step(self.now_ns, TICK_S, suspended=suspended)
            self.tick += 1
            if target is not None:
                found.append(target)
                if self.obedient:
                    self.arm.measure(target.pose)
        self.targets += found
        return found

    def offer(self, translation: tuple[float, float, float], **changes: object) -> str | None:
        number = int(self.now_ns / TICK_NS) + 1
        made = dataclasses.replace(chunk(number, self.now_ns, translation), **changes)
        return self.arm.executor.offer(made, self.now_ns)


def speed(target: Target) -> float:
    return float(np.linalg.norm(target.twist.linear_m_s))


def test_before_the_first_chunk_the_arm_is_told_nothing() -> None:
    run = Run(servo())
    assert run.ticks(20) == []
    assert not run.arm.engaged


def test_without_a_measured_pose_the_arm_is_told_nothing() -> None:
    arm = servo()
    arm.executor.offer(chunk(1, 0, (0.01, 0, 0)), 0)
    assert arm.step(0, TICK_S) is None


def test_the_first_target_starts_where_the_arm_is() -> None:
    run = Run(servo())
    run.offer((0.02, 0.0, 0.0))
    first = run.ticks(1)[0]
    assert np.linalg.norm(first.pose.position_m - START.position_m) < 0.25 * TICK_S


def test_a_chunk_moves_the_target_by_the_scaled_sum_of_its_rows() -> None:
    run = Run(servo())
    run.offer((0.02, 0.0, 0.0))  # 0.1 m/s once scaled, for 0.5 s
    run.ticks(80)
    moved = run.targets[-1].pose.position_m - START.position_m
    assert run.targets[-1].at_rest
    assert moved[0] == pytest.approx(0.25 * 0.02 * 10, rel=0.1)
    assert np.allclose(moved[1:], 0.0)


def test_a_late_policy_lets_the_arm_come_to_rest_within_a_tenth_of_a_second() -> None:
    run = Run(servo())
    run.offer((0.05, 0.0, 0.0))
    run.ticks(50)  # the chunk is used up
    run.ticks(11)
    assert run.targets[-1].at_rest
    assert speed(run.targets[45]) > 0.2


def test_a_hold_of_the_policy_stops_at_once_although_rows_are_left() -> None:
    run = Run(servo(ExecutionMode.ENSEMBLED))
    run.offer((0.05, 0.0, 0.0))
    run.ticks(20)
    run.offer((0.0, 0.0, 0.0), hold=True)
    assert run.ticks(11)[-1].at_rest


def test_a_suspended_arm_brakes_and_goes_on_with_the_rows_it_had_not_done() -> None:
    run = Run(servo())
    run.offer((0.05, 0.0, 0.0))
    run.ticks(20)
    assert run.ticks(11, suspended=True)[-1].at_rest
    assert speed(run.ticks(10)[-1]) > 0.2


def test_a_stop_latches_and_brakes_within_the_limits() -> None:
    run = Run(servo())
    run.offer((0.05, 0.0, 0.0))
    run.ticks(20)
    run.arm.executor.stop()
    stopped = run.ticks(11)
    assert stopped[-1].at_rest
    run.offer((0.05, 0.0, 0.0))
    assert all(target.at_rest for target in run.ticks(20))


def test_an_arm_that_is_held_back_makes_its_target_come_back_smoothly() -> None:
    run = Run(servo(following_limit=FollowingErrorLimit(0.03, 0.5)), obedient=False)
    for _ in range(8):
        run.offer((0.05, 0.0, 0.0))
        run.ticks(10)
    away = [target.pose.position_m[0] - START.position_m[0] for target in run.targets]
    assert max(away) < 0.03 + 0.02  # the following-error limit and the way to stop
    assert min(away[away.index(max(away)) :]) < 0.016  # half of the limit is won back


def test_the_measured_anchor_does_not_run_away_from_an_arm_that_is_held_back() -> None:
    run = Run(servo(anchor=Anchor.MEASURED, scale=1.0), obedient=False)
    for _ in range(40):
        run.offer((0.02, 0.0, 0.0))
        run.ticks(10)
    assert run.targets[-1].pose.position_m[0] - START.position_m[0] == pytest.approx(0.02, abs=0.002)
    assert run.arm.strayed is None


def test_refused_requests_are_not_followed() -> None:
    run = Run(servo(limits=dataclasses.replace(LIMITS, on_limit=OnLimit.REFUSE), scale=1.0))
    run.offer((0.05, 0.0, 0.0))  # 1 m/s, which the spline reaches after some ticks
    targets = run.ticks(30)
    assert any("linear velocity" in str(event) for event in targets[-1].events)
    assert targets[-1].at_rest


def test_the_gripper_is_told_its_opening_within_its_limits() -> None:
    run = Run(servo())
    run.offer((0.0, 0.0, 0.0), gripper_openings=np.full(10, 0.02))
    assert run.ticks(1)[0].gripper == GripperRequest(0.02)


rows = st.tuples(*[st.floats(-0.05, 0.05)] * 3)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(rows, rows, st.integers(1, 40), st.sampled_from(["go", "hold", "stop"])), max_size=8),
    st.sampled_from(list(ExecutionMode)),
    st.sampled_from(list(Anchor)),
)
def test_no_chunk_and_no_fault_ever_makes_a_target_exceed_a_limit(
    events: list[tuple[tuple[float, ...], tuple[float, ...], int, str]], mode: ExecutionMode, anchor: Anchor
) -> None:
    run = Run(servo(mode, anchor=anchor))
    for translation, rotation, ticks, kind in events:
        run.offer(
            translation,  # type: ignore[arg-type]
            rotations=np.tile(np.array(rotation) * 5, (10, 1)),
            hold=kind == "hold",
        )
        if kind == "stop":
            run.arm.executor.stop()
        run.ticks(ticks, suspended=kind == "stop")
        run.arm.executor.clear_stop()
    positions = np.array([target.pose.position_m for target in run.targets]).reshape(-1, 3)
    box = LIMITS.workspace
    assert box is not None
    assert box.holds(positions)
    slack = 1 + 1e-6
    velocities = np.diff(positions, axis=0) / TICK_S
    assert (np.linalg.norm(velocities, axis=1) <= LIMITS.linear.velocity * slack).all()
    accelerations = np.diff(velocities, axis=0) / TICK_S
    assert (np.linalg.norm(accelerations, axis=1) <= LIMITS.linear.acceleration * slack + 1e-9).all()
    turns = [target.rotation_rad for target in run.targets]
    assert all(np.linalg.norm(turn) <= LIMITS.angular.velocity * TICK_S * slack for turn in turns)


def test_a_turn_is_applied_in_the_base_frame() -> None:
    run = Run(servo())
    run.arm.measure(Pose(START.position_m, exp_rotation(np.array([np.pi / 2, 0.0, 0.0]))))
    run.offer((0.0, 0.0, 0.0), rotations=np.tile([0.0, 0.0, 0.04], (10, 1)))
    run.ticks(80)
    turned = run.targets[-1].pose.rotation @ exp_rotation(np.array([-np.pi / 2, 0.0, 0.0]))
    assert np.allclose(turned, exp_rotation(np.array([0.0, 0.0, 0.25 * 0.4])), atol=0.01)
