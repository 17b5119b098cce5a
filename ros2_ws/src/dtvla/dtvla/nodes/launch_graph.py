"""The node table as a launch description, for `ros2 launch` on a machine with a ROS installation.

The twin of `dtvla.launcher`, which does the same with pip wheels only: both read `dtvla.graph`. The launch
files in launch/ only choose defaults. Needs `launch` and `launch_ros`, which are not on PyPI.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from itertools import count
from pathlib import Path
from typing import Any

from launch import Action, LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
    Shutdown,
)
from launch.event_handlers import OnProcessStart
from launch.events import matches_action
from launch.events.process import ProcessExited, ProcessStarted
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from lifecycle_msgs.msg import Transition

from dtvla.graph import (
    GraphOptions,
    NodeSpec,
    default_bundle,
    overrides,
    parameter_files,
    remappings,
    selected,
)
from dtvla.resources import resource
from dtvla.security import enclave

RESPAWN_DELAY_S = 1.0
SENTENCES = {
    "bundle": "folder of the policy bundle; empty takes the one that ships with dtvla",
    "backend": "what runs it; auto takes TensorRT engines that fit this machine, else ONNX Runtime on the CPU",
    "suite": "benchmark suite of the first episode",
    "task": "index of the task in the suite",
    "seed": "seed of the first episode's object placement",
    "realtime": "let the simulated world move on while the policy thinks",
    "max_steps": "control periods per episode; 0 takes the task's own limit",
    "autostart": "begin the first episode at once",
    "repeat": "begin the next episode when one is over",
    "robot": "simulator (the benchmark's deltas), panda or fr3 (target poses within the arm's limits)",
    "dry_run": "with a robot: publish what it would be told on controller/preview_pose, and tell it nothing",
    "namespace": "of all nodes and topics, for one of several robots",
    "cameras": "camera topics, as in agentview=/camera/color/image_raw,wrist=/wrist/image_raw",
    "instruction": "what to do from the start; empty waits for /instruction or a goal",
    "use_sim_time": "true, false, or auto: true with the simulator",
    "respawn": "start policy and display nodes anew when they die; the arm holds meanwhile",
    "policy": "run the policy node",
    "simulator": "run the simulated robot",
    "console": "show the thoughts in the terminal",
    "record": "write a bag and one video per episode",
    "markers": "publish markers and the overlay picture for rviz",
    "output": "folder for bag and videos",
}
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
        arguments.append(DeclareLaunchArgument(name, default_value=text, description=SENTENCES[name]))
    arguments.append(DeclareLaunchArgument("rviz", default_value="false", description="start rviz as well"))
    return LaunchDescription([*arguments, OpaqueFunction(function=_nodes), OpaqueFunction(function=_rviz)])


def parse_option(name: str, text: str) -> bool | int | str | Path:
    """Reads the text of a launch argument as the type its field of `GraphOptions` has.

    Raises:
        ValueError: the text is no such value; the sentence names the argument.
    """
    if name == "bundle" and not text:
        return default_bundle()
    standard = getattr(GraphOptions(bundle=Path()), name)
    if isinstance(standard, bool):
        return parse_flag(name, text)
    if isinstance(standard, int):
        try:
            return int(text)
        except ValueError:
            raise ValueError(f"Launch argument {name}:={text} must be a whole number.") from None
    return Path(text) if isinstance(standard, Path) else text


def parse_flag(name: str, text: str) -> bool:
    """Reads a launch argument that is true or false.

    Raises:
        ValueError: it is neither; the sentence names the argument.
    """
    if text.lower() not in _TRUE:
        raise ValueError(f"Launch argument {name}:={text} must be true or false.")
    return _TRUE[text.lower()]


def _nodes(context: LaunchContext) -> list[Action]:
    texts = {field.name: LaunchConfiguration(field.name).perform(context) for field in fields(GraphOptions)}
    values: dict[str, Any] = {name: parse_option(name, text) for name, text in texts.items()}
    options = GraphOptions(**values)
    actions = {spec.name: _node(spec, options) for spec in selected(options)}
    handlers: list[Action] = []
    before: LifecycleNode | None = None
    for spec in selected(options):
        if spec.lifecycle:
            handlers += _bring_up(actions[spec.name], before)
            before = actions[spec.name]
    # The handlers first: a process that starts at once must find them registered.
    return [*handlers, *actions.values()]


def _rviz(context: LaunchContext) -> list[Action]:
    def text(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    if not parse_flag("rviz", text("rviz")):
        return []
    sim_time = text("simulator") if text("use_sim_time") == "auto" else text("use_sim_time")
    source = PythonLaunchDescriptionSource(str(resource("launch/rviz.launch.py")))
    robot = "panda" if text("robot") == "simulator" else text("robot")
    arguments = {"use_sim_time": sim_time, "robot": robot, "namespace": text("namespace")}
    return [IncludeLaunchDescription(source, launch_arguments=arguments.items())]


def _node(spec: NodeSpec, options: GraphOptions) -> Node:
    parameters = overrides(options).get(spec.name, {})
    again = options.respawn and spec.respawn
    common = {
        "package": "dtvla",
        "executable": spec.executable,
        "name": spec.name,
        "namespace": options.namespace,
        "parameters": [
            *map(str, parameter_files(spec, options.robot)),
            *([parameters] if parameters else []),
        ],
        "remappings": remappings(spec, options),
        "ros_arguments": ["--enclave", enclave(spec.name, options.namespace)],
        "output": "screen",
        "respawn": again,
        "respawn_delay": RESPAWN_DELAY_S,
        "on_exit": [] if again else _end_with_it,
    }
    return LifecycleNode(**common) if spec.lifecycle else Node(**common)


def _end_with_it(event: ProcessExited, context: LaunchContext) -> list[Action]:
    """A graph without one of its nodes is ended whole; while it is ending nothing more is to do."""
    return [] if context.is_shutdown else [Shutdown(reason=f"{event.process_name} ended")]


def _bring_up(node: LifecycleNode, before: LifecycleNode | None) -> list[Action]:
    """Handlers that configure a node once the one `before` is active, and again whenever it starts anew.

    Active comes after inactive: a node that is respawned goes the same way, and the others stay as they are.
    """
    configure, activate = (
        _change(node, transition)
        for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE)
    )
    starts = count()

    def started(event: ProcessStarted, context: LaunchContext) -> list[Action]:
        return [configure] if next(starts) or before is None else []

    handlers = [
        OnProcessStart(target_action=node, on_start=started),
        OnStateTransition(
            target_lifecycle_node=node, start_state="configuring", goal_state="inactive", entities=[activate]
        ),
    ]
    if before is not None:
        handlers.append(
            OnStateTransition(
                target_lifecycle_node=before, goal_state="active", entities=[configure], handle_once=True
            )
        )
    return [RegisterEventHandler(handler) for handler in handlers]


def _change(node: LifecycleNode, transition: int) -> EmitEvent:
    return EmitEvent(event=ChangeState(lifecycle_node_matcher=matches_action(node), transition_id=transition))
