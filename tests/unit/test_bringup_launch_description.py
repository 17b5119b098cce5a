"""What the launch files start, with stand-ins for `launch` and `launch_ros`, which are not on PyPI."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import fields
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from dtvla.bringup.graph import GraphOptions

STAND_INS = (
    "launch",
    "launch.actions",
    "launch.events",
    "launch.events.process",
    "launch.launch_description_sources",
    "launch.substitutions",
    "launch_ros",
    "launch_ros.actions",
)
MODULE = "dtvla.bringup.launch_description"


@pytest.fixture
def description(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    for name in STAND_INS:
        monkeypatch.setitem(sys.modules, name, MagicMock())
    monkeypatch.setattr(sys.modules["launch_ros.actions"], "Node", lambda **words: SimpleNamespace(**words))
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    yield importlib.import_module(MODULE)
    sys.modules.pop(MODULE, None)


def started(description: ModuleType, **arguments: str) -> dict[str, Any]:
    """What a launch with these arguments starts, by name."""
    context = SimpleNamespace(launch_configurations={"bundle": "somewhere", **arguments})
    return {action.name: action for action in description._nodes(context)}


def test_every_option_of_the_graph_is_explained(description: ModuleType) -> None:
    assert set(description.SENTENCES) == {field.name for field in fields(GraphOptions)} | {"rviz"}


def test_the_lifecycle_manager_runs_beside_the_nodes_and_is_told_which_to_bring_up(
    description: ModuleType,
) -> None:
    nodes = started(description, simulator="false", console="true", respawn="true", namespace="left")
    assert list(nodes) == ["console_node", "controller_node", "policy_node", "lifecycle_manager_node"]
    manager = nodes["lifecycle_manager_node"]
    assert manager.parameters[-1] == {"nodes": "controller_node=10,policy_node=10"}
    assert manager.namespace == "left"
    assert manager.executable == "lifecycle_manager_node"


def test_the_end_of_the_manager_ends_the_launch_and_that_of_the_policy_does_not(
    description: ModuleType,
) -> None:
    nodes = started(description, respawn="true")
    assert [name for name, node in nodes.items() if node.respawn] == ["policy_node"]
    shutdown = sys.modules["launch.actions"].Shutdown  # type: ignore[attr-defined]
    event = SimpleNamespace(process_name="lifecycle_manager_node-4")
    actions = nodes["lifecycle_manager_node"].on_exit(event, SimpleNamespace(is_shutdown=False))
    assert actions == [shutdown.return_value]
    shutdown.assert_called_with(reason="lifecycle_manager_node-4 ended")
    assert nodes["policy_node"].on_exit is None


def test_without_a_lifecycle_node_there_is_nothing_to_manage(description: ModuleType) -> None:
    assert list(started(description, only="console_node")) == ["console_node"]
