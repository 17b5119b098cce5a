"""The robot model, its transforms and rviz, beside a graph that runs already."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import Command, LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from dtvla.resources import resource


def generate_launch_description():
    sim_time = ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool)
    description = ParameterValue(Command(["xacro ", str(resource("urdf/panda.urdf.xacro"))]), value_type=str)
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "use_sim_time", default_value="true", description="true with the simulator, false on a robot"
            ),
            Node(
                package="robot_state_publisher",
                executable="robot_state_publisher",
                parameters=[{"robot_description": description, "use_sim_time": sim_time}],
            ),
            Node(
                package="rviz2",
                executable="rviz2",
                arguments=["-d", str(resource("urdf/dtvla.rviz"))],
                parameters=[{"use_sim_time": sim_time}],
            ),
        ]
    )
