"""The one table of nodes: what runs, in which order it comes alive, and with which parameters.

`launch/policy.launch.py` (real launch_ros) and the pip launcher (`dtvla up`) both read it, so the two
cannot drift apart. Nothing here imports ROS.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dtvla.resources import resource

ParameterValue = bool | int | float | str


@dataclass(frozen=True)
class NodeSpec:
    """One node of the graph.

    Attributes:
        name: node name, the name of its executable and of its parameter file `config/<name>.yaml`.
        module: Python module whose `main()` runs the node.
        sentence: what the node does, for people.
        lifecycle: whether it must be configured and activated (the console need not).
        option: the option of `GraphOptions` that switches it on; None when it always runs.
        remappings: pairs (from, to) of topic names.
    """

    name: str
    module: str
    sentence: str
    lifecycle: bool = True
    option: str | None = None
    remappings: tuple[tuple[str, str], ...] = ()

    @property
    def executable(self) -> str:
        """Name of the console script that `ros2 run dtvla ...` and launch_ros start."""
        return self.name


# Configured and activated from top to bottom, stopped from bottom to top: the ones that listen come
# first, the world that ticks comes last.
GRAPH = (
    NodeSpec("recorder_node", "dtvla.nodes.recorder_node", "writes the bag and the videos", option="record"),
    NodeSpec("console_node", "dtvla.nodes.console_node", "shows the thought as it grows", False, "console"),
    NodeSpec(
        "reasoning_markers_node",
        "dtvla.nodes.reasoning_markers_node",
        "draws the thought and the planned path for rviz",
        option="markers",
    ),
    NodeSpec(
        "reasoning_overlay_node",
        "dtvla.nodes.reasoning_overlay_node",
        "shows the cameras beside the thought as one picture",
        option="markers",
    ),
    NodeSpec("controller_node", "dtvla.nodes.controller_node", "turns chunks into clamped commands"),
    NodeSpec("policy_node", "dtvla.nodes.policy_node", "sees, thinks and proposes action chunks"),
    NodeSpec(
        "libero_bridge_node", "dtvla.nodes.libero_bridge_node", "the simulated robot", option="simulator"
    ),
)


@dataclass(frozen=True)
class GraphOptions:
    """What the user chooses about a graph.

    Attributes:
        bundle: folder of the policy bundle.
        backend: what runs it, one of `dtvla.policy.options.BACKENDS`.
        suite, task, seed: the scene of the first episode.
        realtime: True lets the world move on while the policy thinks; False is lockstep.
        max_steps: control periods per episode; 0 takes the task's own limit.
        autostart: begin the first episode as soon as all nodes are active.
        repeat: begin the next episode, with the next seed, when one is over.
        simulator, console, record, markers: which optional nodes run.
        output: folder for logs, bag and videos.
    """

    bundle: Path
    backend: str = "auto"
    suite: str = "embedded"
    task: int = 0
    seed: int = 0
    realtime: bool = False
    max_steps: int = 0
    autostart: bool = True
    repeat: bool = False
    simulator: bool = True
    console: bool = True
    record: bool = False
    markers: bool = False
    output: Path = Path("runs")


def selected(options: GraphOptions) -> list[NodeSpec]:
    """The nodes that run under these options, in lifecycle order."""
    return [node for node in GRAPH if node.option is None or getattr(options, node.option)]


def overrides(options: GraphOptions) -> dict[str, dict[str, ParameterValue]]:
    """Parameters that the options decide, by node name; they win over the parameter files."""
    lockstep = not options.realtime
    return {
        "libero_bridge_node": {
            "suite": options.suite,
            "task": options.task,
            "seed": options.seed,
            "lockstep": lockstep,
            "max_steps": options.max_steps,
            "autostart": options.autostart,
            "repeat": options.repeat,
        },
        "policy_node": {
            "bundle": str(options.bundle),
            "backend": options.backend,
            "use_sim_time": options.simulator,
        },
        "controller_node": {"lockstep": lockstep, "use_sim_time": options.simulator},
        "recorder_node": {"output": str(options.output), "use_sim_time": options.simulator},
        "reasoning_markers_node": {"use_sim_time": options.simulator},
        "reasoning_overlay_node": {"use_sim_time": options.simulator},
    }


def parameter_file(node: NodeSpec) -> Path | None:
    """The node's parameter file, or None when it has no parameters."""
    return resource(f"config/{node.name}.yaml") if node.name != "console_node" else None


def default_bundle() -> Path:
    """The bundle that ships with the package: int8; `bundles/embedded` beside it is what it was made of."""
    return resource("bundles/embedded-int8")
