"""What a real arm is told: target poses for its Cartesian controller, and its gripper.

`target_pose` (PoseStamped) is what CRISP, the FZI controllers and MoveIt Servo in POSE mode take, by
remapping. The gripper gets its opening on a topic (JointState: opening, speed, force), and as a
GripperCommand goal where control_msgs is installed and a server answers.
"""

from __future__ import annotations

import importlib
from typing import Any

from geometry_msgs.msg import PoseStamped
from rclpy.action import ActionClient
from sensor_msgs.msg import JointState

from dtvla.control.limits.gripper import GripperRequest
from dtvla.control.pose_servo import Target
from dtvla.nodes.common import qos
from dtvla.nodes.common.conversions import gripper_message, pose_message
from dtvla.nodes.common.lifecycle_node import GraphNode

TARGET, PREVIEW, GRIPPER, GRIPPER_ACTION = (
    "target_pose",
    "controller/preview_pose",
    "gripper/target",
    "gripper_action",
)
CHANGE_M = 0.002  # the gripper is sent a new goal when its opening changes by more


class ArmOutput:
    """Publishers towards the arm. Created when the node is activated; `node.live` undoes them.

    Args:
        node: the controller node.
        frame: of the poses.
        dry_run: only show what would be told.
    """

    def __init__(self, node: GraphNode, frame: str, *, dry_run: bool) -> None:
        self._node, self._frame, self._dry_run = node, frame, dry_run

        def publisher(kind: type, topic: str) -> Any:
            return node.live(node.create_publisher(kind, topic, qos.TARGET), node.destroy_publisher)

        self._poses = publisher(PoseStamped, PREVIEW if dry_run else TARGET)
        self._grips = None if dry_run else publisher(JointState, GRIPPER)
        self._gripper = None if dry_run else self._gripper_client()
        self._sent: GripperRequest | None = None

    def publish(self, target: Target) -> None:
        """Tells the arm where to be at the end of this tick."""
        stamp_ns = target.command.tick_ns
        if self._grips is not None:
            self._grips.publish(gripper_message(target.gripper, stamp_ns))
        self._poses.publish(pose_message(target.pose, stamp_ns, self._frame))
        if self._gripper is not None:
            self._grip(target.gripper)

    def rivals(self) -> str:
        """A sentence when somebody else publishes target poses too; empty otherwise."""
        if self._dry_run:
            return ""
        topic = self._node.resolve_topic_name(TARGET)
        others = [
            f"{info.node_namespace.rstrip('/')}/{info.node_name}"
            for info in self._node.get_publishers_info_by_topic(topic)
            if (info.node_namespace, info.node_name) != (self._node.get_namespace(), self._node.get_name())
        ]
        if not others:
            return ""
        names = " and ".join(sorted(set(others)))
        return f"{names} publishes {topic} too; an arm obeys one. End it, or remap it."

    def _gripper_client(self) -> Any:
        """A client of the gripper's action, or None without control_msgs (it is not on PyPI)."""
        try:
            actions = importlib.import_module("control_msgs.action")
        except ImportError:
            return None
        client: Any = ActionClient(self._node, actions.GripperCommand, GRIPPER_ACTION)
        self._goal = actions.GripperCommand.Goal
        return self._node.live(client, lambda client: client.destroy())

    def _grip(self, wanted: GripperRequest) -> None:
        """Sends a goal when the opening has changed and a server is there; the newest goal wins."""
        changed = self._sent is None or abs(self._sent.opening_m - wanted.opening_m) > CHANGE_M
        if not changed or self._gripper is None or not self._gripper.server_is_ready():
            return
        goal = self._goal()
        goal.command.position = wanted.opening_m / 2  # franka_ros2: the way of one finger
        goal.command.max_effort = wanted.force_n
        self._gripper.send_goal_async(goal)
        self._sent = wanted
