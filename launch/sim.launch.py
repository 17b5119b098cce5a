"""The whole graph with the simulated robot. `--show-args` lists what can be chosen."""

from dtvla.bringup.launch_description import graph_description


def generate_launch_description():
    return graph_description(simulator=True, console=False, markers=True)
