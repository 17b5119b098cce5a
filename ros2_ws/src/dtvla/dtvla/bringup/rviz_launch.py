"""rviz beside a running graph, with the robot's model and transforms: a launch description for `ros2 launch`.

Needs `launch` and `launch_ros`, and at run time `robot_state_publisher` and `rviz2`; none of them is on PyPI.
"""

from __future__ import annotations

from pathlib import Path

from launch import Action, LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from dtvla.bringup.launch_description import parse_flag
from dtvla.bringup.rviz_config import CONFIG, TRANSFORMS, remappings
from dtvla.control.kinematics import read_urdf
from dtvla.control.options import ARM_NAMES
from dtvla.errors import InputError
from dtvla.resources import resource

ARGUMENTS = {
    "use_sim_time": ("true", "true with the simulator, false on a robot"),
    "robot": (ARM_NAMES[0], f"whose model is shown: {' or '.join(ARM_NAMES)}"),
    "namespace": ("", "of the robot to look at, where there are several"),
    "cameras": ("", "camera topics, as in agentview=/camera/color/image_raw,wrist=/wrist/image_raw"),
    "clock": (
        "/clock",
        "where simulated time comes from: /NAMESPACE/clock where the simulator has a namespace",
    ),
    "config": ("", "rviz configuration; empty takes the one that ships with dtvla"),
}


def rviz_description() -> LaunchDescription:
    """The robot's state publisher and rviz."""
    declared = [
        DeclareLaunchArgument(name, default_value=value, description=sentence)
        for name, (value, sentence) in ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=_nodes)])


def _nodes(context: LaunchContext) -> list[Action]:
    chosen = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    robot, namespace = chosen["robot"], chosen["namespace"]
    if robot not in ARM_NAMES:
        raise InputError(f"Launch argument robot:={robot} must be one of: {', '.join(ARM_NAMES)}.")
    config = Path(chosen["config"] or resource(CONFIG))
    if not config.is_file():
        raise InputError(f"Launch argument config:={config}: there is no such file.")
    timed = {"use_sim_time": parse_flag("use_sim_time", chosen["use_sim_time"])}
    time = [("/clock", chosen["clock"])]
    model = read_urdf(resource(f"urdf/{robot}.urdf.xacro"))
    publisher = Node(
        package="robot_state_publisher",
        executable="robot_state_publisher",
        namespace=namespace,
        parameters=[{"robot_description": model, **timed}],
        remappings=[*time, *((topic, topic[1:]) for topic in TRANSFORMS)],
        output="screen",
    )
    rviz = Node(
        package="rviz2",
        executable="rviz2",
        namespace=namespace,
        arguments=["-d", str(config), "-f", f"{robot}_link0"],
        parameters=[timed],
        remappings=[*time, *remappings(config, chosen["cameras"])],
        output="screen",
    )
    return [publisher, rviz]
