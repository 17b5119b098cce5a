"""Our nodes share their namespace of attributes with rclpy's Node, which keeps its lists there."""

from __future__ import annotations

import ast
from pathlib import Path

import rclpy.lifecycle.node
import rclpy.node

NODES = Path(__file__).resolve().parents[2] / "ros2_ws/src/dtvla/dtvla/nodes"
ENDINGS = ("Node", "BridgeClient")  # of the names of classes that are nodes


def assigned(tree: ast.AST) -> set[str]:
    """Attributes that the methods of a class (or of a module's classes) give to `self`."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


def test_no_node_overwrites_an_attribute_of_rclpys_own() -> None:
    """The bridge once kept its helpers in `_clients`, where rclpy has the clients of services."""
    taken: set[str] = set()
    for module in (rclpy.node, rclpy.lifecycle.node):
        taken |= assigned(ast.parse(Path(str(module.__file__)).read_text()))
    assert "_clients" in taken
    wrong, seen = set(), set()
    for path in NODES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and any(ast.unparse(b).endswith(ENDINGS) for b in node.bases):
                seen.add(node.name)
                wrong |= {f"{node.name}.{name}" for name in assigned(node) & taken}
    assert {"PolicyNode", "EpisodeMonitor", "LifecycleManagerNode"} <= seen
    assert wrong == set()
