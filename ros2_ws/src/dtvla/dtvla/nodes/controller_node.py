"""The controller node: one clamped command per tick, a hold when there is no reason to move.

It is a process of its own, imports neither the policy nor the simulator, and survives both.
"""

from __future__ import annotations

import math

from geometry_msgs.msg import PoseStamped
from rclpy.event_handler import QoSSubscriptionMatchedInfo, SubscriptionEventCallbacks
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger

from dtvla.control.blending import Blend, Seam
from dtvla.control.coasting import Braking
from dtvla.control.executor import Executor, Mode
from dtvla.control.limits import Limits
from dtvla.control.motion import MotionLimits
from dtvla.control.robots import PANDA
from dtvla.nodes import qos
from dtvla.nodes.base import GraphNode
from dtvla.nodes.messages import chunk_from, delta_message, to_ns
from dtvla.nodes.parameters import CONTROLLER, Refusal
from dtvla.nodes.process import run
from dtvla_msgs.msg import ActionChunk, EndEffectorDelta


class ControllerNode(GraphNode):
    """policy/action_chunk and ee_pose in, controller/ee_delta out; stop latches, clear_stop releases."""

    schema = CONTROLLER

    def __init__(self) -> None:
        super().__init__("controller_node")
        self._waiting_ns: int | None = None

    def configure(self) -> None:
        settings = self.settings
        self._frame = settings.text("base_frame")
        limits = Limits(
            settings.number("max_linear_velocity_m_s"),
            settings.number("max_angular_velocity_rad_s"),
            settings.number("min_gripper_opening_m"),
            settings.number("max_gripper_opening_m"),
        )
        if limits.min_gripper_opening_m > limits.max_gripper_opening_m:
            raise Refusal("Parameter 'min_gripper_opening_m' is larger than 'max_gripper_opening_m'.")
        smooth = MotionLimits.of(PANDA)
        self._executor = Executor(
            Mode(settings.text("chunk_mode")),
            limits,
            lockstep=settings.flag("lockstep"),
            max_age_s=settings.number("max_chunk_age_s"),
            gripper_opening_m=limits.max_gripper_opening_m,
            blend=Blend(seam=Seam(settings.text("chunk_seam"))),
            braking=Braking(smooth.linear, smooth.angular),
        )

    def activate(self) -> None:
        self._waiting_ns = None
        publisher = self.create_publisher(EndEffectorDelta, "controller/ee_delta", qos.COMMAND)
        self._commands = self.live(publisher, self.destroy_publisher)
        matched = SubscriptionEventCallbacks(matched=self.guarded(self._on_policy_matched))
        chunks = self.create_subscription(
            ActionChunk,
            "policy/action_chunk",
            self.guarded(self._on_chunk),
            qos.COMMAND,
            event_callbacks=matched,
        )
        poses = self.create_subscription(PoseStamped, "ee_pose", self.guarded(self._on_pose), qos.SENSOR)
        joints = self.create_subscription(
            JointState, "joint_states", self.guarded(self._on_joints), qos.SENSOR
        )
        for subscription in (chunks, poses, joints):
            self.live(subscription, self.destroy_subscription)
        self.live(self.create_service(Trigger, "stop", self.guarded(self._on_stop)), self.destroy_service)
        self.live(
            self.create_service(Trigger, "clear_stop", self.guarded(self._on_clear)), self.destroy_service
        )

    def _on_chunk(self, message: ActionChunk) -> None:
        try:
            now_ns = self.get_clock().now().nanoseconds
            sentence = self._executor.offer(chunk_from(message, self._frame), now_ns)
        except Refusal as refusal:
            sentence = str(refusal)
        if sentence is not None:
            self.report.problem(
                "chunk", f"Chunk {message.decision_id} was refused: {sentence} The arm holds."
            )
            return
        self.report.solved("chunk")
        if self._waiting_ns is not None:
            self._answer(self._waiting_ns)

    def _on_pose(self, message: PoseStamped) -> None:
        stamp_ns = to_ns(message.header.stamp) or self.get_clock().now().nanoseconds
        self._answer(stamp_ns)

    def _on_joints(self, message: JointState) -> None:
        fingers = [p for name, p in zip(message.name, message.position, strict=False) if "finger" in name]
        if len(fingers) == 2 and math.isfinite(sum(fingers)):
            self._executor.measure_gripper(sum(fingers))

    def _answer(self, tick_ns: int) -> None:
        command = self._executor.step(tick_ns)
        self._waiting_ns = tick_ns if command is None else None
        if command is not None:
            self._commands.publish(delta_message(command, self._frame))
        executor = self._executor
        self.report.values(
            state=executor.state.value,
            decision_id=executor.chunk.decision_id if executor.chunk else 0,
            clamped_commands=executor.clamped,
            late_chunks=executor.late_chunks,
        )

    def _on_policy_matched(self, info: QoSSubscriptionMatchedInfo) -> None:
        """A policy that is gone leaves nothing behind; its successor counts its decisions from 1."""
        if info.current_count == 0:
            self._executor.forget_policy()
            self.report.values(state=self._executor.state.value)

    def _on_stop(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._executor.stop()
        self.report.problem("stop", "The arm is stopped and holds; call /clear_stop to release it.")
        if self._waiting_ns is not None:
            self._answer(self._waiting_ns)
        response.success, response.message = True, "Stopped. Call /clear_stop to release the arm."
        return response

    def _on_clear(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._executor.clear_stop()
        self.report.solved("stop")
        response.success, response.message = True, "Released: the arm follows the policy again."
        return response


def main() -> int:
    """Runs the node."""
    return run(ControllerNode)


if __name__ == "__main__":
    raise SystemExit(main())
