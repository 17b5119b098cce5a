"""The rviz configuration subscribes to what the graph publishes, in a way that it is heard."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest
import yaml

from dtvla.bringup.ports import CAMERA, OWN
from dtvla.bringup.rviz_config import CONFIG, TRANSFORMS, remappings, topics
from dtvla.control.kinematics import read_urdf
from dtvla.control.options import ARM_NAMES
from dtvla.policy.options import CAMERAS
from dtvla.resources import resource

MANAGER = yaml.safe_load(resource(CONFIG).read_text())["Visualization Manager"]
BY_CLASS = {  # displays and what they draw
    "rviz_default_plugins/MarkerArray": {"/reasoning_markers"},
    "rviz_default_plugins/Image": {*(f"/{name}/image_raw" for name in CAMERAS), "/reasoning/overlay"},
    "rviz_default_plugins/RobotModel": {"/robot_description"},
    "rviz_default_plugins/Pose": {"/target_pose", "/controller/preview_pose"},
}


def displays(kind: str) -> list[dict[str, Any]]:
    return [each for each in MANAGER["Displays"] if each["Class"] == kind]


def topic_of(display: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = display.get("Topic") or display["Description Topic"]
    return found


def published() -> set[str]:
    """What the nodes of the graph publish; tests/ros/test_ports.py holds the running ones to that table."""
    names = [name for ports in OWN.values() for name in ports.publishes]
    full = {name.replace(CAMERA, camera) for name in names for camera in CAMERAS}
    return {name if name.startswith("/") else f"/{name}" for name in full}


def test_every_topic_is_published_by_the_graph_or_by_the_state_publisher_beside_rviz() -> None:
    assert set(topics(resource(CONFIG))) - {"/robot_description"} <= published()


def test_it_shows_robot_frames_cameras_overlay_markers_and_targets() -> None:
    for kind, wanted in BY_CLASS.items():
        assert {topic_of(display)["Value"] for display in displays(kind)} == wanted
    assert len(displays("rviz_default_plugins/TF")) == 1
    assert all(display["Enabled"] for display in MANAGER["Displays"])


def test_cameras_are_asked_for_as_they_send_and_the_latched_model_is_waited_for() -> None:
    """A reliable subscriber hears nothing of a best-effort camera, a volatile one no latched description."""
    for display in displays("rviz_default_plugins/Image"):
        if topic_of(display)["Value"].endswith("/image_raw"):
            assert topic_of(display)["Reliability Policy"] == "Best Effort"
    (model,) = displays("rviz_default_plugins/RobotModel")
    assert topic_of(model)["Durability Policy"] == "Transient Local"


@pytest.mark.parametrize("robot", ARM_NAMES)
def test_the_frames_it_shows_are_links_of_the_robot(robot: str) -> None:
    urdf = ET.fromstring(read_urdf(resource(f"urdf/{robot}.urdf.xacro")))
    links = {str(link.get("name")) for link in urdf.findall("link")}
    (frames,) = displays("rviz_default_plugins/TF")
    shown = {link for link in links if re.fullmatch(frames["Filter (whitelist)"], link)}
    wanted = {f"{robot}_link0", f"{robot}_grip_site", *(f"{name}_optical_frame" for name in CAMERAS)}
    assert shown == wanted
    assert MANAGER["Global Options"]["Fixed Frame"] == "panda_link0"  # the launch file names the robot's own


def test_topics_move_below_a_namespace_and_cameras_to_their_own_names() -> None:
    pairs = dict(remappings(resource(CONFIG), "wrist=/d405/color/image_raw"))
    assert set(pairs) == {*topics(resource(CONFIG)), *TRANSFORMS}
    assert pairs["/reasoning_markers"] == "reasoning_markers"
    assert pairs["/tf"] == "tf"
    assert pairs["/wrist/image_raw"] == "/d405/color/image_raw"
    with pytest.raises(ValueError, match="it takes a list such as"):
        remappings(resource(CONFIG), "wrist")


@pytest.mark.parametrize(("robot", "namespace"), [("panda", ""), ("fr3", "left")])
def test_the_launch_file_starts_the_model_and_rviz_for_one_robot(robot: str, namespace: str) -> None:
    launch = pytest.importorskip("launch", reason="launch comes with a ROS installation, not from PyPI")
    pytest.importorskip("launch_ros", reason="launch_ros comes with a ROS installation, not from PyPI")
    from dtvla.bringup.rviz_launch import rviz_description

    context = launch.LaunchContext()
    context.launch_configurations.update(robot=robot, namespace=namespace)
    nodes = []
    for entity in rviz_description().entities:
        nodes += entity.visit(context) or []
    assert [node.node_package for node in nodes] == ["robot_state_publisher", "rviz2"]
    context.launch_configurations["robot"] = "ur5"
    with pytest.raises(ValueError, match="panda, fr3"):
        rviz_description().entities[-1].visit(context)
