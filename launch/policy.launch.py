"""The robot side: the policy, the controller and the markers. `--show-args` lists what can be chosen.

A dry run unless dry_run:=false is said: the arm is told nothing, and controller/preview_pose shows
what it would be.
"""

from dtvla.bringup.launch_description import graph_description


def generate_launch_description():
    return graph_description(robot="panda", simulator=False, console=False, markers=True, respawn=True)
