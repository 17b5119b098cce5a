"""The node table as a launch description, for `ros2 launch` on a machine with a ROS installation.

The twin of `dtvla.bringup.launcher`, which does the same with pip wheels only: both read
`dtvla.bringup.graph` and have the nodes brought alive by the same lifecycle manager, here as a process of
its own. The launch files in launch/ only choose defaults. Needs `launch` and `launch_ros`, which are not on
PyPI.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from launch import Action, LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    IncludeLaunchDescription,
    LogInfo,
    OpaqueFunction,
    Shutdown,
)
from launch.events.process import ProcessExited
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from dtvla.bringup.graph import (
    MANAGER,
    GraphOptions,
    NodeSpec,
    managed,
    overrides,
    parameter_files,
    remappings,
    selected,
    sentences,
)
from dtvla.bringup.sros2 import enclave
from dtvla.control.options import ARM_NAMES, ROBOT_NAMES, SIMULATOR
from dtvla.errors import InputError
from dtvla.policy.options import BACKENDS
from dtvla.resources import default_bundle, resource

RESPAWN_DELAY_S = 1.0
SENTENCES = sentences() | {"rviz": "Start rviz and robot_state_publisher as well."}
SCENE = ("suite", "task", "seed", "realtime", "max_steps", "autostart", "repeat")  # of a simulated robot
CHOICES = {"robot": ROBOT_NAMES, "backend": BACKENDS, "use_sim_time": ("auto", "true", "false")}
_TRUE = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def graph_description(**defaults: Any) -> LaunchDescription:
    """Every option of the graph as a launch argument, and the nodes that the chosen options select.

    Args:
        defaults: values of `GraphOptions` fields that this launch file prefers over the usual ones.
    """
    standard = asdict(GraphOptions(bundle=Path())) | {"bundle": ""} | defaults | {"rviz": False}
    if not standard["simulator"]:
        standard = {name: value for name, value in standard.items() if name not in SCENE}
    arguments = []
    for name, value in standard.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        choices = CHOICES.get(name)
        arguments.append(
            DeclareLaunchArgument(name, default_value=text, description=SENTENCES[name], choices=choices)
        )
    steps = (OpaqueFunction(function=function) for function in (_warn, _nodes, _rviz))
    return LaunchDescription([*arguments, *steps])


def parse_option(name: str, text: str) -> bool | int | str | Path:
    """Reads the text of a launch argument as the type its field of `GraphOptions` has.

    Raises:
        InputError: the text is no such value; the sentence names the argument.
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
            raise InputError(f"Launch argument {name}:={text} must be a whole number.") from None
    return Path(text) if isinstance(standard, Path) else text


def parse_flag(name: str, text: str) -> bool:
    """Reads a launch argument that is true or false.

    Raises:
        InputError: it is neither; the sentence names the argument.
    """
    if text.lower() not in _TRUE:
        raise InputError(f"Launch argument {name}:={text} must be true or false.")
    return _TRUE[text.lower()]


def unknown_arguments(given: Iterable[str]) -> list[str]:
    """A sentence for each argument that is none of ours but looks like one: launch itself says nothing.

    Others may be meant for a launch file that includes ours.
    """
    sentences = []
    for name in sorted(set(given) - set(SENTENCES)):
        near = get_close_matches(name, SENTENCES, 1, 0.75)
        if near:
            sentences.append(f"There is no argument '{name}', it is not used. Is {near[0]} meant?")
    return sentences


def _warn(context: LaunchContext) -> list[Action]:
    return [LogInfo(msg=sentence) for sentence in unknown_arguments(context.launch_configurations)]


def _nodes(context: LaunchContext) -> list[Action]:
    given = context.launch_configurations
    texts = {field.name: given[field.name] for field in fields(GraphOptions) if field.name in given}
    values: dict[str, Any] = {name: parse_option(name, text) for name, text in texts.items()}
    options = GraphOptions(**values)
    specs = [*selected(options), *([MANAGER] if managed(options) else [])]
    return [_node(spec, options) for spec in specs]


def _rviz(context: LaunchContext) -> list[Action]:
    def text(name: str) -> str:
        return str(LaunchConfiguration(name).perform(context))

    if not parse_flag("rviz", text("rviz")):
        return []
    sim_time = text("simulator") if text("use_sim_time") == "auto" else text("use_sim_time")
    source = PythonLaunchDescriptionSource(str(resource("launch/rviz.launch.py")))
    robot = ARM_NAMES[0] if text("robot") == SIMULATOR else text("robot")
    arguments = {"use_sim_time": sim_time, "robot": robot}
    arguments |= {name: text(name) for name in ("namespace", "cameras")}
    if parse_flag("simulator", text("simulator")) and text("namespace"):
        arguments["clock"] = f"/{text('namespace').strip('/')}/clock"
    return [IncludeLaunchDescription(source, launch_arguments=arguments.items())]


def _node(spec: NodeSpec, options: GraphOptions) -> Node:
    parameters = overrides(options).get(spec.name, {})
    again = options.respawn and spec.respawn
    return Node(
        package="dtvla",
        executable=spec.executable,
        name=spec.name,
        namespace=options.namespace,
        parameters=[
            *map(str, parameter_files(spec, options.robot)),
            *([parameters] if parameters else []),
        ],
        remappings=remappings(spec, options),
        ros_arguments=["--enclave", enclave(spec.name, options.namespace)],
        output="screen",
        respawn=again,
        respawn_delay=RESPAWN_DELAY_S,
        on_exit=None if again else _end_with_it,  # an empty list makes launch 3.7 stumble
    )


def _end_with_it(event: ProcessExited, context: LaunchContext) -> list[Action]:
    """A graph without one of its nodes is ended whole; while it is ending nothing more is to do."""
    return [] if context.is_shutdown else [Shutdown(reason=f"{event.process_name} ended")]
