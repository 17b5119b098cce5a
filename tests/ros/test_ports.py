"""The table of topics, services and actions (dtvla/bringup/ports.py) is what the running nodes really have.

The SROS2 policy is derived from that table: a topic that is missing there would be denied on a secured robot,
one too many would be an open door.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
from harness import SPECS, NodeProcess, Probe, probe_domain
from rclpy.action import get_action_client_names_and_types_by_node, get_action_server_names_and_types_by_node
from sensor_msgs.msg import Image

from dtvla.bringup.graph import EXECUTABLES, GraphOptions, managed
from dtvla.bringup.ports import Ports, ports
from dtvla.bringup.sros2 import RobotSite, grants

pytestmark = pytest.mark.ros

# The configurations whose topics differ, by node; the table lists what any of them uses.
SLOW = {"max_linear_velocity_m_s": 0.1, "max_angular_velocity_rad_s": 0.1}
ARM = {"robot": "panda", "lockstep": False, "joint_limits": False, **SLOW}
CONFIGURATIONS: dict[str, list[dict[str, Any]]] = {
    "controller_node": [{"robot": "simulator"}, {**ARM, "dry_run": True}, {**ARM, "dry_run": False}],
    "recorder_node": [{"video": False}],
    "libero_bridge_node": [{"autostart": False}, {"autostart": False, "follow": True}],
}
# What cannot be seen here, and why.
UNSEEN: dict[str, set[tuple[str, str]]] = {}
if importlib.util.find_spec("control_msgs") is None:  # not on PyPI
    UNSEEN["controller_node"] = {("sends", "/gripper_action")}

Used = set[tuple[str, str]]  # (kind as in Ports, full name)


def expanded(name: str, site: RobotSite) -> Used:
    """What the policy grants a node, by the names that the graph shows."""
    grant = next(grant for grant in grants(site) if grant.node == name)
    return {(kind, grant.full(one)) for kind, names in asdict(grant.allowed).items() for one in names}


def used(probe: Probe, name: str) -> Used:
    """What the ROS graph says that a node uses."""
    node = probe.node
    questions: dict[str, Callable[[str, str], Iterable[tuple[str, list[str]]]]] = {
        "publishes": node.get_publisher_names_and_types_by_node,
        "subscribes": node.get_subscriber_names_and_types_by_node,
        "serves": node.get_service_names_and_types_by_node,
        "calls": node.get_client_names_and_types_by_node,
        "executes": lambda n, ns: get_action_server_names_and_types_by_node(node, n, ns),
        "sends": lambda n, ns: get_action_client_names_and_types_by_node(node, n, ns),
    }
    assert set(questions) == {field.name for field in fields(Ports)}
    found = {(kind, topic) for kind, ask in questions.items() for topic, _ in ask(name, "/")}
    return {(kind, topic) for kind, topic in found if "/_action/" not in topic}  # the inside of an action


@pytest.mark.parametrize("name", [node.name for node in EXECUTABLES])
def test_a_node_uses_exactly_what_the_table_says(name: str, random_bundle_path: Path, tmp_path: Path) -> None:
    wanted = expanded(name, RobotSite())
    seen: Used = set()
    for index, parameters in enumerate(CONFIGURATIONS.get(name, [{}])):
        folder = tmp_path / f"run{index}"
        folder.mkdir()
        seen |= look(name, {**needed(name, random_bundle_path, folder), **parameters}, wanted, folder)
    missing = seen - wanted
    assert not missing, (
        f"{name} uses what the table does not list, and would be denied on a secured robot. Add to its row "
        f"in OWN of dtvla/bringup/ports.py: {words(missing)}."
    )
    superfluous = wanted - seen - UNSEEN.get(name, set())
    assert not superfluous, (
        f"The table lists for {name} what it does not use: {words(superfluous)}. Take it out of its row in "
        "OWN of dtvla/bringup/ports.py; or, if it needs other parameters, add these to CONFIGURATIONS here."
    )


def test_a_policy_node_of_two_robots_uses_exactly_what_its_policy_grants(
    random_bundle_path: Path, tmp_path: Path
) -> None:
    wanted = expanded("policy_node", RobotSite(robots=("left", "right")))
    parameters = {**needed("policy_node", random_bundle_path, tmp_path), "robots": "left,right"}
    assert look("policy_node", parameters, wanted, tmp_path) == wanted


def look(name: str, parameters: dict[str, Any], wanted: Used, folder: Path) -> Used:
    """Starts a node, activates it, and asks the graph until it shows all that is wanted (or nothing more)."""
    with probe_domain() as (probe, domain), NodeProcess(name, domain, folder, **parameters):
        probe.listen(Image, "/reasoning/overlay")  # while somebody looks at it, the overlay opens its eyes
        if SPECS[name].lifecycle:
            probe.bring_up([name])
        else:
            probe.expect(lambda: name in probe.node.get_node_names(), f"{name} does not start")
        probe.wait(lambda: used(probe, name) >= wanted, 3.0)  # one of several configurations never has all
        return used(probe, name)


def needed(name: str, bundle: Path, folder: Path) -> dict[str, Any]:
    """The parameters that a node needs to become active at all, and to listen to the clock."""
    parameters: dict[str, Any] = {}
    if "/clock" in ports(SPECS[name]).subscribes:
        parameters["use_sim_time"] = True
    if name == "policy_node":
        parameters["bundle"] = str(bundle)
    if name == "recorder_node":
        parameters["output"] = str(folder / "recording")
    if name == "lifecycle_manager_node":
        whole = GraphOptions(bundle=bundle, record=True, markers=True)
        parameters["nodes"] = ",".join(managed(whole))
    return parameters


def words(found: Used) -> str:
    return ", ".join(f"{kind} {topic.lstrip('/')!r}" for kind, topic in sorted(found))
