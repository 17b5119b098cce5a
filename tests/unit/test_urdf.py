"""The robot model in urdf/ against the simulator's arm and against the limits the datasheet gives."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import xacro
from scipy.spatial.transform import Rotation

from dtvla.resources import resource
from dtvla.sim.env import JOINT_NAMES, SimEnv

POSES = 8


@pytest.fixture(scope="module")
def urdf() -> ET.Element:
    return ET.fromstring(xacro.process_file(str(resource("urdf/panda.urdf.xacro"))).toxml())


def _numbers(element: ET.Element | None, name: str, default: str = "0 0 0") -> np.ndarray:
    text = default if element is None else element.get(name, default)
    return np.array([float(value) for value in text.split()])


def _transform(xyz: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """A 4x4 homogeneous transform."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, xyz
    return matrix


def _forward(urdf: ET.Element, link: str, positions: dict[str, float]) -> np.ndarray:
    """Pose of `link` in panda_link0 [4, 4], for joint positions in rad."""
    parent_joint = {joint.find("child").get("link"): joint for joint in urdf.findall("joint")}
    pose = np.eye(4)
    while link != "panda_link0":
        joint = parent_joint[link]
        origin = joint.find("origin")
        rotation = Rotation.from_euler("xyz", _numbers(origin, "rpy")).as_matrix()
        turn = positions.get(joint.get("name"), 0.0) * _numbers(joint.find("axis"), "xyz")
        step = _transform(_numbers(origin, "xyz"), rotation @ Rotation.from_rotvec(turn).as_matrix())
        pose = step @ pose
        link = joint.find("parent").get("link")
    return pose


def test_the_model_puts_the_gripper_where_the_simulator_does(urdf: ET.Element) -> None:
    env = SimEnv("embedded", 0, render=False)
    rng = np.random.default_rng(0)
    try:
        observation = env.reset(seed=3)
        for _ in range(POSES):
            action = np.append(rng.uniform(-1, 1, 3), np.append(rng.uniform(-0.3, 0.3, 3), -1.0))
            for _ in range(6):
                observation = env.step(action, look=False)
            joints = dict(zip(JOINT_NAMES, observation.joint_positions.tolist(), strict=True))
            pose = _forward(urdf, "panda_grip_site", joints)
            np.testing.assert_allclose(pose[:3, 3], observation.ee_position, atol=1e-3)
            turned = Rotation.from_quat(observation.ee_quaternion).inv() * Rotation.from_matrix(pose[:3, :3])
            assert turned.magnitude() < np.radians(0.2)
    finally:
        env.close()


def test_the_tool_centre_point_lies_where_the_datasheet_says(urdf: ET.Element) -> None:
    """Flange at 107 mm, fingertips' centre 103.4 mm further (Franka's documentation)."""
    stretched = _forward(urdf, "panda_hand_tcp", {})
    np.testing.assert_allclose(
        stretched[:3, 3], [0.088, 0.0, 0.333 + 0.316 + 0.384 - 0.107 - 0.1034], atol=1e-9
    )


def test_every_arm_joint_carries_the_limits_of_the_panda(urdf: ET.Element) -> None:
    lower = [-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973]
    upper = [2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973]
    velocity = [2.175] * 4 + [2.61] * 3
    effort = [87.0] * 4 + [12.0] * 3
    limits = [urdf.find(f"joint[@name='{name}']/limit") for name in JOINT_NAMES]
    for attribute, expected in (
        ("lower", lower),
        ("upper", upper),
        ("velocity", velocity),
        ("effort", effort),
    ):
        assert [float(limit.get(attribute)) for limit in limits] == expected


def test_the_fingers_open_eight_centimetres(urdf: ET.Element) -> None:
    spans = [float(urdf.find(f"joint[@name='panda_finger_joint{n}']/limit").get("upper")) for n in (1, 2)]
    assert sum(spans) == pytest.approx(0.08)


def test_the_model_ships_no_meshes(urdf: ET.Element) -> None:
    assert urdf.findall(".//mesh") == []


def test_every_link_hangs_on_the_base(urdf: ET.Element) -> None:
    links = {link.get("name") for link in urdf.findall("link")}
    children = {joint.find("child").get("link") for joint in urdf.findall("joint")}
    assert links - children == {"panda_link0"}


def test_rviz_configuration_shows_this_robot() -> None:
    text = Path(resource("urdf/dtvla.rviz")).read_text()
    assert "Fixed Frame: panda_link0" in text
    assert "/reasoning_markers" in text
