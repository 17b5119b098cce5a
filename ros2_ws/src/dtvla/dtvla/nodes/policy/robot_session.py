"""One robot that the policy node serves: its cameras, its instruction, its goal, its chunks and thoughts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image
from std_msgs.msg import String

from dtvla.control.action_chunk import NS_PER_S
from dtvla.control.replanning_rule import ReplanningRule
from dtvla.control.watchdogs import StampWatch
from dtvla.nodes.common import qos
from dtvla.nodes.common.conversions import chunk_message, picture_from, to_duration, to_ns, to_time
from dtvla.nodes.common.diagnostics import Level
from dtvla.nodes.common.instructions import checked
from dtvla.nodes.common.lifecycle_node import GraphNode
from dtvla.nodes.common.parameters import Refusal
from dtvla.nodes.common.rate_limit import RateLimit
from dtvla.nodes.policy.image_synchroniser import ImageSynchroniser, SynchronisedImages
from dtvla.nodes.policy.inference_thread import Discarded, InferenceRequest, InferenceThread
from dtvla.nodes.policy.task_action_server import TaskActionServer
from dtvla.policy.bundle.policy_spec import PolicySpec
from dtvla.policy.policy import Decision
from dtvla_msgs.msg import ActionChunk, Reasoning, TaskState


@dataclass(frozen=True)
class SharedPolicy:
    """What the sessions of one policy share.

    Attributes:
        spec: of the policy.
        worker: takes the decisions.
        next_id: counts the decisions of the process.
    """

    spec: PolicySpec
    worker: InferenceThread
    next_id: Callable[[], int]


class RobotSession:
    """Listens to one robot and answers it. Created when the node is activated; `node.live` undoes it.

    Args:
        node: the policy node.
        robot: the robot's namespace; empty for the only one.
        table: what it shares with the others.
    """

    def __init__(self, node: GraphNode, robot: str, table: SharedPolicy) -> None:
        self._node, self.robot, self._table = node, robot, table
        self._prefix = f"{robot}/" if robot else ""
        self._lock = threading.Lock()  # publishing a decision and discarding it exclude each other
        self._words: str | None = None
        self._chunk: ActionChunk | None = None
        self._done_ns: int | None = None  # stamp of the tick at which the task was over
        self._observation: SynchronisedImages | None = None
        self._since_s = time.monotonic()
        self._frame = node.settings.text("base_frame")
        self._rate = RateLimit(
            "instructions",
            node.settings.number("max_instructions_per_s"),
            "max_instructions_per_s",
        )
        self._cameras = [camera.name for camera in table.spec.cameras]
        age_s = node.settings.number("max_image_age_s")
        self._stamps = {name: StampWatch(f"camera '{name}'", age_s) for name in self._cameras}
        self._synchroniser = ImageSynchroniser(
            self._cameras,
            node.settings.number("pair_tolerance_s"),
            node.settings.number("frozen_image_s"),
        )
        period_ns = round(table.spec.control_period_s * NS_PER_S)
        self._replanning = ReplanningRule(table.spec.execute_steps * period_ns, period_ns)
        self._chunks = node.live(
            node.create_publisher(ActionChunk, self._topic("policy/action_chunk"), qos.COMMAND),
            node.destroy_publisher,
        )
        self._reasoning = node.live(
            node.create_publisher(Reasoning, self._topic("policy/reasoning"), qos.STREAM),
            node.destroy_publisher,
        )
        # The instruction's subscription comes first: when both are ready, it is served before the images.
        self._listen(String, "instruction", self.on_instruction, qos.LATCHED)
        self._listen(TaskState, "task_state", self._on_task_state, qos.LATCHED)
        for camera in self._cameras:
            self._listen(Image, f"{camera}/image_raw", partial(self._on_image, camera), qos.SENSOR)
        self._goals = node.live(
            TaskActionServer(node, self.begin, self.halt, self._prefix), TaskActionServer.close
        )

    def leave(self, sentence: str) -> None:
        """Ends the goal in progress with a sentence, and holds the arm."""
        self._goals.finish(False, sentence)
        self.halt()

    def on_instruction(self, message: String) -> None:
        """A new instruction on the topic replaces whatever was followed."""
        self._goals.finish(False, "Another instruction came on /instruction.")
        try:
            self.begin(message.data)
        except Refusal as refusal:
            self.halt()
            self.problem("instruction", f"{refusal} The arm holds.")

    def begin(self, text: str) -> None:
        """From now on the policy follows `text`; whatever is in flight is discarded.

        Raises:
            Refusal: it cannot be followed.
        """
        self._rate.count(time.monotonic())
        words = checked(text, self._node.settings.integer("max_instruction_characters"))
        with self._lock:
            self._table.worker.discard(self.robot)
            self._words = words
            self._hold()  # what was planned for the old words has no say any more
        self._replanning.last_ns = None
        self._observation = None
        self.solved("instruction")
        self.solved("input")

    def halt(self) -> None:
        """The policy stops deciding, and tells the arm to stay where it is."""
        with self._lock:
            self._table.worker.discard(self.robot)
            self._words = None
            self._hold()

    def publish(
        self, request: InferenceRequest, decision: Decision, thought_ns: int, discarded: Discarded
    ) -> None:
        """Publishes a decision, unless it is not wanted any more. Called in the worker's thread."""
        with self._lock:
            if not discarded():
                self._publish(request, decision, thought_ns)

    def think_aloud(
        self, decision_id: int, stamp_ns: int, text: str, tokens: int, accepted: int, **ending: bool
    ) -> None:
        """Publishes a thought as far as it has grown; `ending` sets `finished` and `truncated`."""
        message = Reasoning(decision_id=decision_id, text=text, tokens=tokens, kept_tokens=accepted, **ending)
        message.header.stamp = to_time(stamp_ns)
        message.header.frame_id = self._frame
        self._reasoning.publish(message)

    def watch(self) -> None:
        """Looks after the cameras and the goal's time."""
        self._goals.watch()
        timeout_s = self._node.settings.number("image_timeout_s")
        silent = self._synchroniser.silent(time.monotonic(), timeout_s, self._since_s)
        idle = len(silent) == len(self._cameras) and (self._words is None or self._done_ns is not None)
        if not silent or idle:
            self.solved("cameras")
            if not silent:
                self._watch_pictures(timeout_s)
            return
        names = " and ".join(silent)
        topics = ", ".join(self._node.resolve_topic_name(self._topic(f"{name}/image_raw")) for name in silent)
        sentence = f"No image from {names} for {timeout_s:g} s: nothing is decided, the arm holds. "
        sentence += f"Start the camera, or remap its topic to {topics}."
        self.problem("cameras", sentence, Level.WARNING if len(silent) == len(self._cameras) else Level.ERROR)

    def _watch_pictures(self, timeout_s: float) -> None:
        """All cameras send; is it one and the same picture, or pictures of different moments?"""
        frozen = self._synchroniser.frozen()
        if frozen:
            names, limit_s = " and ".join(frozen), self._node.settings.number("frozen_image_s")
            self.problem(
                "frozen",
                f"The picture of {names} has not changed in a single bit for {limit_s:g} s while its stamps "
                "go on: nothing is decided, the arm holds. Restart the camera's driver.",
            )
        else:
            self.solved("frozen")
        apart_s = self._synchroniser.apart_s(time.monotonic(), timeout_s, self._since_s)
        if apart_s is not None:
            tolerance_s = self._node.settings.number("pair_tolerance_s")
            self.problem(
                "pairing",
                f"The cameras' newest pictures are {apart_s:.3g} s apart; {tolerance_s:g} s are allowed "
                "(pair_tolerance_s): nothing is decided, the arm holds. Synchronise the cameras' clocks.",
            )
        else:
            self.solved("pairing")

    def problem(self, key: str, sentence: str, level: Level = Level.ERROR) -> None:
        """Reports what is wrong with this robot."""
        self._node.report.problem(self._named(key), self._named(sentence), level)

    def solved(self, key: str) -> None:
        """Takes a report back."""
        self._node.report.solved(self._named(key))

    def _named(self, words: str) -> str:
        return f"{self.robot}: {words}" if self.robot else words

    def _topic(self, name: str) -> str:
        return f"{self._prefix}{name}"

    def _listen(self, kind: type, name: str, callback: Callable[[Any], None], quality: QoSProfile) -> None:
        node = self._node
        subscription = node.create_subscription(kind, self._topic(name), node.guarded(callback), quality)
        node.live(subscription, node.destroy_subscription)

    def _hold(self) -> None:
        """Tells the arm to stay, if it follows a chunk of ours. The lock must be held."""
        if self._chunk is not None and self._node.context.ok():
            self._chunks.publish(self._stay(self._chunk))
        self._chunk = None

    def _stay(self, last: ActionChunk) -> ActionChunk:
        """A chunk of one row that moves nothing and leaves the gripper as `last` had it."""
        stamp_ns = self._observation.stamp_ns if self._observation is not None else to_ns(last.header.stamp)
        row = (stamp_ns - to_ns(last.header.stamp)) // self._replanning.period_ns
        row = min(max(row, 0), last.execute_steps - 1)
        raw = np.zeros((1, 7))
        raw[0, 6] = last.raw_actions[7 * row + 6]
        message = chunk_message(
            self._table.spec,
            raw,
            decision_id=self._table.next_id(),
            stamp_ns=stamp_ns,
            base_frame=self._frame,
        )
        message.hold = True
        return message

    def _on_task_state(self, message: TaskState) -> None:
        self._done_ns = to_ns(message.header.stamp) if message.done else None
        self._goals.on_task_state(message)

    def _on_image(self, camera: str, message: Image) -> None:
        now_ns = self._node.get_clock().now().nanoseconds
        stamp_ns = to_ns(message.header.stamp) or now_ns
        try:
            picture = picture_from(message, camera)
        except Refusal as refusal:
            self._synchroniser.drop(camera)
            self.problem(f"image {camera}", f"{refusal} The arm holds.")
            return
        stale = self._stamps[camera].sentence(stamp_ns, now_ns)
        if stale is not None:
            self.problem(f"image {camera}", f"{stale} The picture is not used.", Level.WARNING)
            return
        self.solved(f"image {camera}")
        observation = self._synchroniser.see(camera, stamp_ns, picture, time.monotonic())
        if observation is not None and self._words is not None:
            self._consider(observation)

    def _consider(self, observation: SynchronisedImages) -> None:
        """Decides on a look when it is time to. A look shown twice means that the world waits for us."""
        repeated = self._observation is not None and self._observation.stamp_ns == observation.stamp_ns
        self._observation = observation
        if self._table.worker.busy(self.robot) or observation.stamp_ns == self._done_ns:
            return
        due = self._replanning.due(observation.stamp_ns)  # also when its first showing met a busy worker
        if repeated and not due and self._chunk is not None:
            self._chunks.publish(self._chunk)
        elif repeated or due:
            fresh = self._replanning.last_ns is None
            self._replanning.last_ns = observation.stamp_ns
            assert self._words is not None
            self._table.worker.submit(
                InferenceRequest(self.robot, self._table.next_id(), observation, self._words, fresh)
            )

    def _publish(self, request: InferenceRequest, decision: Decision, thought_ns: int) -> None:
        message = chunk_message(
            self._table.spec,
            decision.raw_actions,
            decision_id=request.decision_id,
            stamp_ns=request.observation.stamp_ns,
            base_frame=self._frame,
        )
        message.instruction = request.instruction
        message.thought = decision.thought
        message.thought_stamp = to_time(thought_ns)
        message.thought_truncated = decision.truncated
        message.inference_time = to_duration(decision.timings["total"])
        self._chunk = message
        self._chunks.publish(message)
        ending = {"finished": True, "truncated": decision.truncated}
        self.think_aloud(
            request.decision_id,
            request.observation.stamp_ns,
            decision.thought,
            decision.tokens,
            decision.accepted,
            **ending,
        )
        self._goals.on_decision(decision.thought)
        self.solved("input")
        self.solved("inference")
        overhead_s = time.monotonic() - request.submitted_s - decision.timings["total"]
        figures = {
            "decision_id": request.decision_id,
            "thought": decision.thought,
            "tokens": decision.tokens,
            "kept_tokens": decision.accepted,
            "passes": decision.passes,
            "thought_age_ms": f"{(request.observation.stamp_ns - thought_ns) / 1e6:.0f}",
            "overhead_ms": f"{1000 * overhead_s:.1f}",
            **{f"{phase}_ms": f"{1000 * seconds:.1f}" for phase, seconds in decision.timings.items()},
        }
        prefix = f"{self.robot}." if self.robot else ""
        self._node.report.values(**{f"{prefix}{key}": value for key, value in figures.items()})
        self._node.report.publish()
