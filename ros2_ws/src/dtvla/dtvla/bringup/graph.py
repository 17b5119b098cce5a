"""The one table of nodes: what runs, in which order it comes alive, and with which parameters.

`launch/policy.launch.py` (real launch_ros) and the pip launcher (`dtvla up`) both read it, and both leave the
bringing up to the lifecycle manager, so the two cannot drift apart. Nothing here imports ROS.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from dtvla.control.options import ROBOT_NAMES, SIMULATOR
from dtvla.errors import InputError
from dtvla.nodes.common.names import RULE, TOPIC
from dtvla.resources import resource

ParameterValue = bool | int | float | str
ARM_TOPICS = ("target_pose", "gripper/target", "gripper_action", "ee_pose", "joint_states")


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


def option(default: Any, sentence: str) -> Any:
    """A field of `GraphOptions`, with the one sentence that help texts and launch arguments say of it."""
    return field(default=default, metadata={"sentence": sentence})


@dataclass(frozen=True)
class GraphOptions:
    """What the user chooses about a graph; `sentences` says what each option is.

    `bundle` is a folder that exists: command lines and launch files fill in the shipped one.
    """

    bundle: Path = field(
        metadata={"sentence": "Folder of the policy bundle. Default: the one that ships with dtvla."}
    )
    backend: str = option(
        "auto", "What runs it. auto: TensorRT engines that fit this machine, else ONNX Runtime on the CPU."
    )
    suite: str = option("embedded", "Benchmark suite of the simulator.")
    task: int = option(0, "Index of the task in the suite, from 0.")
    seed: int = option(
        0, "Seed of the first episode's object placement; each further episode takes the next one."
    )
    realtime: bool = option(
        False, "Let the world move on while the policy thinks. Default: lockstep, the world waits."
    )
    max_steps: int = option(0, "Control periods per episode (50 ms each); 0 takes the task's own limit.")
    autostart: bool = option(True, "Begin the first episode as soon as all nodes are active.")
    repeat: bool = option(False, "Begin the next episode, with the next seed, when one is over.")
    robot: str = option(
        SIMULATOR,
        "Whose limits hold. simulator: the benchmark's own deltas; panda, fr3: target poses the arm can "
        "follow (with the simulator: its Panda follows them).",
    )
    dry_run: bool = option(
        True,
        "With a robot: show what it would be told (controller/preview_pose), and tell it nothing. "
        "A simulated arm is always told.",
    )
    namespace: str = option("", "Of all nodes and topics, for one of several robots.")
    cameras: str = option(
        "",
        "Topics of the cameras, as in agentview=/camera/color/image_raw,wrist=/wrist/image_raw. "
        "Default: <name>/image_raw.",
    )
    arm: str = option(
        "",
        "Topics of the arm's driver, as in target_pose=/cartesian/target_pose,ee_pose=/current_pose. Names: "
        f"{', '.join(ARM_TOPICS)}.",
    )
    instruction: str = option(
        "", "What to do from the start, without a simulator. Default: wait for /instruction or a goal."
    )
    use_sim_time: str = option("auto", "true, false, or auto: true with the simulator.")
    respawn: bool = option(
        False, "Start the policy and the display nodes anew when they die or hang; the arm holds meanwhile."
    )
    policy: bool = option(True, "Run the policy node; off when somebody else publishes chunks.")
    simulator: bool = option(
        True, "Run the simulated robot. Without it, bring your own cameras and robot on the same topics."
    )
    console: bool = option(True, "Show the thoughts in this terminal.")
    record: bool = option(False, "Write an MCAP bag and one video per episode.")
    markers: bool = option(
        False, "Publish markers and the overlay picture for rviz: the thought and the planned path."
    )
    only: str = option(
        "",
        "Nodes that run here, comma-separated, when others run on other machines (libero_bridge_node: the "
        "simulated robot alone). Default: all.",
    )
    output: Path = field(default=Path("runs"), metadata={"sentence": "Where logs and recordings go."})

    def __post_init__(self) -> None:
        if self.robot not in ROBOT_NAMES:
            raise InputError(f"There is no robot '{self.robot}'. Choose one of: {', '.join(ROBOT_NAMES)}.")
        if self.simulator and self.robot == "fr3":
            raise InputError("The simulated arm is a Panda. Choose robot panda, or leave the simulator out.")
        if self.use_sim_time not in ("auto", "true", "false"):
            raise InputError(f"use_sim_time is '{self.use_sim_time}'; it must be auto, true or false.")
        if self.namespace and not TOPIC.fullmatch(self.namespace):
            raise InputError(f"'{self.namespace}' is no namespace: {RULE}.")
        self.camera_topics()
        self.arm_topics()
        chosen = [node.name for node in GRAPH if _chosen(node, self)]
        for name in self.only_nodes():
            if name not in chosen:
                raise InputError(
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
                raise InputError(f"arm has '{name}'; it may name: {', '.join(ARM_TOPICS)}.")
        return found


def _topics(option: str, text: str, example: str) -> dict[str, str]:
    found = {}
    for item in filter(None, text.replace(" ", "").split(",")):
        name, equals, topic = item.partition("=")
        if not (equals and TOPIC.fullmatch(name) and TOPIC.fullmatch(topic)):
            raise InputError(
                f"{option} has '{item}'; it takes a list such as {example}, of names with {RULE}."
            )
        found[name] = topic
    return found


def sentences() -> dict[str, str]:
    """What each option of a graph is, in one sentence, by its name."""
    return {each.name: each.metadata["sentence"] for each in fields(GraphOptions)}


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
    if options.robot != SIMULATOR:
        controller["dry_run"] = options.dry_run and not options.simulator
    decided: dict[str, dict[str, ParameterValue]] = {
        "libero_bridge_node": {
            "suite": options.suite,
            "task": options.task,
            "seed": options.seed,
            "lockstep": lockstep,
            "follow": options.robot != SIMULATOR,
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
    if options.simulator and options.robot != SIMULATOR:  # simulated cameras have no noise, and no delay
        decided["policy_node"] |= {"frozen_image_s": 0.0, "max_image_age_s": 0.0}
    for node in selected(options):
        if node.lifecycle and node.name != "libero_bridge_node":  # that one makes the time
            decided.setdefault(node.name, {})["use_sim_time"] = sim_time
    return decided


def parameter_files(node: NodeSpec, robot: str = SIMULATOR) -> list[Path]:
    """The node's parameter file, and the robot's behind it, which wins; none without parameters."""
    if node.name == "console_node":
        return []
    robots = [] if robot == SIMULATOR else [resource(f"config/robots/{robot}.yaml")]
    return [resource(f"config/{node.name}.yaml"), *robots]


def remappings(node: NodeSpec, options: GraphOptions) -> list[tuple[str, str]]:
    """Pairs (from, to) of topic names."""
    # Two simulated robots in one domain have two times: each has its own clock, below its namespace.
    pairs = [("/clock", "clock")] if options.simulator and options.namespace else []
    pairs += options.arm_topics().items()
    if node.sees:
        pairs += [(f"{name}/image_raw", topic) for name, topic in options.camera_topics().items()]
    return pairs
