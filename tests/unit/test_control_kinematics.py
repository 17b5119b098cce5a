"""Kinematics against the simulator's arm and against finite differences; one step of its inverse."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import lsq_linear

from dtvla.control.differential_ik import bounded_minimum, differential_step
from dtvla.control.kinematics import Arm, KinematicsUnavailable, read_urdf
from dtvla.control.robots import PANDA, joint_velocity_bounds
from dtvla.control.rotations import exp_rotation, log_rotation
from dtvla.resources import resource

LOW, HIGH = np.array(PANDA.min_joint_position_rad), np.array(PANDA.max_joint_position_rad)
HOME = np.array([0.0, -0.161, 0.0, -2.444, 0.0, 2.227, 0.785])
WIDE = (np.full(7, -10.0), np.full(7, 10.0))
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def arm() -> Arm:
    return Arm(read_urdf(resource("urdf/panda.urdf.xacro")))


def configurations(count: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(LOW, HIGH, (count, 7))


@pytest.mark.sim
def test_the_model_agrees_with_the_simulator_below_a_millimetre_and_a_milliradian(arm: Arm) -> None:
    from dtvla.sim.env import SimEnv

    env = SimEnv("embedded", 0, render=False)
    try:
        env.reset(seed=0, settle_steps=0)
        robot: Any = env._env.env.robots[0]
        sim = robot.sim
        site = robot.gripper.important_sites["grip_site"]
        hand = robot.robot_model.eef_name
        base = sim.data.get_body_xpos(robot.robot_model.root_body)
        metres, radians = [], []
        for positions in configurations(200):
            sim.data.qpos[robot._ref_joint_pos_indexes] = positions
            sim.forward()
            pose = arm.forward(positions)
            metres.append(np.linalg.norm(sim.data.get_site_xpos(site) - base - pose.position_m))
            seen = sim.data.get_body_xmat(hand).reshape(3, 3)
            radians.append(np.linalg.norm(log_rotation(seen.T @ pose.rotation)))
    finally:
        env.close()
    assert max(metres) < 1e-3
    assert max(radians) < 1e-3


def test_the_jacobian_is_the_derivative_of_the_pose(arm: Arm) -> None:
    step = 1e-6
    for positions in configurations(20):
        jacobian, pose = arm.jacobian(positions), arm.forward(positions)
        for joint in range(7):
            moved = arm.forward(positions + step * np.eye(7)[joint])
            linear = (moved.position_m - pose.position_m) / step
            angular = log_rotation(moved.rotation @ pose.rotation.T) / step
            np.testing.assert_allclose(jacobian[:, joint], [*linear, *angular], atol=1e-5)


def test_another_base_only_changes_the_frame() -> None:
    model = read_urdf(resource("urdf/panda.urdf.xacro"))
    shifted = model.replace(
        "</robot>",
        '<link name="world"/><joint name="mount" type="fixed">'
        '<parent link="world"/><child link="panda_link0"/>'
        '<origin xyz="0.5 -0.2 0.8" rpy="0.3 -0.2 1.1"/></joint></robot>',
    )
    plain, mounted = Arm(model), Arm(shifted)
    for positions in configurations(3):
        np.testing.assert_allclose(
            mounted.forward(positions).position_m, plain.forward(positions).position_m, atol=1e-12
        )
        np.testing.assert_allclose(mounted.jacobian(positions), plain.jacobian(positions), atol=1e-12)


def test_the_fingers_are_no_part_of_the_arm(arm: Arm) -> None:
    assert arm.joint_names == tuple(f"panda_joint{n}" for n in range(1, 8))
    assert arm.joint_count == 7


def test_without_pinocchio_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pinocchio", None)
    with pytest.raises(KinematicsUnavailable, match="pip install pin"):
        Arm("<robot/>")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"urdf": "no xml"}, "cannot be read"),
        ({"tip": "panda_nose"}, "no link 'panda_nose'"),
        ({"base": "panda_link3"}, "moves"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_in_words(change: dict[str, str], words: str) -> None:
    given = {"urdf": read_urdf(resource("urdf/panda.urdf.xacro")), **change}
    with pytest.raises(KinematicsUnavailable, match=words):
        Arm(given.pop("urdf"), **given)


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(KinematicsUnavailable, match=r"nowhere\.urdf does not exist"):
        read_urdf(tmp_path / "nowhere.urdf")


def test_a_xacro_without_xacro_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xacro", None)
    (tmp_path / "robot.urdf.xacro").write_text("<robot/>")
    with pytest.raises(KinematicsUnavailable, match="expand the file once"):
        read_urdf(tmp_path / "robot.urdf.xacro")


@pytest.mark.parametrize("positions", [np.zeros(9), np.full(7, np.nan), np.full(7, np.inf)])
def test_joint_positions_that_are_not_seven_finite_numbers_are_refused(
    arm: Arm, positions: np.ndarray
) -> None:
    with pytest.raises(ValueError, match="7 finite"):
        arm.forward(positions)


def test_small_steps_lead_to_the_pose_asked_for(arm: Arm) -> None:
    positions = HOME.copy()
    start = arm.forward(positions)
    goal = start.position_m + np.array([0.1, -0.15, 0.08])
    turned = exp_rotation(np.array([0.2, -0.3, 0.4])) @ start.rotation
    dt_s = 0.01
    for _ in range(600):
        pose = arm.forward(positions)
        error = np.concatenate([goal - pose.position_m, log_rotation(turned @ pose.rotation.T)])
        bounds = joint_velocity_bounds(PANDA, positions, dt_s)
        step = differential_step(arm.jacobian(positions), 3.0 * error, bounds)
        positions = positions + step.velocities_rad_s * dt_s
    pose = arm.forward(positions)
    np.testing.assert_allclose(pose.position_m, goal, atol=1e-6)
    assert np.linalg.norm(log_rotation(turned @ pose.rotation.T)) < 1e-6


def test_away_from_limits_and_singularities_the_twist_is_exact(arm: Arm) -> None:
    twist = np.array([0.1, -0.05, 0.2, 0.3, 0.1, -0.2])
    step = differential_step(arm.jacobian(HOME), twist, WIDE)
    np.testing.assert_allclose(step.twist, twist, atol=1e-6)
    assert (step.share, step.damping, step.events) == (1.0, 0.0, ())


def test_at_a_singularity_the_joints_stay_slow(arm: Arm) -> None:
    stretched = np.array([0.0, 0.0, 0.0, -0.0698, 0.0, 0.0, 0.0])
    outwards = np.array([0.0, 0.0, 0.3, 0.0, 0.0, 0.0])
    step = differential_step(arm.jacobian(stretched), outwards, WIDE)
    assert step.damping > 0.0
    assert np.linalg.norm(step.velocities_rad_s) < 10.0


def test_another_joint_takes_over_where_one_is_blocked(arm: Arm) -> None:
    """Scaling alone would stand still: seven joints can go round one that is at its end."""
    low, high = WIDE[0].copy(), WIDE[1].copy()
    low[2] = high[2] = 0.0
    twist = np.array([0.0, 0.1, 0.0, 0.0, 0.0, 0.0])
    jacobian = arm.jacobian(HOME + np.array([0, 0, 0.3, 0, 0.2, 0, 0]))
    step = differential_step(jacobian, twist, (low, high))
    assert step.velocities_rad_s[2] == 0.0
    assert step.share == 1.0
    np.testing.assert_allclose(step.twist, twist, atol=1e-4)
    assert [event.limit for event in step.events] == ["velocity of joint 3"]


@settings(deadline=None, max_examples=150)
@given(seeds, st.floats(0.01, 5.0), st.floats(0.0, 2.0))
def test_bounds_are_kept_and_the_path_is_not_bent(arm: Arm, seed: int, size: float, room: float) -> None:
    rng = np.random.default_rng(seed)
    positions = rng.uniform(LOW, HIGH)
    bounds = (-rng.uniform(0, room + 1e-12, 7), rng.uniform(0, room + 1e-12, 7))
    twist = size * rng.normal(size=6)
    jacobian = arm.jacobian(positions)
    step = differential_step(jacobian, twist, bounds)
    assert (step.velocities_rad_s >= bounds[0]).all()
    assert (step.velocities_rad_s <= bounds[1]).all()
    assert 0.0 <= step.share <= 1.0
    unbounded = differential_step(jacobian, twist, (np.full(7, -1e9), np.full(7, 1e9))).twist
    miss = np.linalg.norm(step.twist - step.share * unbounded)
    assert miss <= 2e-3 * step.share * np.linalg.norm(unbounded) + 1e-9


@settings(deadline=None, max_examples=200)
@given(seeds)
def test_the_bounded_minimum_is_the_minimum(seed: int) -> None:
    """Against scipy's bounded least squares."""
    rng = np.random.default_rng(seed)
    matrix, right = rng.normal(size=(9, 7)), rng.normal(size=9)
    low, high = -rng.uniform(0, 0.5, 7) * rng.integers(0, 2, 7), rng.uniform(1e-3, 0.5, 7)
    x = bounded_minimum(matrix.T @ matrix, matrix.T @ right, low, high)
    low_open = np.where(low == 0.0, -1e-12, low)
    expected = lsq_linear(matrix, right, (low_open, high), method="bvls", tol=1e-14).x
    assert np.linalg.norm(matrix @ x - right) <= np.linalg.norm(matrix @ expected - right) + 1e-9


@given(arrays(np.float64, 6, elements=st.sampled_from([0.0, 1.0, np.nan, np.inf])))
def test_a_twist_that_is_not_finite_is_refused(twist: np.ndarray) -> None:
    if np.isfinite(twist).all():
        return
    with pytest.raises(ValueError, match="finite"):
        differential_step(np.eye(6, 7), twist, WIDE)


def test_bounds_without_standing_still_are_refused() -> None:
    with pytest.raises(ValueError, match="never rest"):
        differential_step(np.eye(6, 7), np.zeros(6), (np.full(7, 0.1), np.full(7, 1.0)))


@settings(max_examples=200)
@given(arrays(np.float64, 3, elements=st.floats(-1.8, 1.8)))
def test_logarithm_and_exponential_undo_each_other(vector: np.ndarray) -> None:
    np.testing.assert_allclose(log_rotation(exp_rotation(vector)), vector, atol=1e-9)


@pytest.mark.parametrize("axis", [(1.0, 0, 0), (0, 1.0, 0), (0, 0, -1.0), (0.6, 0, 0.8), (-0.6, 0.8, 0)])
@pytest.mark.parametrize("angle", [np.pi, np.pi - 1e-9, np.pi - 1e-7, np.pi - 1e-5, 1e-9])
def test_the_logarithm_holds_at_a_half_turn(axis: tuple[float, ...], angle: float) -> None:
    rotation = exp_rotation(angle * np.array(axis))
    again = exp_rotation(log_rotation(rotation))
    np.testing.assert_allclose(again, rotation, atol=1e-9)
