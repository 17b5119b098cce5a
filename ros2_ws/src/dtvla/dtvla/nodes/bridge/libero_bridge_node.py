"""The LIBERO bridge: a simulated robot behind the topics of a real one. It owns time.

Lockstep: the world waits for the command of each tick, so a run gives the same result on any machine.
Real time: the world moves on every control period, with whatever command has come by then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped
from numpy.typing import NDArray
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.qos import QoSProfile
from rosgraph_msgs.msg import Clock as ClockMessage
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String

from dtvla.control.action_chunk import NS_PER_S
from dtvla.evaluation.policy_adapters import script
from dtvla.nodes.bridge.bridge_clients import BridgeClient, EpisodeMonitor, ScriptedPolicyClient
from dtvla.nodes.bridge.simulated_arm import SimulatedArm
from dtvla.nodes.bridge.simulation_session import SimulationSession
from dtvla.nodes.common import qos
from dtvla.nodes.common.conversions import image_message, to_ns, to_time
from dtvla.nodes.common.diagnostics import Level
from dtvla.nodes.common.lifecycle_node import GraphNode, describe
from dtvla.nodes.common.parameters import LIBERO_BRIDGE
from dtvla.nodes.common.process import run
from dtvla.policy.options import CAMERAS
from dtvla.sim.env import CONTROL_PERIOD_S, IDLE_ACTION, JOINT_NAMES, raw_action
from dtvla_msgs.msg import EndEffectorDelta, TaskState
from dtvla_msgs.srv import ResetScene

PERIOD_NS = round(CONTROL_PERIOD_S * NS_PER_S)
FINGER_NAMES = ("panda_finger_joint1", "panda_finger_joint2")
ACK_TIMEOUT_S = 2.0


class LiberoBridgeNode(GraphNode):
    """A simulated world behind the topics of a robot: images, joints and pose out, deltas in."""

    schema = LIBERO_BRIDGE

    def __init__(self) -> None:
        super().__init__("libero_bridge_node")
        self._loaded: SimulationSession | None = None
        self._tick_ns = time.time_ns() // PERIOD_NS * PERIOD_NS  # never goes back, even across restarts
        self._answer: EndEffectorDelta | None = None
        self._sent_s = 0.0
        self._waited_s = 0.0
        self._gripper_raw = IDLE_ACTION[6]
        self._bridge_clients: list[BridgeClient] = []

    @property
    def _world(self) -> SimulationSession:
        assert self._loaded is not None, "the node is not configured"
        return self._loaded

    def configure(self) -> None:
        settings = self.settings
        self._lockstep = settings.flag("lockstep")
        self._frame = settings.text("base_frame")
        self._always_render = settings.flag("render_unseen")
        world = SimulationSession(
            image_size=settings.integer("image_size_px"),
            fast=settings.flag("fast_rendering"),
            max_steps=settings.integer("max_steps"),
        )
        name = settings.text("script")
        self._script = script(name) if name else None
        self._loaded = world
        world.load(settings.text("suite"), settings.integer("task"))

    def activate(self) -> None:
        def publisher(kind: type, topic: str, quality: QoSProfile) -> Any:
            return self.live(self.create_publisher(kind, topic, quality), self.destroy_publisher)

        self._time = publisher(ClockMessage, "/clock", qos.CLOCK)
        self._joints = publisher(JointState, "joint_states", qos.SENSOR)
        self._pose = publisher(PoseStamped, "ee_pose", qos.SENSOR)
        self._images = {name: publisher(Image, f"{name}/image_raw", qos.SENSOR) for name in CAMERAS}
        self._instruction = publisher(String, "instruction", qos.LATCHED)
        self._state = publisher(TaskState, "task_state", qos.LATCHED)
        command = self.create_subscription(
            EndEffectorDelta, "controller/ee_delta", self.guarded(self._on_command), qos.COMMAND
        )
        self.live(command, self.destroy_subscription)
        self._arm: SimulatedArm | None = None
        if self.settings.flag("follow"):
            self._arm = SimulatedArm(self, self._frame, self._on_target)
        service = self.create_service(ResetScene, "reset_scene", self.guarded(self._on_reset))
        self.live(service, self.destroy_service)
        self._start_clients()
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        beat = self._watch if self._lockstep else self._beat
        period = min(0.2, self.settings.number("resend_after_s")) if self._lockstep else CONTROL_PERIOD_S
        self.live(self.create_timer(period, self.guarded(beat), clock=steady), self.destroy_timer)
        if self.settings.flag("autostart"):
            self._start_episode(
                self.settings.text("suite"), self.settings.integer("task"), self.settings.integer("seed")
            )

    def cleanup(self) -> None:
        self._world.close()
        self._loaded = None

    def _start_clients(self) -> None:
        on_failed: Callable[[str], None] = partial(self.report.problem, "script")
        if self.settings.flag("examine"):
            episode_monitor = EpisodeMonitor(self, self._world, self._frame, exact=self._lockstep)
            self._take_in(episode_monitor)
            on_failed = episode_monitor.fail
        if self._script is not None:
            self._take_in(ScriptedPolicyClient(self, self._world, self._frame, self._script, on_failed))

    def _take_in(self, client: BridgeClient) -> None:
        self.executor.add_node(client)
        self._bridge_clients.append(self.live(client, self._end_clients))

    def _end_clients(self, client: BridgeClient) -> None:
        self._bridge_clients.remove(client)
        self.executor.remove_node(client)
        client.destroy_node()

    def _on_reset(self, request: ResetScene.Request, response: ResetScene.Response) -> ResetScene.Response:
        try:
            self._start_episode(request.suite or self._present_suite, request.task, request.seed)
        except Exception as error:
            response.success, response.message = False, f"The scene was not reset: {describe(error)}"
            self.report.problem("reset", response.message)
            return response
        response.success = True
        response.instruction = self._world.info.language
        response.episode = self._world.episode
        response.message = f"Episode {response.episode}: task {self._world.info.name}, seed {request.seed}."
        return response

    @property
    def _present_suite(self) -> str:
        return self._world.info.suite if self._world.loaded else self.settings.text("suite")

    def _start_episode(self, suite: str, task: int, seed: int) -> None:
        world = self._world
        world.load(suite, task)
        world.reset(seed)
        try:
            for client in self._bridge_clients:
                client.begin()
        except ValueError:
            world.abandon()
            raise
        self.report.solved("reset")
        if self._arm is not None:
            self._arm.begin()
        self._gripper_raw = IDLE_ACTION[6]
        self._waited_s = 0.0
        # The instruction must be with the policy before the first images of the episode are, or it
        # would look at the new scene with the old task in mind.
        self._instruction.publish(String(data=world.info.language))
        self._instruction.wait_for_all_acked(Duration(seconds=ACK_TIMEOUT_S))
        self._tick_ns += NS_PER_S
        self._publish_tick()

    def _on_command(self, message: EndEffectorDelta) -> None:
        if self._world.done or to_ns(message.header.stamp) != self._tick_ns:
            return  # an answer to a tick that was published twice, or to a past episode
        self._answer = message
        if self._arm is not None and not self._arm.told(self._tick_ns):
            return  # its target pose is still on the way
        if self._lockstep:
            self._waited_s += time.monotonic() - self._sent_s
            self.report.solved("command")
            self._advance(message)

    def _on_target(self) -> None:
        if self._answer is not None:
            self._on_command(self._answer)

    def _advance(self, command: EndEffectorDelta | None) -> None:
        """One control period: executes the command (None: hold) and publishes the next tick."""
        decision = None if command is None or command.hold else command.decision_id
        self._world.step(self._action(command), decision)
        for client in self._bridge_clients:
            client.executed(command)
        self._tick_ns += PERIOD_NS
        self._publish_tick()
        if self._world.done:
            self.report.publish()
            if self.settings.flag("repeat"):
                info = self._world.info
                self._start_episode(info.suite, info.index, self._world.seed + 1)

    def _action(self, command: EndEffectorDelta | None) -> Sequence[float] | NDArray[np.float64]:
        following = self._arm.action(self._world.seen) if self._arm is not None else None
        if following is not None:
            return following
        if command is None or self._arm is not None:
            return [*IDLE_ACTION[:6], self._gripper_raw]
        action: Sequence[float] | NDArray[np.float64]
        if len(command.raw_action):
            action = command.raw_action
        else:
            v, w = command.translation, command.rotation
            action = raw_action((v.x, v.y, v.z), (w.x, w.y, w.z), command.gripper_opening)
        self._gripper_raw = float(action[6])
        return action

    def _publish_tick(self) -> None:
        world, stamp = self._world, to_time(self._tick_ns)
        obs = world.seen
        self._answer = None
        self._time.publish(ClockMessage(clock=stamp))
        self._state.publish(self._task_state())
        joints = JointState(name=[*JOINT_NAMES, *FINGER_NAMES])
        joints.header.stamp = stamp
        finger = obs.gripper_opening_m / 2
        joints.position = [*obs.joint_positions.tolist(), finger, finger]
        joints.velocity = [*obs.joint_velocities.tolist(), 0.0, 0.0]
        self._joints.publish(joints)
        self._pose.publish(self._pose_message(obs.ee_position.tolist(), obs.ee_quaternion.tolist()))
        # Rendering is most of a step's cost, and changes nothing in the world: only when somebody looks.
        if self._always_render or any(image.get_subscription_count() for image in self._images.values()):
            for name, picture in world.pictures().items():
                self._images[name].publish(image_message(picture, stamp, f"{name}_optical_frame"))
        self.report.values(
            episode=world.episode,
            step=obs.step,
            state_sha256=world.fingerprint,
            waited_s=f"{self._waited_s:.3f}",
            mode="lockstep" if self._lockstep else "real time",
        )
        self._sent_s = time.monotonic()
        for client in self._bridge_clients:
            client.tick(self._tick_ns)

    def _pose_message(self, position: list[float], quaternion: list[float]) -> PoseStamped:
        message = PoseStamped()
        message.header.stamp = to_time(self._tick_ns)
        message.header.frame_id = self._frame
        message.pose.position.x, message.pose.position.y, message.pose.position.z = position
        turn = message.pose.orientation
        turn.x, turn.y, turn.z, turn.w = quaternion
        return message

    def _task_state(self) -> TaskState:
        world = self._world
        message = TaskState(
            suite=world.info.suite,
            task=world.info.index,
            task_name=world.info.name,
            instruction=world.info.language,
            seed=world.seed,
            episode=world.episode,
            step=world.seen.step,
            max_steps=world.info.max_steps,
            success=world.seen.success,
            done=world.done,
        )
        message.header.stamp = to_time(self._tick_ns)
        message.header.frame_id = self._frame
        return message

    def _watch(self) -> None:
        """Lockstep: publishes the tick again when no command came, as images may be lost on the way."""
        waited_s = time.monotonic() - self._sent_s
        if self._world.done or waited_s < self.settings.number("resend_after_s"):
            return
        listeners = self._pose.get_subscription_count()
        why = (
            "the policy has not decided yet (its diagnostics say more)"
            if listeners
            else "no controller is running"
        )
        sentence = f"The world waits in step {self._world.seen.step} for a command: {why}."
        self.report.problem("command", sentence, Level.WARNING)
        self._publish_tick()

    def _beat(self) -> None:
        """Real time: moves on, whatever has come."""
        if not self._world.done:
            self._advance(self._answer)


def main() -> int:
    """Runs the node."""
    return run(LiberoBridgeNode)


if __name__ == "__main__":
    raise SystemExit(main())
