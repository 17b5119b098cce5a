"""Figures of the two arms, joint limits with their braking, and the scale from the benchmark to hardware."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_control_action_chunk import make_chunk

from dtvla.control.action_scaling import (
    HardwareScale,
    full_scale_velocities,
    hardware_scale,
    rescale,
    rotation_scale,
)
from dtvla.control.limits.joints import JointLimiter
from dtvla.control.robots import (
    FR3,
    PANDA,
    RobotLimits,
    joint_slowdown,
    joint_velocity_bounds,
    reach_event,
    velocity_law,
)

robots = st.sampled_from([PANDA, FR3])
seeds = st.integers(0, 2**32 - 1)
SLACK = 2e-3  # libfranka keeps 1e-3 away from the law, and so do we


def middle(robot: RobotLimits) -> np.ndarray:
    return 0.5 * (np.array(robot.min_joint_position_rad) + np.array(robot.max_joint_position_rad))


@pytest.mark.parametrize(
    ("joint", "position", "lower", "upper"),
    [  # by hand from libfranka's rate_limiting.h
        (0, 0.0, -2.62, 2.62),
        (0, 2.3, -2.62, -0.30 + math.sqrt(12.0 * 0.4501)),
        (0, 2.7501, -2.62, 0.0),
        (1, -1.5, 0.20 - math.sqrt(5.17 * 0.2918), 2.62),
        (2, 2.9, -2.62, -0.20 + math.sqrt(7.0 * 0.0065)),
        (3, -3.0, 0.30 - math.sqrt(8.0 * 0.0481), 2.62),
        (4, 2.0, -5.26, -0.35 + math.sqrt(34.0 * 0.8101)),
        (5, 1.0, 0.35 - math.sqrt(11.0 * 0.45908), 4.18),
        (6, -3.0, 0.35 - math.sqrt(34.0 * 0.0196), 5.26),
    ],
)
def test_the_fr3s_velocity_law_has_a_table(joint: int, position: float, lower: float, upper: float) -> None:
    positions = middle(FR3)
    positions[joint] = position
    low, high = velocity_law(FR3, positions)
    assert low[joint] == pytest.approx(lower, abs=1e-12)
    assert high[joint] == pytest.approx(upper, abs=1e-12)


@given(robots, seeds, st.floats(1e-3, 0.1))
def test_the_bounds_are_stricter_than_the_law_wherever_the_tick_ends(
    robot: RobotLimits, seed: int, dt_s: float
) -> None:
    lower, upper = np.array(robot.min_joint_position_rad), np.array(robot.max_joint_position_rad)
    positions = np.random.default_rng(seed).uniform(lower, upper)
    low, high = joint_velocity_bounds(robot, positions, dt_s)
    assert (low <= 0).all()
    assert (high >= 0).all()
    assert (high <= velocity_law(robot, positions + high * dt_s)[1] + 1e-9).all()
    assert (low >= velocity_law(robot, positions + low * dt_s)[0] - 1e-9).all()
    assert (positions + high * dt_s <= np.maximum(upper - 0.1, positions) + 1e-9).all()
    assert (positions + low * dt_s >= np.minimum(lower + 0.1, positions) - 1e-9).all()


@pytest.mark.parametrize("robot", [PANDA, FR3], ids=lambda robot: robot.name)
def test_a_joint_beyond_its_margin_may_only_come_back(robot: RobotLimits) -> None:
    positions = np.array(robot.max_joint_position_rad) - 0.05
    low, high = joint_velocity_bounds(robot, positions, 0.01)
    assert (high == 0).all()
    assert (low < -1.0).all()


@settings(max_examples=15, deadline=None)
@given(robots, seeds, st.sampled_from([0.001, 0.01, 0.05]))
def test_joint_commands_keep_the_law_the_ends_and_the_rates(
    robot: RobotLimits, seed: int, dt_s: float
) -> None:
    rng = np.random.default_rng(seed)
    limiter = JointLimiter(robot, middle(robot))
    path = [limiter.positions] * 3
    for _ in range(12):
        wanted = rng.normal(size=7) * rng.choice([0.3, 3.0, 100.0])
        for _ in range(int(rng.integers(1, 12))):
            path.append(limiter.step(wanted, dt_s))
            low, high = velocity_law(robot, limiter.positions)
            assert (limiter.velocities <= high + SLACK).all()
            assert (limiter.velocities >= low - SLACK).all()
    positions = np.array(path)
    assert (positions >= np.array(robot.min_joint_position_rad) + 0.1 - 1e-9).all()
    assert (positions <= np.array(robot.max_joint_position_rad) - 0.1 + 1e-9).all()
    figures = (
        robot.max_joint_velocity_rad_s,
        robot.max_joint_acceleration_rad_s2,
        robot.max_joint_jerk_rad_s3,
    )
    for order, limit in enumerate(figures, 1):
        rounding = 2**order * 4e-15 / dt_s**order
        fastest = np.abs(np.diff(positions, order, axis=0)).max(axis=0) / dt_s**order
        assert (fastest <= np.array(limit) * (1 + 1e-6) + rounding).all()


@pytest.mark.parametrize("robot", [PANDA, FR3], ids=lambda robot: robot.name)
@pytest.mark.parametrize("dt_s", [0.005, 0.02])
def test_at_full_speed_towards_an_end_every_joint_brakes_in_time_and_rests_there(
    robot: RobotLimits, dt_s: float
) -> None:
    limiter = JointLimiter(robot, middle(robot))
    for _ in range(round(4.0 / dt_s)):
        limiter.step(np.full(7, 100.0), dt_s)
        assert (limiter.velocities <= velocity_law(robot, limiter.positions)[1] + SLACK).all()
    distance = np.array(robot.max_joint_position_rad) - 0.1 - limiter.positions
    assert (distance >= -1e-9).all()
    assert (distance < 0.03).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_joint_velocities_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        JointLimiter(PANDA, middle(PANDA)).step(np.full(7, bad), 0.01)


@pytest.mark.parametrize(
    ("speeds", "factor", "joints"),
    [
        ([0.1] * 7, 1.0, []),
        ([1.0, 0, 0, 0, 0, 0, 0], 0.5, [1]),
        ([0, -2.0, 0, 1.0, 0, 0, 0], 0.25, [2, 4]),
        ([0, 0, 0, 0, 0, 0, 9.0], 0.0, [7]),  # its bound is 0
    ],
)
def test_joint_velocities_are_slowed_down_together(
    speeds: list[float], factor: float, joints: list[int]
) -> None:
    high = np.array([0.5] * 6 + [0.0 if speeds[6] == 9.0 else 0.5])
    found, events = joint_slowdown(np.array(speeds), (np.full(7, -0.5), high))
    assert found == factor
    assert [event.limit for event in events] == [f"velocity of joint {joint}" for joint in joints]


@pytest.mark.parametrize(("position", "out"), [((0.4, 0.0, 0.4), False), ((0.9, 0.0, 0.333), True)])
def test_a_position_out_of_reach_is_reported(position: tuple[float, ...], out: bool) -> None:
    assert bool(reach_event(PANDA, np.array(position))) == out


@pytest.mark.parametrize(
    ("most_rad_s", "period_s", "full_rad", "scale"),
    [
        (2.5, 0.05, 0.5, 0.25),  # LIBERO on a Franka: 10 rad/s asked, 2.5 allowed
        (1.25, 0.05, 0.5, 0.125),
        (10.0, 0.05, 0.5, 1.0),
        (99.0, 0.05, 0.5, 1.0),
        (2.5, 0.2, 0.5, 1.0),
    ],
)
def test_the_rotation_scale_has_a_table(
    most_rad_s: float, period_s: float, full_rad: float, scale: float
) -> None:
    assert rotation_scale(most_rad_s, period_s, full_rad) == pytest.approx(scale)


def test_a_full_action_says_one_metre_and_ten_radians_per_second() -> None:
    assert full_scale_velocities(0.05) == pytest.approx((1.0, 10.0))


def test_a_rescaled_chunk_keeps_its_directions_its_gripper_and_its_raw_actions() -> None:
    chunk = make_chunk()
    rng = np.random.default_rng(0)
    chunk.rotations[:] = rng.uniform(-0.5, 0.5, (10, 3))
    chunk.translations[:] = rng.uniform(-0.05, 0.05, (10, 3))
    scaled = rescale(chunk, hardware_scale(2.5, 0.05))
    np.testing.assert_allclose(scaled.rotations, 0.25 * chunk.rotations)
    np.testing.assert_allclose(scaled.translations, 0.25 * chunk.translations)
    assert scaled.raw_actions is chunk.raw_actions
    assert scaled.gripper_openings is chunk.gripper_openings


@pytest.mark.parametrize("figures", [(0.0, 0.05), (2.5, -0.05), (math.nan, 0.05), (2.5, math.inf)])
def test_a_scale_of_nonsense_is_refused(figures: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        rotation_scale(*figures)
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\]"):
        HardwareScale(1.0, figures[0] if figures[0] == 0.0 else math.nan)


@pytest.mark.sim
def test_the_simulated_arm_moves_a_quarter_of_what_its_actions_say() -> None:
    """The reason why hardware, which does reach its targets, is told a quarter: see `scaling`."""
    from dtvla.sim.env import SimEnv

    env = SimEnv("embedded", 0, render=False)
    shares = []
    try:
        for axis in range(3):
            observation = env.reset(seed=1, settle_steps=2)
            for action in np.repeat(np.eye(7)[[2]], 6, axis=0):
                observation = env.step(action, look=False)
            for _ in range(6):
                before = observation.ee_position
                observation = env.step(0.5 * np.eye(7)[axis], look=False)
            shares.append(np.linalg.norm(observation.ee_position - before) / (0.5 * 0.05))
    finally:
        env.close()
    assert min(shares) > 0.15
    assert max(shares) < 0.35
