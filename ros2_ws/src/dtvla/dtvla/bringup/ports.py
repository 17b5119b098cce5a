"""Who talks to whom: the topics, services and actions of every node, in one table.

What a node may say and hear under SROS2 is derived from it (`dtvla.bringup.sros2`), and a test holds the
running nodes to it (tests/ros/test_ports.py). Nothing here imports ROS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from dtvla.bringup.graph import MANAGER, GraphOptions, NodeSpec, overrides

CAMERA = "{camera}"  # stands for every camera of the robot
NODE = "{node}"  # stands for every lifecycle node of the graph


@dataclass(frozen=True)
class Ports:
    """The names that a node uses. One without a leading `/` or `~` lies in the node's namespace.

    Attributes:
        publishes, subscribes: topics.
        serves, calls: services.
        executes, sends: actions that it executes, and whose goals it sends.
    """

    publishes: tuple[str, ...] = ()
    subscribes: tuple[str, ...] = ()
    serves: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
    executes: tuple[str, ...] = ()
    sends: tuple[str, ...] = ()

    def __or__(self, other: Ports) -> Ports:
        """Everything that one of the two uses, each name once."""
        kinds = [field.name for field in fields(Ports)]
        return Ports(*(tuple(dict.fromkeys(getattr(self, kind) + getattr(other, kind))) for kind in kinds))


IMAGES = f"{CAMERA}/image_raw"

# Every ROS 2 node in Python has these (rclpy of Kilted).
EVERY_NODE = Ports(
    publishes=("/rosout", "/parameter_events"),
    serves=tuple(
        f"~/{name}"
        for name in (
            "describe_parameters",
            "get_parameter_types",
            "get_parameters",
            "list_parameters",
            "set_parameters",
            "set_parameters_atomically",
            "get_type_description",
        )
    ),
)
LIFECYCLE = Ports(
    publishes=("~/transition_event", "/diagnostics"),
    serves=tuple(
        f"~/{name}"
        for name in (
            "change_state",
            "get_state",
            "get_available_states",
            "get_available_transitions",
            "get_transition_graph",
        )
    ),
)
SIMULATED_TIME = Ports(subscribes=("/clock",))

# What shows the thought and the controller's state listens to these (`ReasoningSubscription`).
_REASONING = Ports(subscribes=("instruction", "policy/reasoning", "policy/action_chunk", "/diagnostics"))

# What a node uses beside that, in any of its configurations.
OWN: Mapping[str, Ports] = {
    "recorder_node": Ports(
        subscribes=(
            IMAGES,
            "joint_states",
            "ee_pose",
            "instruction",
            "policy/action_chunk",
            "policy/reasoning",
            "controller/ee_delta",
            "target_pose",
            "gripper/target",
            "task_state",
            "/diagnostics",
        ),
    ),
    "console_node": Ports(
        subscribes=("task_state", "policy/reasoning", "policy/action_chunk", "/diagnostics")
    ),
    "reasoning_markers_node": _REASONING | Ports(publishes=("reasoning_markers",), subscribes=("ee_pose",)),
    "reasoning_overlay_node": _REASONING
    | Ports(publishes=("reasoning/overlay",), subscribes=("task_state", IMAGES)),
    "controller_node": Ports(
        publishes=("controller/ee_delta", "target_pose", "controller/preview_pose", "gripper/target"),
        subscribes=("policy/action_chunk", "ee_pose", "joint_states"),
        serves=("stop", "clear_stop"),
        sends=("gripper_action",),
    ),
    "policy_node": Ports(
        publishes=("policy/action_chunk", "policy/reasoning"),
        subscribes=("instruction", "task_state", IMAGES),
        executes=("execute_instruction",),
    ),
    "libero_bridge_node": Ports(
        publishes=("/clock", "joint_states", "ee_pose", IMAGES, "instruction", "task_state"),
        subscribes=("controller/ee_delta", "target_pose", "gripper/target"),
        serves=("reset_scene",),
    ),
    MANAGER.name: Ports(
        publishes=("/diagnostics",),
        subscribes=("/diagnostics",),
        calls=(f"{NODE}/change_state", f"{NODE}/get_state"),
    ),
}


def ports(node: NodeSpec) -> Ports:
    """Everything that a node of the graph uses, in any of its configurations."""
    timed = "use_sim_time" in overrides(GraphOptions(bundle=Path())).get(node.name, {})
    common = EVERY_NODE | (LIFECYCLE if node.lifecycle else Ports())
    return OWN[node.name] | (SIMULATED_TIME if timed else Ports()) | common
