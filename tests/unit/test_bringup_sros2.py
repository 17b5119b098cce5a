"""The SROS2 policy grants every node what the table of ports lists, under the names that it will have."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from dtvla.bringup.graph import EXECUTABLES, GRAPH
from dtvla.bringup.launcher import command
from dtvla.bringup.ports import CAMERA, OWN, Ports
from dtvla.bringup.sros2 import RobotSite, enclave, grants, policy, remappings, write

# The grammar of a policy in short (ros2/sros2, policy.xsd 0.2.0): element, children, attributes.
CHILDREN = {
    "policy": {"enclaves"},
    "enclaves": {"enclave"},
    "enclave": {"profiles"},
    "profiles": {"profile"},
    "profile": {"topics", "services", "actions"},
    "topics": {"topic"},
    "services": {"service"},
    "actions": {"action"},
}
ATTRIBUTES = {
    "policy": {"version"},
    "enclave": {"path"},
    "profile": {"ns", "node"},
    "topics": {"publish", "subscribe"},
    "services": {"reply", "request"},
    "actions": {"execute", "call"},
}
SITES = [
    RobotSite(),
    RobotSite("cell"),
    RobotSite("/hall/cell/"),
    RobotSite(robots=("left", "right")),
    RobotSite("cell", ("left", "right"), ("front",), {"target_pose": "/arm/target_pose"}),
]


def granted(site: RobotSite, path: str) -> Ports:
    return next(grant.allowed for grant in grants(site) if grant.enclave == path)


def test_every_node_of_the_graph_stands_in_the_table_and_no_other() -> None:
    missing = {node.name for node in EXECUTABLES} - set(OWN)
    assert not missing, (
        f"Add {missing} to OWN in dtvla/bringup/ports.py: what it publishes, subscribes to and serves."
    )
    gone = set(OWN) - {node.name for node in EXECUTABLES}
    assert not gone, f"Take {gone} out of OWN in dtvla/bringup/ports.py: the graph has no such node."


@pytest.mark.parametrize("site", SITES)
def test_a_policy_has_the_form_that_ros2_security_takes(site: RobotSite) -> None:
    root = ET.fromstring(policy(site))
    assert (root.tag, root.attrib) == ("policy", {"version": "0.2.0"})
    for element in root.iter():
        assert {child.tag for child in element} <= CHILDREN.get(element.tag, set())
        assert set(element.attrib) <= ATTRIBUTES.get(element.tag, set())
        if element.tag in ("topics", "services", "actions"):
            assert set(element.attrib.values()) == {"ALLOW"}
            assert len(element) > 0
        elif element.tag in ("topic", "service", "action"):
            assert element.text
            assert CAMERA not in element.text
    paths = [element.get("path") for element in root.iter("enclave")]
    assert len(set(paths)) == len(paths)


def test_a_node_is_started_in_the_enclave_that_the_policy_names() -> None:
    paths = {grant.enclave for grant in grants(RobotSite())}
    for node in EXECUTABLES:
        line = command(node, {})
        assert line[line.index("--enclave") + 1] == enclave(node.name)
        assert enclave(node.name) in paths
    assert "/" in paths


def test_no_node_but_the_operator_and_the_bridge_may_give_instructions() -> None:
    may = {grant.enclave for grant in grants(RobotSite()) if "instruction" in str(grant.allowed.publishes)}
    assert may == {"/", "/libero_bridge_node"}


@pytest.mark.parametrize(
    ("topic", "only"),
    [
        ("policy/action_chunk", "policy_node"),
        ("controller/ee_delta", "controller_node"),
        ("target_pose", "controller_node"),
        ("/clock", "libero_bridge_node"),
    ],
)
def test_what_moves_an_arm_comes_from_one_node(topic: str, only: str) -> None:
    assert [grant.node for grant in grants(RobotSite()) if topic in grant.allowed.publishes] == [only]


def test_the_operator_may_stop_an_arm_and_release_it_and_bring_every_node_up() -> None:
    allowed = granted(RobotSite("cell"), "/")
    assert {"/cell/stop", "/cell/clear_stop", "/cell/reset_scene"} <= set(allowed.calls)
    assert "/cell/execute_instruction" in allowed.sends
    assert {f"/cell/{node.name}/change_state" for node in GRAPH if node.lifecycle} <= set(allowed.calls)
    assert "/cell/policy/action_chunk" in allowed.subscribes
    assert "/cell/policy/action_chunk" not in allowed.publishes


def test_the_lifecycle_manager_may_change_states_and_report_and_nothing_else() -> None:
    allowed = granted(RobotSite("cell"), "/cell/lifecycle_manager_node")
    managed = [node.name for node in GRAPH if node.lifecycle]
    wanted = {f"{name}/{service}" for name in managed for service in ("change_state", "get_state")}
    assert set(allowed.calls) == wanted
    assert set(allowed.publishes) == {"/diagnostics", "/rosout", "/parameter_events"}
    assert allowed.subscribes == ("/diagnostics",)


def test_one_policy_node_of_several_robots_has_a_manager_beside_it() -> None:
    paths = {grant.enclave for grant in grants(RobotSite("cell", ("left", "right")))}
    assert {f"/cell/{place}lifecycle_manager_node" for place in ("", "left/", "right/")} <= paths


def test_a_namespace_lies_before_every_relative_name() -> None:
    site = RobotSite("/hall/cell/")
    controller = next(grant for grant in grants(site) if grant.node == "controller_node")
    assert controller.enclave == "/hall/cell/controller_node"
    assert controller.full("ee_pose") == "/hall/cell/ee_pose"
    assert controller.full("~/get_state") == "/hall/cell/controller_node/get_state"
    assert controller.full("/diagnostics") == "/diagnostics"


def test_several_robots_have_their_own_nodes_and_one_policy_node() -> None:
    site = RobotSite(robots=("left", "right"))
    paths = {grant.enclave for grant in grants(site)}
    assert {"/left/controller_node", "/right/controller_node", "/policy_node", "/"} <= paths
    assert "/left/policy_node" not in paths
    policy_node = granted(site, "/policy_node")
    assert {"left/policy/action_chunk", "right/policy/action_chunk"} <= set(policy_node.publishes)
    assert "policy/action_chunk" not in policy_node.publishes
    assert policy_node.publishes.count("/rosout") == 1
    said = granted(site, "/")
    assert {"/left/instruction", "/right/instruction"} == set(said.publishes) - {
        "/rosout",
        "/parameter_events",
    }


def test_cameras_and_remapped_names_are_those_of_the_robot() -> None:
    site = RobotSite(
        cameras=("front",), remappings={"target_pose": "/arm/target_pose", "front/image_raw": "/c/rgb"}
    )
    assert "/arm/target_pose" in granted(site, "/controller_node").publishes
    assert "target_pose" not in granted(site, "/controller_node").publishes
    assert "/c/rgb" in granted(site, "/policy_node").subscribes
    assert not any("agentview" in name for name in granted(site, "/policy_node").subscribes)


def test_a_policy_is_never_overwritten(tmp_path: Path) -> None:
    path = write(tmp_path / "new", RobotSite())
    assert path.read_bytes() == policy(RobotSite())
    with pytest.raises(ValueError, match="exists already and is not overwritten"):
        write(tmp_path / "new", RobotSite())


@pytest.mark.parametrize(
    "site",
    [
        {"namespace": "a b"},
        {"namespace": "a//b"},
        {"robots": ("1left",)},
        {"cameras": ("<x>",)},
        {"remappings": {"target_pose": "/arm/../x"}},
        {"remappings": {"target_pose": '"/>'}},
    ],
)
def test_a_name_that_ros_does_not_know_is_refused(site: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="is no ROS name"):
        RobotSite(**site)  # type: ignore[arg-type]


@pytest.mark.parametrize("word", ["target_pose", ":=x", "x:=", "a=b", ""])
def test_a_remapping_of_another_form_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="FROM:=TO"):
        remappings([word])
    assert remappings(["a:=/b"]) == {"a": "/b"}
