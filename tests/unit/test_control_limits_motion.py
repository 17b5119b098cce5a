"""The limiter of an end effector: poses, twists, and what it reports."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtvla.control.limits.events import LimitEvent, OnLimit
from dtvla.control.limits.gripper import GripperLimits
from dtvla.control.limits.motion import Motion, MotionLimiter, MotionLimits, Pose, Twist
from dtvla.control.limits.velocity_profile import Box, RateLimits
from dtvla.control.robots import FR3, PANDA
from dtvla.control.rotations import exp_rotation, log_rotation

START = Pose(np.array([0.4, 0.0, 0.4]), np.eye(3))
BOX = Box(np.array([0.2, -0.3, 0.1]), np.array([0.6, 0.3, 0.7]))


def twist(linear: object = (0.0, 0.0, 0.0), angular: object = (0.0, 0.0, 0.0)) -> Twist:
    return Twist(np.array(linear, np.float64), np.array(angular, np.float64))


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([RateLimits(1.7, 13.0, 6500.0), RateLimits(0.5, 1.0, 20.0), RateLimits(2.0, 30.0, 10.0)]),
    st.sampled_from([0.004, 0.01, 0.05]),
    st.integers(0, 2**32 - 1),
)
def test_a_pose_inside_is_reached_and_one_outside_leads_to_the_wall(
    limits: RateLimits, dt_s: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    limiter = MotionLimiter(MotionLimits(limits, limits, BOX), START)
    target = Pose(rng.uniform([0.1, -0.4, 0.0], [0.7, 0.4, 0.8]), exp_rotation(rng.uniform(-1, 1, 3)))
    for _ in range(3000):
        motion, _ = limiter.limit(target, dt_s)
        goal = np.clip(target.position_m, BOX.lower, BOX.upper)
        way = np.linalg.norm(motion.pose.position_m - goal)
        turn = np.linalg.norm(log_rotation(target.rotation @ motion.pose.rotation.T))
        if max(way, turn) < 1e-5:
            break
    assert way < 1e-5
    assert turn < 1e-5


def settled(limiter: MotionLimiter, request: Twist | Pose | None, dt_s: float = 0.05) -> Motion:
    for _ in range(60):
        motion, _ = limiter.limit(request, dt_s)
    return motion


SMALL = MotionLimits(RateLimits(0.5, 5.0, 500.0), RateLimits(1.0, 10.0, 1000.0), BOX)


@pytest.mark.parametrize(
    ("request_", "limit", "asked", "allowed"),
    [
        (twist([0.0, 0.6, 0.8]), "linear velocity", 1.0, 0.5),
        (twist(angular=[0.0, 3.0, 4.0]), "angular velocity", 5.0, 1.0),
        (twist([0.2, 0.0, 0.0]), "linear acceleration", 20.0, 5.0),
        (twist(angular=[0.0, 0.0, 0.9]), "angular acceleration", 90.0, 10.0),
        (twist([0.0, 0.0, -0.4]), "workspace, speed along z", 0.4, math.sqrt(2 * 0.25 * 5.0 * 0.05)),
        (Pose(np.array([0.4, 0.0, 0.9]), np.eye(3)), "workspace, z", 0.9, 0.7),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_limit_that_is_touched_is_reported_with_its_figures(
    request_: Twist | Pose, limit: str, asked: float, allowed: float
) -> None:
    low = Pose(np.array([0.4, 0.0, 0.15]), np.eye(3))
    _, events = MotionLimiter(SMALL, low).limit(request_, 0.01)
    found = {event.limit: event for event in events}
    assert found[limit].asked == pytest.approx(asked)
    assert found[limit].allowed == pytest.approx(allowed)
    assert limit in str(found[limit])


def test_a_request_within_the_limits_reports_nothing_once_it_is_reached() -> None:
    limiter = MotionLimiter(SMALL, START)
    wanted = twist([0.0, 0.05, 0.0], [0.0, 0.0, 0.1])
    for _ in range(20):
        motion, events = limiter.limit(wanted, 0.02)
    assert events == ()
    np.testing.assert_array_equal(motion.twist.linear_m_s, wanted.linear_m_s)
    np.testing.assert_allclose(motion.translation_m, wanted.linear_m_s * 0.02, atol=1e-15)
    np.testing.assert_allclose(motion.rotation_rad, wanted.angular_rad_s * 0.02, atol=1e-15)


@pytest.mark.parametrize("policy", list(OnLimit))
def test_a_request_beyond_a_size_is_clamped_or_refused_as_the_policy_says(policy: OnLimit) -> None:
    limiter = MotionLimiter(replace(SMALL, on_limit=policy), START)
    motion = settled(limiter, twist([0.0, 0.6, 0.0]), 0.005)
    assert np.linalg.norm(motion.twist.linear_m_s) == pytest.approx(0.5 if policy is OnLimit.CLAMP else 0.0)


def test_a_sharp_edge_is_smoothed_even_where_sizes_are_refused() -> None:
    limiter = MotionLimiter(replace(SMALL, on_limit=OnLimit.REFUSE), START)
    motion = settled(limiter, twist([0.0, 0.2, 0.0]), 0.005)
    assert motion.twist.linear_m_s[1] == pytest.approx(0.2)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["linear", "angular", "position", "rotation"])
def test_a_request_that_is_not_finite_is_refused_at_the_door_and_the_arm_comes_to_rest(
    bad: float, field: str
) -> None:
    limiter = MotionLimiter(SMALL, START)
    settled(limiter, twist([0.0, 0.1, 0.0]), 0.01)
    values = np.full((3, 3), bad)
    request = {
        "linear": Twist(values[0], np.zeros(3)),
        "angular": Twist(np.zeros(3), values[0]),
        "position": Pose(values[0], np.eye(3)),
        "rotation": Pose(START.position_m, values),
    }[field]
    motion, events = limiter.limit(request, 0.01)
    assert [event.limit for event in events if math.isnan(event.asked)] == ["finite numbers"]
    assert np.isfinite(motion.pose.position_m).all()
    assert np.isfinite(motion.pose.rotation).all()
    assert settled(limiter, request, 0.01).at_rest


@pytest.mark.parametrize("dt_s", [0.0, -0.01, math.nan, math.inf])
def test_a_tick_without_a_length_is_refused(dt_s: float) -> None:
    with pytest.raises(ValueError, match="finite and above 0"):
        MotionLimiter(SMALL, START).limit(None, dt_s)


def test_a_late_tick_makes_no_larger_step() -> None:
    limits = replace(SMALL, workspace=None, max_linear_step_m=0.02, longest_tick_s=0.05)
    limiter = MotionLimiter(limits, START)
    settled(limiter, twist([0.0, 9.0, 0.0]))
    motion, events = limiter.limit(twist([0.0, 9.0, 0.0]), 3.0)
    assert np.linalg.norm(motion.translation_m) <= 0.02 * (1 + 1e-9)
    assert {"tick", "linear velocity", "linear step"} <= {event.limit for event in events}


def test_the_orientation_is_the_product_of_the_rotations() -> None:
    limiter = MotionLimiter(SMALL, START)
    expected = START.rotation
    for axis in ([0.5, 0, 0], [0, 0.5, 0], [0, 0, -0.5]):
        for _ in range(40):
            motion, _ = limiter.limit(twist(angular=axis), 0.02)
            expected = exp_rotation(motion.rotation_rad) @ expected
    np.testing.assert_allclose(limiter.pose.rotation, expected, atol=1e-12)
    np.testing.assert_allclose(limiter.pose.rotation @ limiter.pose.rotation.T, np.eye(3), atol=1e-12)


@pytest.mark.parametrize("robot", [PANDA, FR3], ids=lambda robot: robot.name)
def test_a_share_of_a_robots_limits_makes_motion_limits(robot: object) -> None:
    limits = MotionLimits.of(robot, share=0.5)  # type: ignore[arg-type]
    assert limits.angular.velocity == 1.25
    assert limits.linear.acceleration == (6.5 if robot is PANDA else 4.5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RateLimits(0.0, 1.0, 1.0), "limit of velocity is 0.0"),
        (lambda: RateLimits(1.0, math.nan, 1.0), "acceleration is nan"),
        (lambda: Box(np.zeros(3), np.array([1.0, 0.0, 1.0])), "must lie below"),
        (lambda: Box(np.zeros(3), np.array([1.0, math.inf, 1.0])), "finite corners"),
        (lambda: MotionLimits.of(PANDA, share=1.5), "share"),
        (lambda: replace(SMALL, max_linear_step_m=0.0), "max_linear_step_m"),
        (lambda: MotionLimiter(SMALL, Pose(np.full(3, math.nan), np.eye(3))), "not a finite number"),
        (lambda: GripperLimits(0.09, 0.08), "smallest opening"),
        (lambda: GripperLimits(max_force_n=math.nan), "finite"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_limits_that_make_no_sense_are_refused_in_words(make: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()  # type: ignore[operator]


def test_an_event_reads_as_a_sentence_with_figures_and_unit() -> None:
    event = LimitEvent("linear velocity", 1.25, 0.5, "m/s")
    assert str(event) == "linear velocity: 1.25 m/s asked, 0.5 m/s allowed"
