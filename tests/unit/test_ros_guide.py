"""The reference says what the graph has: every topic, service, action and parameter, and no other."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import pytest

from dtvla.bringup.ports import EVERY_NODE, LIFECYCLE, OWN
from dtvla.nodes.common.parameters import SCHEMAS, Parameter
from tools.docs import reference_ros

TOPICS = (Path(__file__).parents[2] / "docs/reference/topics.md").read_text()
NODES = reference_ros.nodes()


def first_cells(section: str) -> list[str]:
    """The names in the first column of a section's table."""
    return re.findall(r"^\| `(\S+)` \|", section, re.MULTILINE)


def row(parameter: Parameter) -> str:
    """How the guide shows a parameter."""
    default = parameter.default
    shown = str(default).lower() if isinstance(default, bool) else str(default)
    unit = f" {parameter.unit}" if parameter.unit else ""
    words = f"{parameter.sentence} [{parameter.bounds}{unit}]"
    return f"| `{parameter.name}` | {f'`{shown}`' if shown else 'empty'} | {words} |"


def test_the_guide_names_every_topic_service_and_action_of_the_nodes() -> None:
    used = {name for ports in OWN.values() for names in asdict(ports).values() for name in names}
    common = {name for names in asdict(EVERY_NODE | LIFECYCLE).values() for name in names} - {"/diagnostics"}
    section = TOPICS.split("# Topics, services and actions")[1].split("\n## ")[0]
    assert sorted(first_cells(section)) == sorted(used - common)


@pytest.mark.parametrize("node", sorted(SCHEMAS))
def test_the_guide_lists_every_parameter_as_its_schema_has_it(node: str) -> None:
    section = NODES.split(f"### Parameters of {node}\n\n")[1].split("\n#")[0]
    assert [line for line in section.splitlines()[2:] if line] == [row(item) for item in SCHEMAS[node]]
