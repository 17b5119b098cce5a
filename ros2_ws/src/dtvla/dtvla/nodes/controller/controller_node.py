"""The controller node: one limited command per tick, a hold when there is no reason to move.

It is a process of its own, imports neither the policy nor the simulator, and survives both. A simulated
world brings its own ticks and executes the policy's deltas; an arm is told target poses (`arm_output`).
"""

from __future__ import annotations

import math
import time

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.clock import Clock, ClockType
from rclpy.event_handler import (
    QoSLivelinessChangedInfo,
    QoSRequestedIncompatibleQoSInfo,
    QoSSubscriptionMatchedInfo,
    SubscriptionEventCallbacks,
)
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger

from dtvla.control.action_chunk import NS_PER_S
from dtvla.control.pose_servo import Target
from dtvla.control.watchdogs import RestWatch
from dtvla.nodes.common import qos
from dtvla.nodes.common.conversions import chunk_from, delta_message, pose_from, target_delta_message, to_ns
from dtvla.nodes.common.diagnostics import Level
from dtvla.nodes.common.lifecycle_node import GraphNode
from dtvla.nodes.common.parameters import CONTROLLER, Refusal
from dtvla.nodes.common.process import run
from dtvla.nodes.controller.arm_output import ArmOutput
from dtvla.nodes.controller.controller_setup import is_arm, make_executor, make_pose_servo
from dtvla.nodes.controller.safety_monitor import SafetyMonitor, monotonic_tick
from dtvla_msgs.msg import ActionChunk, EndEffectorDelta

WATCH_PERIOD_S = 0.1
LONGEST_TICK_S = 0.1  # what a late tick consumes of a chunk at most
# A tick that is later than so many: the arm stood meanwhile, and starts anew from rest. Going on at the old
# speed would tell it to be where it would have been, which is a jump of its target (25 mm after 0.1 s).
LATE_TICKS = 3.0
EPISODE_GAP_S = 0.5  # in lockstep, ticks that lie farther apart belong to two episodes


class ControllerNode(GraphNode):
    """policy/action_chunk and the arm's state in, controller/ee_delta or target_pose out; stop latches."""

    schema = CONTROLLER

    def __init__(self) -> None:
        super().__init__("controller_node")

    def configure(self) -> None:
        settings = self.settings
        self._frame = settings.text("base_frame")
        self._lockstep = settings.flag("lockstep")
        self._executor = make_executor(settings)
        self._servo = make_pose_servo(settings, self._executor) if is_arm(settings) else None
        self._joint_names = self._servo.joint_names if self._servo is not None else ()
        if self._servo is not None:
            self.report.values(robot=settings.text("robot"), dry_run=settings.flag("dry_run"))

    def activate(self) -> None:
        self._waiting_ns: int | None = None
        self._tick_ns: int | None = None
        self._told_ns: int | None = None
        self._pose_ns: int | None = None
        self._joints_ns: int | None = None
        self._policies = self._gone_policies = 0
        self._limited = 0
        self._rest = RestWatch()
        arm = self._servo is not None
        self._watches = SafetyMonitor(self.report, self.settings, arm=arm, joints=bool(self._joint_names))
        publisher = self.create_publisher(EndEffectorDelta, "controller/ee_delta", qos.COMMAND)
        self._commands = self.live(publisher, self.destroy_publisher)
        self._arm = ArmOutput(self, self._frame, dry_run=self.settings.flag("dry_run")) if arm else None
        self._subscribe()
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.live(
            self.create_timer(WATCH_PERIOD_S, self.guarded(self._watch), clock=steady), self.destroy_timer
        )
        if arm and not self._lockstep:
            period_s = 1.0 / self.settings.number("rate_hz")
            self.live(self.create_timer(period_s, self.guarded(self._beat), clock=steady), self.destroy_timer)

    def _subscribe(self) -> None:
        events = SubscriptionEventCallbacks(
            liveliness=self.guarded(self._on_policy_liveliness),
            matched=self.guarded(self._on_policy_matched),
            incompatible_qos=self.guarded(self._on_incompatible_policy),
        )
        chunks = self.create_subscription(
            ActionChunk,
            "policy/action_chunk",
            self.guarded(self._on_chunk),
            qos.COMMAND,
            event_callbacks=events,
        )
        poses = self.create_subscription(PoseStamped, "ee_pose", self.guarded(self._on_pose), qos.SENSOR)
        joints = self.create_subscription(
            JointState, "joint_states", self.guarded(self._on_joints), qos.SENSOR
        )
        for subscription in (chunks, poses, joints):
            self.live(subscription, self.destroy_subscription)
        for name, callback in (("stop", self._on_stop), ("clear_stop", self._on_clear)):
            self.live(self.create_service(Trigger, name, self.guarded(callback)), self.destroy_service)

    def _on_chunk(self, message: ActionChunk) -> None:
        try:
            chunk = chunk_from(message, self._frame)
            sentence = self._executor.offer(chunk, self.get_clock().now().nanoseconds)
        except Refusal as refusal:
            sentence = str(refusal)
        if sentence is not None:
            self.report.problem(
                "chunk", f"Chunk {message.decision_id} was refused: {sentence} The arm holds."
            )
            return
        self.report.solved("chunk")
        self._watches.hear_chunk(chunk, time.monotonic())
        if self._waiting_ns is not None:
            self._answer(self._waiting_ns)

    def _on_pose(self, message: PoseStamped) -> None:
        now_ns = self.get_clock().now().nanoseconds
        stamp_ns = to_ns(message.header.stamp) or now_ns
        try:
            pose = pose_from(message, self._frame)
            sentence = self._watches.pose_stamps.sentence(stamp_ns, now_ns)
        except Refusal as refusal:
            sentence = str(refusal)
        if sentence is None:
            self.report.solved("pose")
            self._watches.pose.hear(time.monotonic())
            self._rest.see(stamp_ns, pose)
            if self._servo is not None:
                self._servo.measure(pose)
        else:
            self.report.problem("pose", sentence, Level.WARNING)
        if self._servo is None:
            self._answer(stamp_ns)
        elif self._lockstep:
            self._pose_ns = stamp_ns
            self._answer_when_known()

    def _on_joints(self, message: JointState) -> None:
        positions = dict(zip(message.name, message.position, strict=False))
        fingers = [position for name, position in positions.items() if "finger" in name]
        if len(fingers) == 2 and math.isfinite(sum(fingers)):
            self._executor.measure_gripper(sum(fingers))
        if self._servo is None or not all(name in positions for name in self._joint_names):
            return
        values = np.array([positions[name] for name in self._joint_names])
        if np.isfinite(values).all():
            self._servo.measure_joints(values)
            self._watches.joints.hear(time.monotonic())
            self._joints_ns = to_ns(message.header.stamp)
            if self._lockstep:
                self._answer_when_known()

    def _answer_when_known(self) -> None:
        """Lockstep with an arm: answers a tick once pose and joints of it have come, in either order."""
        if self._pose_ns is not None and (not self._joint_names or self._joints_ns == self._pose_ns):
            self._answer(self._pose_ns)

    def _beat(self) -> None:
        """Real time with an arm: one tick, whatever has come."""
        self._tick_ns = monotonic_tick(self.get_clock().now().nanoseconds, self._tick_ns)
        self._answer(self._tick_ns)

    def _answer(self, tick_ns: int) -> None:
        suspended = self._watches.suspended(time.monotonic())
        if self._servo is not None:
            self._answer_arm(tick_ns, suspended)
            return
        command = self._executor.step(tick_ns, suspended=suspended)
        self._waiting_ns = tick_ns if command is None else None
        if command is not None:
            self._commands.publish(delta_message(command, self._frame))
        self._show()

    def _answer_arm(self, tick_ns: int, suspended: bool) -> None:
        assert self._servo is not None
        assert self._arm is not None
        now_ns = tick_ns if self._lockstep else time.monotonic_ns()
        late_s = LONGEST_TICK_S if self._told_ns is None else (now_ns - self._told_ns) / NS_PER_S
        usual_s = 1.0 / self.settings.number("rate_hz")
        if self._lockstep and not 0 <= late_s <= EPISODE_GAP_S:
            self._servo.begin()
            self._told_ns = now_ns
        if self._lockstep:
            # The world says how long a tick lasts; it is asked about the same one again.
            dt_s = lasts_s = late_s if 0 < late_s < LONGEST_TICK_S else LONGEST_TICK_S / 2
        else:
            stood = late_s > LATE_TICKS * usual_s
            if stood:
                self._servo.rest()
            dt_s = usual_s if stood or late_s <= 0 else late_s
            lasts_s = min(max(late_s, dt_s), LONGEST_TICK_S)
        target = self._servo.step(tick_ns, dt_s, lasts_s=lasts_s, suspended=suspended)
        self._waiting_ns = tick_ns if target is None and self._lockstep else None
        if target is not None:
            self._told_ns = now_ns
            self._arm.publish(target)
            self._commands.publish(target_delta_message(target, self._frame))
            self._tell(target)
        self._show()

    def _tell(self, target: Target) -> None:
        """The limits that were touched last, with their figures, and for how many ticks in all."""
        if target.events:
            self._limited += 1
            words = "; ".join(str(event) for event in target.events)
            self.report.values(last_limits=words, limited_ticks=self._limited)
        assert self._servo is not None
        strayed = self._servo.strayed
        if strayed is None:
            self.report.solved("following")
        else:
            self.report.problem(
                "following",
                f"The arm is {1000 * strayed[0]:.0f} mm and {strayed[1]:.2f} rad from its target: something "
                "holds it back, or its controller does not run. The target goes back to the arm and waits.",
            )

    def _show(self) -> None:
        executor = self._executor
        self.report.values(
            state=executor.state.value,
            decision_id=executor.chunk.decision_id if executor.chunk else 0,
            clamped_commands=executor.clamped,
            late_chunks=executor.late_chunks,
        )

    def _watch(self) -> None:
        """Looks after clocks and rivals, ten times a second."""
        if self._watches.clock_jumped(self.get_clock().now().nanoseconds, time.monotonic()):
            self._executor.drop_plans()
        rival_arms = self._arm.rivals() if self._arm is not None else ""
        self._watches.rivals(" ".join(filter(None, (self._rival_policies(), rival_arms))))
        if self._servo is not None:
            self._watches.suspended(time.monotonic())

    def _on_policy_liveliness(self, info: QoSLivelinessChangedInfo) -> None:
        """A policy that is gone leaves nothing behind; its successor counts its decisions from 1."""
        self._gone_policies = info.not_alive_count
        if info.alive_count == 0:
            self._executor.forget_policy()
            self._watches.forget_policy()
        self._watch()
        self._show()

    def _on_policy_matched(self, info: QoSSubscriptionMatchedInfo) -> None:
        """A publisher is known from its discovery on; it is called alive only some time later."""
        self._policies = info.current_count
        self._watch()

    def _rival_policies(self) -> str:
        """Who else may send chunks, in words; empty when nobody does. One that was killed does not count."""
        living = self._policies - self._gone_policies
        if living <= 1:
            return ""
        topic = self.resolve_topic_name("policy/action_chunk")
        return f"{living} policies publish {topic}, and their chunks would mix. End all but one."

    def _on_incompatible_policy(self, info: QoSRequestedIncompatibleQoSInfo) -> None:
        self.report.problem(
            "policy qos",
            f"A publisher of {self.resolve_topic_name('policy/action_chunk')} is not heard: it must be "
            f"reliable and offer a liveliness lease of at most {qos.LEASE_S:g} s, to be missed when it dies.",
        )

    def _on_stop(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._executor.stop()
        self.report.problem("stop", "The arm is stopped and holds; call /clear_stop to release it.")
        if self._waiting_ns is not None:
            self._answer(self._waiting_ns)
        response.success, response.message = True, "Stopped. Call /clear_stop to release the arm."
        return response

    def _on_clear(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.message = self._unrest()
        response.success = not response.message
        if response.success:
            self._executor.clear_stop()
            self.report.solved("stop")
            response.message = "Released: the arm follows the policy again."
        return response

    def _unrest(self) -> str:
        """Why the stop cannot be cleared; empty when the arm is at rest."""
        silent = self._watches.pose.sentence(time.monotonic())
        if self._servo is not None and not self._lockstep and silent is not None:
            return f"Whether the arm is at rest is not known: {silent}"
        if self._rest.moved is None or self._rest.at_rest:
            return ""
        moved_m, turned_rad = self._rest.moved
        return (
            f"The arm still moves ({1000 * moved_m:.0f} mm and {turned_rad:.2f} rad within the last "
            f"{self._rest.window_s:g} s). Call /clear_stop again when it is at rest."
        )


def main() -> int:
    """Runs the node."""
    return run(ControllerNode)


if __name__ == "__main__":
    raise SystemExit(main())
