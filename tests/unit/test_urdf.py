"""The robot models in urdf/ against the simulator, the kinematics code and the limits of the arms."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from dtvla.control.kinematics import Arm, read_urdf
from dtvla.control.robots import ROBOTS
from dtvla.resources import resource
from dtvla.sim.env import JOINT_NAMES, MUJOCO_CAMERAS, SimEnv

POSES = 8
FLIP = np.diag([1.0, -1.0, -1.0])  # MuJoCo looks along -z with y up, an optical frame along z with y down
MODELS = {arm: ET.fromstring(read_urdf(resource(f"urdf/{arm}.urdf.xacro"))) for arm in ROBOTS}
arms = pytest.mark.parametrize("arm", sorted(ROBOTS))


def _numbers(element: ET.Element | None, name: str, default: str = "0 0 0") -> np.ndarray:
    text = default if element is None else element.get(name, default)
    return np.array([float(value) for value in text.split()])


def _transform(xyz: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """A 4x4 homogeneous transform."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, xyz
    return matrix


def _forward(arm: str, link: str, positions: dict[str, float]) -> np.ndarray:
    """Pose of `link` in the arm's base [4, 4], for joint positions in rad: URDF's rules, written out."""
    parent_joint = {joint.find("child").get("link"): joint for joint in MODELS[arm].findall("joint")}
    pose = np.eye(4)
    while link != f"{arm}_link0":
        joint = parent_joint[link]
        origin = joint.find("origin")
        rotation = Rotation.from_euler("xyz", _numbers(origin, "rpy")).as_matrix()
        turn = positions.get(joint.get("name"), 0.0) * _numbers(joint.find("axis"), "xyz")
        step = _transform(_numbers(origin, "xyz"), rotation @ Rotation.from_rotvec(turn).as_matrix())
        pose = step @ pose
        link = joint.find("parent").get("link")
    return pose


def _limits(arm: str, attribute: str) -> tuple[float, ...]:
    limits = [MODELS[arm].find(f"joint[@name='{arm}_joint{n}']/limit") for n in range(1, 8)]
    return tuple(float(limit.get(attribute)) for limit in limits)


def test_the_model_puts_the_gripper_where_the_simulator_does() -> None:
    env = SimEnv("embedded", 0, render=False)
    rng = np.random.default_rng(0)
    try:
        observation = env.reset(seed=3)
        for _ in range(POSES):
            action = np.append(rng.uniform(-1, 1, 3), np.append(rng.uniform(-0.3, 0.3, 3), -1.0))
            for _ in range(6):
                observation = env.step(action, look=False)
            joints = dict(zip(JOINT_NAMES, observation.joint_positions.tolist(), strict=True))
            pose = _forward("panda", "panda_grip_site", joints)
            np.testing.assert_allclose(pose[:3, 3], observation.ee_position, atol=1e-3)
            turned = Rotation.from_quat(observation.ee_quaternion).inv() * Rotation.from_matrix(pose[:3, :3])
            assert turned.magnitude() < np.radians(0.2)
    finally:
        env.close()


def test_the_cameras_stand_where_the_simulator_has_them() -> None:
    """The frames are those that the images name in their headers."""
    env = SimEnv("embedded", 0, render=False)
    try:
        observation = env.reset(seed=0)
        robot: Any = env._env.env.robots[0]
        data, base = robot.sim.data, np.asarray(robot.base_pos)
        joints = dict(zip(JOINT_NAMES, observation.joint_positions.tolist(), strict=True))
        for name, camera in MUJOCO_CAMERAS.items():
            pose = _forward("panda", f"{name}_optical_frame", joints)
            np.testing.assert_allclose(pose[:3, 3], data.get_camera_xpos(camera) - base, atol=1e-3)
            turned = (data.get_camera_xmat(camera).reshape(3, 3) @ FLIP).T @ pose[:3, :3]
            assert Rotation.from_matrix(turned).magnitude() < np.radians(0.2)
    finally:
        env.close()


@arms
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_pinocchio_reads_the_model_as_urdfs_rules_do(arm: str, seed: int) -> None:
    low, high = _limits(arm, "lower"), _limits(arm, "upper")
    positions = np.random.default_rng(seed).uniform(low, high)
    joints = {f"{arm}_joint{n}": value for n, value in enumerate(positions, 1)}
    for link in (f"{arm}_grip_site", f"{arm}_hand_tcp", "wrist_optical_frame"):
        pose = Arm(ET.tostring(MODELS[arm], "unicode"), tip=link, base=f"{arm}_link0").forward(positions)
        expected = _forward(arm, link, joints)
        np.testing.assert_allclose(pose.position_m, expected[:3, 3], atol=1e-9)
        np.testing.assert_allclose(pose.rotation, expected[:3, :3], atol=1e-9)


@arms
def test_the_tool_centre_point_lies_where_the_datasheet_says(arm: str) -> None:
    """Flange at 107 mm, fingertips' centre 103.4 mm further (Franka's documentation)."""
    stretched = _forward(arm, f"{arm}_hand_tcp", {})
    np.testing.assert_allclose(
        stretched[:3, 3], [0.088, 0.0, 0.333 + 0.316 + 0.384 - 0.107 - 0.1034], atol=1e-9
    )


@arms
def test_every_arm_joint_carries_the_limits_that_the_controller_keeps(arm: str) -> None:
    robot = ROBOTS[arm]
    assert _limits(arm, "lower") == robot.min_joint_position_rad
    assert _limits(arm, "upper") == robot.max_joint_position_rad
    assert _limits(arm, "velocity") == robot.max_joint_velocity_rad_s
    assert _limits(arm, "effort") == robot.max_torque_nm


@arms
def test_the_fingers_open_as_far_as_the_controller_lets_them(arm: str) -> None:
    joints = [MODELS[arm].find(f"joint[@name='{arm}_finger_joint{n}']") for n in (1, 2)]
    limits = [joint.find("limit") for joint in joints]
    gripper = ROBOTS[arm].gripper
    assert sum(float(limit.get("upper")) for limit in limits) == pytest.approx(gripper.max_opening_m)
    assert joints[1].find("mimic").get("joint") == joints[0].get("name")


@arms
def test_the_model_ships_no_meshes_and_shows_every_moving_link(arm: str) -> None:
    assert MODELS[arm].findall(".//mesh") == []
    for n in range(8):
        assert MODELS[arm].find(f"link[@name='{arm}_link{n}']/visual") is not None


@arms
def test_every_link_hangs_on_the_base_and_every_name_stands_once(arm: str) -> None:
    links = [link.get("name") for link in MODELS[arm].findall("link")]
    joints = [joint.get("name") for joint in MODELS[arm].findall("joint")]
    children = {joint.find("child").get("link") for joint in MODELS[arm].findall("joint")}
    assert set(links) - children == {f"{arm}_link0"}
    assert len(set(links)) == len(links)
    assert len(set(joints)) == len(joints)


def test_a_calibrated_camera_can_be_given_to_the_model() -> None:
    import xacro

    path = str(resource("urdf/fr3.urdf.xacro"))
    text = xacro.process_file(path, mappings={"agentview_xyz": "1 2 3", "agentview_rpy": "0 0 0"}).toxml()
    origin = ET.fromstring(text).find("joint[@name='agentview_optical_joint']/origin")
    assert (origin.get("xyz"), origin.get("rpy")) == ("1 2 3", "0 0 0")
