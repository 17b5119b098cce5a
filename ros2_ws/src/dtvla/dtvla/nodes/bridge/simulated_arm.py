"""The bridge takes target poses as well: the simulated robot becomes an arm with a controller of its own."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from geometry_msgs.msg import PoseStamped
from numpy.typing import NDArray
from sensor_msgs.msg import JointState

from dtvla.control.limits.motion import Pose
from dtvla.nodes.common import qos
from dtvla.nodes.common.conversions import pose_from, to_ns
from dtvla.nodes.common.lifecycle_node import GraphNode
from dtvla.nodes.common.parameters import Refusal
from dtvla.nodes.controller.arm_output import GRIPPER, TARGET
from dtvla.sim.controller_emulation import following_action
from dtvla.sim.env import GRIPPER_OPENING_M, Observation


class SimulatedArm:
    """Listens to target_pose and gripper/target. Created when the node is activated; `node.live` undoes it.

    Args:
        node: the bridge.
        frame: that poses must be in.
        on_target: called when pose and gripper of one tick have come.
    """

    def __init__(self, node: GraphNode, frame: str, on_target: Callable[[], None]) -> None:
        self._report, self._frame, self._on_target = node.report, frame, on_target
        self._pose: Pose | None = None
        self._pose_ns = 0
        self._opening_m = GRIPPER_OPENING_M
        self._gripper_ns = 0
        for kind, topic, callback in (
            (JointState, GRIPPER, self._on_gripper),
            (PoseStamped, TARGET, self._on_pose),
        ):
            subscription = node.create_subscription(kind, topic, node.guarded(callback), qos.TARGET)
            node.live(subscription, node.destroy_subscription)

    def begin(self) -> None:
        """A new episode: the arm stands elsewhere, and follows nothing yet."""
        self._pose = None

    def told(self, tick_ns: int) -> bool:
        """Whether pose and gripper for this tick have come."""
        return self._pose is not None and self._pose_ns == tick_ns == self._gripper_ns

    def action(self, obs: Observation) -> NDArray[np.float64] | None:
        """The raw action [7] towards the newest target; None before the first one."""
        if self._pose is None:
            return None
        return following_action(obs, self._pose, self._opening_m)

    def _on_gripper(self, message: JointState) -> None:
        if not (message.position and math.isfinite(message.position[0])):
            self._report.problem(
                "grip",
                "A gripper target without a finite position was refused; see what publishes it.",
            )
            return
        self._report.solved("grip")
        self._opening_m, self._gripper_ns = float(message.position[0]), to_ns(message.header.stamp)
        self._on_target()

    def _on_pose(self, message: PoseStamped) -> None:
        try:
            self._pose = pose_from(message, self._frame)
        except Refusal as refusal:
            self._report.problem("target", f"A target pose was refused: {refusal}")
            return
        self._report.solved("target")
        self._pose_ns = to_ns(message.header.stamp)
        self._on_target()
