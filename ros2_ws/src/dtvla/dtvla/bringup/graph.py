"""The one table of nodes: what runs, in which order it comes alive, and with which parameters.

`launch/policy.launch.py` (real launch_ros) and the pip launcher (`dtvla up`) both read it, and both leave the
bringing up to the lifecycle manager, so the two cannot drift apart. Nothing here imports ROS.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from dtvla.resources import resource

ParameterValue = bool | int | float | str
ROBOTS = ("simulator", "panda", "fr3")
ARM_TOPICS = ("target_pose", "gripper/target", "gripper_action", "ee_pose", "joint_states")

_NAME = r"[A-Za-z][A-Za-z0-9_]*"  # what ROS takes as one part of a name
_TOPIC = re.compile(rf"/?{_NAME}(/{_NAME})*")


@dataclass(frozen=True)
class NodeSpec:
    """One node of the graph.

    Attributes:
        name: node name, the name of its executable and of its parameter file `config/<name>.yaml`.
        module: Python module whose `main()` runs the node.
        sentence: what the node does, for people.
        lifecycle: whether it must be configured and activated (the console need not).
        option: the option of `GraphOptions` that switches it on; None when it always runs.
        sees: it listens to the cameras, whose topics may have other names.
        respawn: without it the arm holds and the others go on, so it may be started anew when it dies.
        heartbeat_s: without its diagnostics for so long it hangs (they come once a second; a scene takes a
            while to build).
    """

    name: str
    module: str
    sentence: str
    lifecycle: bool = True
    option: str | None = None
    sees: bool = False
    respawn: bool = False
    heartbeat_s: float = 10.0

    @property
    def executable(self) -> str:
        """Name of the console script that `ros2 run dtvla ...` and launch_ros start."""
        return self.name


# Beside the others under `ros2 launch`; `dtvla up` manages them in its own process.
MANAGER = NodeSpec(
    "lifecycle_manager_node",
    "dtvla.nodes.lifecycle.lifecycle_manager_node",
    "brings the others alive in order and watches their heartbeats",
    lifecycle=False,
)

# Configured and activated from top to bottom, stopped from bottom to top: the ones that listen come
# first, the world that ticks comes last.
GRAPH = (
    NodeSpec(
        "recorder_node",
        "dtvla.nodes.recorder.recorder_node",
        "writes the bag and the videos",
        option="record",
        sees=True,
        respawn=True,
    ),
    NodeSpec(
        "console_node", "dtvla.nodes.viewers.console_node", "shows the thought as it grows", False, "console"
    ),
    NodeSpec(
        "reasoning_markers_node",
        "dtvla.nodes.viewers.reasoning_markers_node",
        "draws the thought and the planned path for rviz",
        option="markers",
        respawn=True,
    ),
    NodeSpec(
        "reasoning_overlay_node",
        "dtvla.nodes.viewers.reasoning_overlay_node",
        "shows the cameras beside the thought as one picture",
        option="markers",
        sees=True,
        respawn=True,
    ),
    NodeSpec(
        "controller_node", "dtvla.nodes.controller.controller_node", "turns chunks into clamped commands"
    ),
    NodeSpec(
        "policy_node",
        "dtvla.nodes.policy.policy_node",
        "sees, thinks and proposes action chunks",
        option="policy",
        sees=True,
        respawn=True,
    ),
    NodeSpec(
        "libero_bridge_node",
        "dtvla.nodes.bridge.libero_bridge_node",
        "the simulated robot",
        option="simulator",
        heartbeat_s=60.0,
    ),
)
EXECUTABLES = (*GRAPH, MANAGER)


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
        robot: whose limits hold: `simulator` (the benchmark's own deltas), `panda`, `fr3` (target poses).
        dry_run: with a robot, show what it would be told and tell it nothing. A simulated arm is always told.
        namespace: of all nodes and topics, for one of several robots; empty for none.
        cameras: where the pictures come from, as in `agentview=/camera/color/image_raw,wrist=/wrist/image`;
            empty takes `<name>/image_raw`.
        arm: other names for some of `ARM_TOPICS`, as in `target_pose=/cartesian/target_pose`: those of the
            arm's driver.
        instruction: to begin with; empty waits for one.
        use_sim_time: `true`, `false`, or `auto`: as the simulator runs.
        respawn: start a node anew that died or hangs, where the arm can hold meanwhile.
        policy: run the policy node; off when somebody else publishes chunks (the bridge's script).
        simulator, console, record, markers: which optional nodes run.
        only: names of the nodes that run here, comma-separated, where others of the graph run on another
            machine; empty for all that the options above choose.
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
    robot: str = "simulator"
    dry_run: bool = True
    namespace: str = ""
    cameras: str = ""
    arm: str = ""
    instruction: str = ""
    use_sim_time: str = "auto"
    respawn: bool = False
    policy: bool = True
    simulator: bool = True
    console: bool = True
    record: bool = False
    markers: bool = False
    only: str = ""
    output: Path = Path("runs")

    def __post_init__(self) -> None:
        if self.robot not in ROBOTS:
            raise ValueError(f"There is no robot '{self.robot}'. Choose one of: {', '.join(ROBOTS)}.")
        if self.simulator and self.robot == "fr3":
            raise ValueError("The simulated arm is a Panda. Choose robot panda, or leave the simulator out.")
        if self.use_sim_time not in ("auto", "true", "false"):
            raise ValueError(f"use_sim_time is '{self.use_sim_time}'; it must be auto, true or false.")
        if self.namespace and not _TOPIC.fullmatch(self.namespace):
            raise ValueError(
                f"'{self.namespace}' is no namespace: letters, digits and _ only, a letter first."
            )
        self.camera_topics()
        self.arm_topics()
        chosen = [node.name for node in GRAPH if _chosen(node, self)]
        for name in self.only_nodes():
            if name not in chosen:
                raise ValueError(
                    f"only names '{name}'; with these options the graph has: {', '.join(chosen)}."
                )

    def only_nodes(self) -> list[str]:
        """The names that `only` lists."""
        return [name for name in self.only.replace(" ", "").split(",") if name]

    def camera_topics(self) -> dict[str, str]:
        """The topic of each camera that `cameras` names.

        Raises:
            ValueError: it is no list of `name=topic`.
        """
        return _topics("cameras", self.cameras, "agentview=/topic,wrist=/topic")

    def arm_topics(self) -> dict[str, str]:
        """The driver's name of each topic that `arm` names.

        Raises:
            ValueError: it is no list of `name=topic`, or a name is not the arm's.
        """
        found = _topics("arm", self.arm, "target_pose=/topic,ee_pose=/topic")
        for name in found:
            if name not in ARM_TOPICS:
                raise ValueError(f"arm has '{name}'; it may name: {', '.join(ARM_TOPICS)}.")
        return found


def _topics(option: str, text: str, example: str) -> dict[str, str]:
    found = {}
    for item in filter(None, text.replace(" ", "").split(",")):
        name, equals, topic = item.partition("=")
        if not (equals and _TOPIC.fullmatch(name) and _TOPIC.fullmatch(topic)):
            raise ValueError(
                f"{option} has '{item}'; it takes a list such as {example}, of names "
                "with letters, digits and _ only, a letter first."
            )
        found[name] = topic
    return found


def _chosen(node: NodeSpec, options: GraphOptions) -> bool:
    return node.option is None or bool(getattr(options, node.option))


def selected(options: GraphOptions) -> list[NodeSpec]:
    """The nodes that run here under these options, in lifecycle order."""
    only = options.only_nodes()
    return [node for node in GRAPH if _chosen(node, options) and (not only or node.name in only)]


def managed(options: GraphOptions) -> dict[str, float]:
    """The nodes that are to be configured and activated, in this order, and their longest silences in s."""
    return {node.name: node.heartbeat_s for node in selected(options) if node.lifecycle}


def overrides(options: GraphOptions) -> dict[str, dict[str, ParameterValue]]:
    """Parameters that the options decide, by node name; they win over the parameter files."""
    lockstep = options.simulator and not options.realtime
    sim_time = options.simulator if options.use_sim_time == "auto" else options.use_sim_time == "true"
    controller: dict[str, ParameterValue] = {"lockstep": lockstep}
    if options.robot != "simulator":
        controller["dry_run"] = options.dry_run and not options.simulator
    decided: dict[str, dict[str, ParameterValue]] = {
        "libero_bridge_node": {
            "suite": options.suite,
            "task": options.task,
            "seed": options.seed,
            "lockstep": lockstep,
            "follow": options.robot != "simulator",
            "max_steps": options.max_steps,
            "autostart": options.autostart,
            "repeat": options.repeat,
        },
        "policy_node": {
            "bundle": str(options.bundle),
            "backend": options.backend,
            "instruction": options.instruction,
        },
        "controller_node": controller,
        "recorder_node": {"output": str(options.output)},
        MANAGER.name: {"nodes": ",".join(f"{name}={limit:g}" for name, limit in managed(options).items())},
    }
    if options.simulator and options.robot != "simulator":  # simulated cameras have no noise, and no delay
        decided["policy_node"] |= {"frozen_image_s": 0.0, "max_image_age_s": 0.0}
    for node in selected(options):
        if node.lifecycle and node.name != "libero_bridge_node":  # that one makes the time
            decided.setdefault(node.name, {})["use_sim_time"] = sim_time
    return decided


def parameter_files(node: NodeSpec, robot: str = "simulator") -> list[Path]:
    """The node's parameter file, and the robot's behind it, which wins; none without parameters."""
    if node.name == "console_node":
        return []
    robots = [] if robot == "simulator" else [resource(f"config/robots/{robot}.yaml")]
    return [resource(f"config/{node.name}.yaml"), *robots]


def remappings(node: NodeSpec, options: GraphOptions) -> list[tuple[str, str]]:
    """Pairs (from, to) of topic names."""
    # Two simulated robots in one domain have two times: each has its own clock, below its namespace.
    pairs = [("/clock", "clock")] if options.simulator and options.namespace else []
    pairs += options.arm_topics().items()
    if node.sees:
        pairs += [(f"{name}/image_raw", topic) for name, topic in options.camera_topics().items()]
    return pairs
