"""The robot model and rviz, beside a graph that runs already. `--show-args` lists what can be chosen."""

from dtvla.bringup.rviz_launch import rviz_description


def generate_launch_description():
    return rviz_description()
