"""SROS2: what every node of the graph may say and hear, written as a policy that `ros2 security` takes.

The policy is derived from `dtvla.bringup.ports`. An enclave has the full name of its node; beside the nodes
there is one for the operator, who launches, watches and commands. Format: SROS2 policy 0.2.0 (ros2/sros2,
policy.xsd), in which names without a leading `/` lie in the profile's namespace, and `~` is the node.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dtvla.bringup.graph import EXECUTABLES, GRAPH, MANAGER
from dtvla.bringup.ports import CAMERA, EVERY_NODE, NODE, Ports, ports
from dtvla.errors import InputError
from dtvla.nodes.common.names import NAME, RULE, TOPIC
from dtvla.policy.options import CAMERAS

FILE = "policy.xml"
OPERATOR = "/"  # the enclave that ROS tools and launchers are in when nothing names another
ANY = "*"  # DDS matches names in permissions as a shell does
SERVES_MANY = "policy_node"  # its parameter `robots`: one node, topics below each robot's namespace
_VERSION = "0.2.0"
# Element, its entries, attribute: by kind of `Ports`.
_ELEMENTS = {
    "publishes": ("topics", "topic", "publish"),
    "subscribes": ("topics", "topic", "subscribe"),
    "serves": ("services", "service", "reply"),
    "calls": ("services", "service", "request"),
    "executes": ("actions", "action", "execute"),
    "sends": ("actions", "action", "call"),
}


@dataclass(frozen=True)
class RobotSite:
    """Where the graph runs.

    Attributes:
        namespace: of all nodes; empty for none.
        robots: namespaces of several robots that one policy node serves (its parameter `robots`).
        cameras: names of each robot's cameras.
        remappings: topic, service and action names that the robot's driver wants otherwise.
    """

    namespace: str = ""
    robots: tuple[str, ...] = ()
    cameras: tuple[str, ...] = CAMERAS
    remappings: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for part in self.namespace.strip("/").split("/") if self.namespace.strip("/") else []:
            _check(part, "Namespace", NAME)
        for robot in self.robots:
            _check(robot, "Robot", NAME)
        for camera in self.cameras:
            _check(camera, "Camera", NAME)
        for pair in self.remappings.items():
            for name in pair:
                _check(name, "Remapping", TOPIC)


@dataclass(frozen=True)
class Grant:
    """What one node may do: names as in the policy, relative to `namespace` or absolute."""

    namespace: str  # with its leading slash
    node: str
    allowed: Ports

    @property
    def enclave(self) -> str:
        """The enclave's path: the node's full name; the operator's tools have no name to go by."""
        return OPERATOR if self.node == ANY else enclave(self.node, self.namespace)

    def full(self, name: str) -> str:
        """A name as DDS sees it (before the prefix for its kind)."""
        if name.startswith("/"):
            return name
        base = self.namespace.rstrip("/")
        return f"{base}/{self.node}{name[1:]}" if name.startswith("~") else f"{base}/{name}"


def enclave(node: str, namespace: str = "") -> str:
    """The enclave that a node is started with (`--ros-args --enclave`)."""
    return "/".join(["", *(part for part in (namespace.strip("/"), node) if part)])


def grants(site: RobotSite) -> list[Grant]:
    """What each node of the graph may do, the operator last."""
    found = []
    for node in EXECUTABLES:
        if site.robots and node.name == SERVES_MANY:
            found.append(Grant(_absolute(site.namespace), node.name, _for_robots(ports(node), site)))
            continue
        robots = site.robots or ("",)
        if node is MANAGER:  # also one beside the policy node that serves them all
            robots = tuple(dict.fromkeys((*robots, "")))
        for robot in robots:
            place = _absolute(f"{site.namespace}/{robot}")
            found.append(Grant(place, node.name, _named(ports(node), site)))
    return [*found, _operator(found, site)]


def policy(site: RobotSite) -> bytes:
    """The policy as an XML file."""
    root = ET.Element("policy", version=_VERSION)
    enclaves = ET.SubElement(root, "enclaves")
    for grant in grants(site):
        profiles = ET.SubElement(ET.SubElement(enclaves, "enclave", path=grant.enclave), "profiles")
        profile = ET.SubElement(profiles, "profile", ns=grant.namespace, node=grant.node)
        for kind, names in asdict(grant.allowed).items():
            element, entry, attribute = _ELEMENTS[kind]
            if names:
                group = ET.SubElement(profile, element, {attribute: "ALLOW"})
                for name in names:
                    ET.SubElement(group, entry).text = name
    ET.indent(root)
    document: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def write(folder: Path, site: RobotSite) -> Path:
    """Writes the policy into a folder; returns its path.

    Raises:
        InputError: there is one already.
    """
    path = folder / FILE
    if path.exists():
        raise InputError(f"{path} exists already and is not overwritten. Remove it, or name another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(policy(site))
    return path


def remappings(words: Sequence[str]) -> dict[str, str]:
    """Remappings as `ros2 run` takes them, such as `target_pose:=/arm/target_pose`.

    Raises:
        InputError: one has no such form.
    """
    found = {}
    for word in words:
        old, separator, new = word.partition(":=")
        if not (separator and old and new):
            raise InputError(f"A remapping is FROM:=TO, such as target_pose:=/arm/target_pose, not '{word}'.")
        found[old] = new
    return found


def _operator(nodes: Sequence[Grant], site: RobotSite) -> Grant:
    """Who launches, watches and commands: any node in the enclave, as tools name their nodes by process."""
    others: dict[str, list[str]] = {kind: [] for kind in _ELEMENTS}
    for grant in nodes:
        for kind, names in asdict(grant.allowed).items():
            others[kind] += [grant.full(name) for name in names]
    says = [name for name in others["subscribes"] if name.split("/")[-1] == "instruction"]
    allowed = Ports(
        publishes=tuple(says),
        subscribes=tuple(others["publishes"]),
        calls=tuple(others["serves"]),
        sends=tuple(others["executes"]),
    )
    return Grant("/", ANY, allowed | EVERY_NODE)


def _for_robots(common: Ports, site: RobotSite) -> Ports:
    """The ports of a node that serves several robots: its relative names once below each namespace."""
    named = _named(common, site)
    lists = {
        kind: tuple(
            name if name.startswith(("/", "~")) else f"{robot}/{name}"
            for robot in site.robots
            for name in names
        )
        for kind, names in asdict(named).items()
    }
    return Ports(**lists) | Ports()


def _named(common: Ports, site: RobotSite) -> Ports:
    """The ports with the cameras' names in, and remapped."""
    lists = {kind: tuple(_expand(names, site)) for kind, names in asdict(common).items()}
    return Ports(**lists) | Ports()


def _expand(names: Sequence[str], site: RobotSite) -> Iterator[str]:
    stand_for = {CAMERA: site.cameras, NODE: [node.name for node in GRAPH if node.lifecycle]}
    for name in names:
        place = next((place for place in stand_for if place in name), None)
        for word in stand_for[place] if place else ("",):
            filled = name.replace(place, word) if place else name
            yield site.remappings.get(filled, filled)


def _absolute(namespace: str) -> str:
    return "/" + "/".join(part for part in namespace.split("/") if part)


def _check(name: str, what: str, pattern: re.Pattern[str]) -> None:
    if not pattern.fullmatch(name):
        raise InputError(f"{what} '{name}' is no ROS name: {RULE}.")
