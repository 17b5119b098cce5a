"""The robot side: the policy, the controller and the markers. `--show-args` lists what can be chosen."""

from dtvla.nodes.launch_graph import graph_description


def generate_launch_description():
    return graph_description(simulator=False, console=False, markers=True)
