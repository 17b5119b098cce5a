"""The node table as a launch description, for `ros2 launch` on a machine with a ROS installation.

The twin of `dtvla.launcher`, which does the same with pip wheels only: both read `dtvla.graph`. The launch
files in launch/ only choose defaults. Needs `launch` and `launch_ros`, which are not on PyPI.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from launch import Action, LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, EmitEvent, OpaqueFunction, RegisterEventHandler, Shutdown
from launch.event_handlers import OnProcessStart
from launch.events import matches_action
from launch.events.process import ProcessExited
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from lifecycle_msgs.msg import Transition

from dtvla.graph import GraphOptions, NodeSpec, default_bundle, overrides, parameter_file, selected
from dtvla.security import enclave

_TRUE = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def graph_description(**defaults: Any) -> LaunchDescription:
    """Every option of the graph as a launch argument, and the nodes that the chosen options select.

    Args:
        defaults: values of `GraphOptions` fields that this launch file prefers over the usual ones.
    """
    standard = asdict(GraphOptions(bundle=Path())) | {"bundle": ""} | defaults
    arguments = []
    for name, value in standard.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        sentence = f"GraphOptions.{name}" + ("; empty takes the shipped one" if name == "bundle" else "")
        arguments.append(DeclareLaunchArgument(name, default_value=text, description=sentence))
    return LaunchDescription([*arguments, OpaqueFunction(function=_nodes)])


def parse_option(name: str, text: str) -> bool | int | str | Path:
    """Reads the text of a launch argument as the type its field of `GraphOptions` has.

    Raises:
        ValueError: the text is no such value; the sentence names the argument.
    """
    if name == "bundle" and not text:
        return default_bundle()
    standard = getattr(GraphOptions(bundle=Path()), name)
    if isinstance(standard, bool):
        if text.lower() not in _TRUE:
            raise ValueError(f"Launch argument {name}:={text} must be true or false.")
        return _TRUE[text.lower()]
    if isinstance(standard, int):
        try:
            return int(text)
        except ValueError:
            raise ValueError(f"Launch argument {name}:={text} must be a whole number.") from None
    return Path(text) if isinstance(standard, Path) else text


def _nodes(context: LaunchContext) -> list[Action]:
    texts = {field.name: LaunchConfiguration(field.name).perform(context) for field in fields(GraphOptions)}
    values: dict[str, Any] = {name: parse_option(name, text) for name, text in texts.items()}
    options = GraphOptions(**values)
    specs = selected(options)
    decided = overrides(options)
    actions = {spec.name: _node(spec, decided.get(spec.name, {})) for spec in specs}
    chain = [actions[spec.name] for spec in specs if spec.lifecycle]
    # The handlers first: a process that starts at once must find them registered.
    return [*_bring_up_in_order(chain), *actions.values()]


def _node(spec: NodeSpec, parameters: dict[str, Any]) -> Node:
    file = parameter_file(spec)
    common = {
        "package": "dtvla",
        "executable": spec.executable,
        "name": spec.name,
        "parameters": [*([str(file)] if file is not None else []), *([parameters] if parameters else [])],
        "remappings": list(spec.remappings),
        "ros_arguments": ["--enclave", enclave(spec.name)],
        "output": "screen",
        "on_exit": _end_with_it,
    }
    return LifecycleNode(namespace="", **common) if spec.lifecycle else Node(**common)


def _end_with_it(event: ProcessExited, context: LaunchContext) -> list[Action]:
    """A graph without one of its nodes is ended whole; while it is ending nothing more is to do."""
    return [] if context.is_shutdown else [Shutdown(reason=f"{event.process_name} ended")]


def _bring_up_in_order(nodes: list[LifecycleNode]) -> list[Action]:
    """Handlers that configure and activate each node once the one before it is active."""
    handlers: list[Action] = []
    for index, node in enumerate(nodes):
        configure = _change(node, Transition.TRANSITION_CONFIGURE)
        if index == 0:
            first = OnProcessStart(target_action=node, on_start=[configure])
        else:
            first = OnStateTransition(
                target_lifecycle_node=nodes[index - 1], goal_state="active", entities=[configure]
            )
        activate = OnStateTransition(
            target_lifecycle_node=node,
            start_state="configuring",
            goal_state="inactive",
            entities=[_change(node, Transition.TRANSITION_ACTIVATE)],
        )
        handlers += [RegisterEventHandler(first), RegisterEventHandler(activate)]
    return handlers


def _change(node: LifecycleNode, transition: int) -> EmitEvent:
    return EmitEvent(event=ChangeState(lifecycle_node_matcher=matches_action(node), transition_id=transition))
