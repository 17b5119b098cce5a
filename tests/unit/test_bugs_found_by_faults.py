"""Bugs that `make faults` found, one test each."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dtvla.control.action_chunk import Chunk
from dtvla.control.action_scaling import HardwareScale
from dtvla.control.chunk_executor import ChunkExecutor, ExecutionMode
from dtvla.control.limits.cartesian import Limits
from dtvla.control.limits.gripper import GripperLimits, GripperRequest
from dtvla.control.limits.motion import MotionLimits, Pose
from dtvla.control.limits.velocity_profile import RateLimits
from dtvla.control.pose_servo import Anchor, FollowingErrorLimit, PoseServo
from dtvla.control.robots import PANDA

TICK_NS, PERIOD_NS = 10_000_000, 50_000_000
START = Pose(np.array([0.4, 0.0, 0.3]), np.eye(3))
STEP_M = 1e-6  # what a target that begins at rest moves at most in one tick of 10 ms: far less than at speed


def moving_servo(ticks: int = 30) -> tuple[PoseServo, int]:
    """A follower whose target moves along x with 0.2 m/s, and the time of its next tick."""
    executor = ChunkExecutor(
        ExecutionMode.RECEDING,
        Limits(1.0, 2.4),
        lockstep=False,
        max_age_s=10.0,
        tick_ns=TICK_NS,
    )
    servo = PoseServo(
        executor,
        MotionLimits(RateLimits(0.25, 6.5, 3250.0), RateLimits(0.6, 12.5, 6250.0)),
        PANDA,
        scale=HardwareScale(1.0, 1.0),
        anchor=Anchor.LAST_TARGET,
        following_limit=FollowingErrorLimit(0.1, 0.5),
        gripper=(GripperRequest(0.08), GripperLimits()),
    )
    rows = 100
    chunk = Chunk(
        decision_id=1,
        stamp_ns=0,
        period_ns=PERIOD_NS,
        execute_steps=rows,
        translations=np.tile([0.01, 0.0, 0.0], (rows, 1)),
        rotations=np.zeros((rows, 3)),
        gripper_openings=np.full(rows, 0.08),
        raw_actions=np.zeros((rows, 7)),
    )
    servo.measure(START)
    servo.step(0, 0.01)
    assert executor.offer(chunk, 0) is None
    target = None
    for tick in range(1, ticks):
        target = servo.step(tick * TICK_NS, 0.01)
        if target is not None:
            servo.measure(target.pose)
    assert target is not None
    assert target.twist.linear_m_s[0] == pytest.approx(0.2)
    return servo, ticks * TICK_NS


def test_after_a_pause_of_the_controller_its_target_starts_from_rest() -> None:
    """After SIGSTOP and SIGCONT the target went on with the speed it had before, as if nothing had been."""
    servo, tick_ns = moving_servo()
    before = servo.step(tick_ns, 0.01)
    servo.rest()
    after = servo.step(tick_ns + 2_000_000_000, 0.01, suspended=True)
    assert before is not None
    assert after is not None
    assert np.array_equal(after.pose.position_m, before.pose.position_m)
    assert after.at_rest


def test_a_target_that_strayed_does_not_move_towards_a_pose_that_is_not_heard_any_more() -> None:
    """While the arm's state was silent the target went on towards the last pose that had been heard."""
    servo, tick_ns = moving_servo()
    target = servo.step(tick_ns, 0.01)
    assert target is not None
    servo.measure(Pose(target.pose.position_m - [0.2, 0.0, 0.0], target.pose.rotation))
    places = []
    for tick in range(1, 60):
        target = servo.step(tick_ns + tick * TICK_NS, 0.01, suspended=True)
        assert target is not None
        places.append(target.pose.position_m[0])
    assert servo.strayed is not None
    assert target.at_rest
    assert places[-1] == places[-20]
    assert places[-1] >= places[0] - STEP_M, "it went back to the old pose"


def test_a_problem_whose_figures_change_is_logged_once_and_reported_with_the_newest_figures() -> None:
    """How far the arm was from its target stood in a sentence of its own in each of 100 ticks per second."""
    from dtvla.nodes.common.diagnostics import Reporter

    logged: list[str] = []
    sent: list[Any] = []
    logger = SimpleNamespace(error=logged.append, warning=logged.append)
    stamp = SimpleNamespace(to_msg=lambda: _time())
    node = SimpleNamespace(
        create_publisher=lambda *_: SimpleNamespace(publish=sent.append),
        create_timer=lambda *_, **__: None,
        get_logger=lambda: logger,
        get_fully_qualified_name=lambda: "/controller_node",
        get_clock=lambda: SimpleNamespace(now=lambda: stamp),
        context=SimpleNamespace(ok=lambda: True),
    )
    report = Reporter(node)  # type: ignore[arg-type]
    for figure in range(100, 120):
        report.problem("following", f"The arm is {figure} mm and {figure / 50:.2f} rad from its target.")
    assert len(logged) == len(sent) == 1
    report.publish()
    assert "119 mm" in sent[-1].status[0].message
    report.problem("following", "The arm cannot be seen.")
    assert len(logged) == 2


def _time() -> Any:
    from builtin_interfaces.msg import Time

    return Time()


@pytest.mark.parametrize("late", [1, 2, 5])
def test_late_ticks_do_not_stretch_a_plan(late: int) -> None:
    """Rows were counted by ticks: if they came every 20 ms, a plan took twice its time, and its way."""
    servo, tick_ns = moving_servo()
    begin = servo.step(tick_ns, 0.01)
    assert begin is not None
    moved_s, target = 0.0, begin
    while not target.command.hold:
        tick_ns += late * TICK_NS
        moved_s += late * TICK_NS / 1e9
        target = servo.step(tick_ns, late * TICK_NS / 1e9)
        assert target is not None
        servo.measure(target.pose)
    assert moved_s == pytest.approx(100 * 0.05 - 0.3, abs=0.12)  # 30 ticks of it are over
    way_m = target.pose.position_m[0] - begin.pose.position_m[0]
    assert way_m == pytest.approx(0.2 * moved_s, abs=0.02)
