"""The policy node: looks through the cameras, thinks aloud, proposes action chunks.

Callbacks run in one thread, decisions in another (`Worker`), so that a new instruction or a cancelled
goal is heard while the policy thinks.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image
from std_msgs.msg import String

from dtvla.control.chunks import NS_PER_S
from dtvla.graph import default_bundle
from dtvla.nodes import qos
from dtvla.nodes.base import GraphNode, describe
from dtvla.nodes.diagnostics import Level
from dtvla.nodes.eyes import Cadence, Eyes, Look
from dtvla.nodes.goals import GoalServer
from dtvla.nodes.instructions import checked
from dtvla.nodes.messages import chunk_message, picture_from, to_duration, to_ns, to_time
from dtvla.nodes.parameters import POLICY, Refusal
from dtvla.nodes.process import run
from dtvla.nodes.worker import Discarded, Job, Worker
from dtvla.policy.background import BackgroundThinker, Question, Thought
from dtvla.policy.errors import DecisionStopped, PolicyInputError
from dtvla.policy.runner import Decision, DecisionOptions, Policy
from dtvla_msgs.msg import ActionChunk, Reasoning, TaskState

WATCH_PERIOD_S = 0.1
SWITCH_INTERVAL_S = 0.0005  # the thread that decides must not wait 5 ms for the one that listens
NODE = "policy_node"


class PolicyNode(GraphNode):
    """Images and an instruction in, /policy/reasoning and /policy/action_chunk out."""

    schema = POLICY

    def __init__(self) -> None:
        super().__init__(NODE)
        self._lock = threading.Lock()  # publishing a decision and discarding it exclude each other
        self._decisions = 0
        self._words: str | None = None
        self._chunk: ActionChunk | None = None
        self._done_ns: int | None = None  # stamp of the tick at which the task was over

    def configure(self) -> None:
        settings = self.settings
        path = settings.text("bundle") or str(default_bundle())
        options = DecisionOptions(
            drafts=settings.flag("drafts"),
            thought_tokens=settings.integer("thought_tokens") or None,
            thought_seconds=settings.number("thought_s") or None,
        )
        threads = settings.integer("threads") or None
        self._policy = Policy.load(path, settings.text("backend"), threads, options)
        self._max_thought_age_ns = round(settings.number("max_thought_age_s") * NS_PER_S)
        spec = self._policy.bundle.spec
        self._spec = spec
        self._frame = settings.text("base_frame")
        self._cameras = [camera.name for camera in spec.cameras]
        gray = np.full((spec.image.size, spec.image.size, 3), 128, np.uint8)
        self._policy.decide(dict.fromkeys(self._cameras, gray), "Warm up")  # the first decision is slow
        self.report.values(bundle=path, fingerprint=self._policy.bundle.fingerprint[:16])

    def activate(self) -> None:
        self._eyes = Eyes(self._cameras, self.settings.number("pair_tolerance_s"))
        period_ns = round(self._spec.control_period_s * NS_PER_S)
        self._cadence = Cadence(self._spec.execute_steps * period_ns, period_ns)
        self._look: Look | None = None
        self._since_s = time.monotonic()
        self._chunks = self.live(
            self.create_publisher(ActionChunk, "/policy/action_chunk", qos.COMMAND), self.destroy_publisher
        )
        self._reasoning = self.live(
            self.create_publisher(Reasoning, "/policy/reasoning", qos.STREAM), self.destroy_publisher
        )
        self._worker = self.live(Worker(self._decide), Worker.close)
        self._thinker: BackgroundThinker | None = None
        if self._max_thought_age_ns:
            thinker = BackgroundThinker(self._policy.sibling(), self._on_thinking_failed)
            self._thinker = self.live(thinker, BackgroundThinker.close)
        # The instruction's subscription comes first: when both are ready, it is served before the images.
        self._listen(String, "/instruction", self._on_instruction, qos.LATCHED)
        self._listen(TaskState, "/task_state", self._on_task_state, qos.LATCHED)
        for camera in self._cameras:
            self._listen(Image, f"/{camera}/image_raw", partial(self._on_image, camera), qos.SENSOR)
        self._goals = self.live(GoalServer(self, self._begin, self._halt), GoalServer.close)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.live(
            self.create_timer(WATCH_PERIOD_S, self.guarded(self._watch), clock=steady), self.destroy_timer
        )
        if self.settings.text("instruction"):
            self._on_instruction(String(data=self.settings.text("instruction")))

    def deactivate(self) -> None:
        self._goals.finish(False, "The policy node was deactivated.")
        self._halt()

    def cleanup(self) -> None:
        del self._policy

    def _listen(self, kind: type, topic: str, callback: Callable[[Any], None], quality: QoSProfile) -> None:
        subscription = self.create_subscription(kind, topic, self.guarded(callback), quality)
        self.live(subscription, self.destroy_subscription)

    def _on_instruction(self, message: String) -> None:
        self._goals.finish(False, "Another instruction came on /instruction.")
        try:
            self._begin(message.data)
        except Refusal as refusal:
            self._halt()
            self.report.problem("instruction", f"{refusal} The arm holds.")

    def _begin(self, text: str) -> None:
        """From now on the policy follows `text`; whatever is in flight is discarded."""
        words = checked(text, self.settings.integer("max_instruction_characters"))
        with self._lock:
            self._worker.discard()
            self._words = words
            self._chunk = None
        self._cadence.last_ns = None
        self._look = None
        self.report.solved("instruction")
        self.report.solved("input")

    def _halt(self) -> None:
        """The policy stops deciding, and tells the arm to stay where it is."""
        with self._lock:
            self._worker.discard()
            self._words = None
            if self._chunk is not None and self.context.ok():
                self._chunks.publish(self._stay(self._chunk))
            self._chunk = None

    def _stay(self, last: ActionChunk) -> ActionChunk:
        """A chunk of one row that moves nothing and leaves the gripper as `last` had it."""
        stamp_ns = self._look.stamp_ns if self._look is not None else to_ns(last.header.stamp)
        row = (stamp_ns - to_ns(last.header.stamp)) // self._cadence.period_ns
        row = min(max(row, 0), last.execute_steps - 1)
        raw = np.zeros((1, 7))
        raw[0, 6] = last.raw_actions[7 * row + 6]
        self._decisions += 1
        return chunk_message(
            self._spec, raw, decision_id=self._decisions, stamp_ns=stamp_ns, base_frame=self._frame
        )

    def _on_task_state(self, message: TaskState) -> None:
        self._done_ns = to_ns(message.header.stamp) if message.done else None
        self._goals.on_task_state(message)

    def _on_image(self, camera: str, message: Image) -> None:
        try:
            picture = picture_from(message, camera)
        except Refusal as refusal:
            self._eyes.drop(camera)
            self.report.problem(f"image {camera}", f"{refusal} The arm holds.")
            return
        self.report.solved(f"image {camera}")
        stamp_ns = to_ns(message.header.stamp) or self.get_clock().now().nanoseconds
        look = self._eyes.see(camera, stamp_ns, picture, time.monotonic())
        if look is not None and self._words is not None:
            self._consider(look)

    def _consider(self, look: Look) -> None:
        """Decides on a look when it is time to. A look shown twice means that the world waits for us."""
        repeated = self._look is not None and self._look.stamp_ns == look.stamp_ns
        self._look = look
        if self._worker.busy or look.stamp_ns == self._done_ns:
            return
        due = self._cadence.due(look.stamp_ns)  # also when its first showing met a busy worker
        if repeated and not due and self._chunk is not None:
            self._chunks.publish(self._chunk)
        elif repeated or due:
            fresh = self._cadence.last_ns is None
            self._cadence.last_ns = look.stamp_ns
            self._decisions += 1
            assert self._words is not None
            self._worker.submit(Job(self._decisions, look, self._words, fresh))

    def _decide(self, job: Job, discarded: Discarded) -> None:
        """Runs in the worker's thread; every failure becomes a sentence, and then the arm holds."""
        try:
            decision, thought_ns = self._make_decision(job, discarded)
        except DecisionStopped:
            return
        except PolicyInputError as error:
            self.report.problem("input", f"{error} The arm holds.")
            return
        except Exception as error:
            self.report.problem("inference", f"The decision failed: {describe(error)}. The arm holds.")
            return
        with self._lock:
            if not discarded():
                self._publish(job, decision, thought_ns)

    def _make_decision(self, job: Job, discarded: Discarded) -> tuple[Decision, int]:
        """The decision and the stamp of the image that its thought is about."""
        look, thinker = job.look, self._thinker
        if job.fresh:
            self._policy.reset()
            if thinker is not None:
                thinker.forget()
        known = None
        if thinker is not None:
            known = thinker.newest(job.instruction, look.stamp_ns, self._max_thought_age_ns)
        if known is not None:
            decision, thought_ns = self._policy.act(look.pictures, job.instruction, known.ids), known.stamp_ns
        else:
            decision = self._policy.decide(
                look.pictures,
                job.instruction,
                on_text=partial(self._think_aloud, job.decision_id, look.stamp_ns),
                should_stop=discarded,
            )
            thought_ns = look.stamp_ns
        if thinker is not None:
            thinker.know(Thought(decision.thought_ids, job.instruction, thought_ns))
            aloud = partial(self._think_aloud, job.decision_id + 1, look.stamp_ns)  # later decisions use it
            thinker.ask(Question(look.pictures, job.instruction, look.stamp_ns, aloud))
        return decision, thought_ns

    def _on_thinking_failed(self, error: Exception) -> None:
        self.report.problem(
            "thinking",
            f"A thought in the background failed: {describe(error)}. Every decision thinks itself.",
        )

    def _publish(self, job: Job, decision: Decision, thought_ns: int) -> None:
        message = chunk_message(
            self._spec,
            decision.raw_actions,
            decision_id=job.decision_id,
            stamp_ns=job.look.stamp_ns,
            base_frame=self._frame,
        )
        message.instruction = job.instruction
        message.thought = decision.thought
        message.thought_stamp = to_time(thought_ns)
        message.thought_truncated = decision.truncated
        message.inference_time = to_duration(decision.timings["total"])
        self._chunk = message
        self._chunks.publish(message)
        self._think_aloud(
            job.decision_id,
            job.look.stamp_ns,
            decision.thought,
            decision.tokens,
            decision.kept,
            finished=True,
            truncated=decision.truncated,
        )
        self._goals.on_decision(decision.thought)
        self.report.solved("input")
        self.report.solved("inference")
        self.report.values(
            decision_id=job.decision_id,
            thought=decision.thought,
            tokens=decision.tokens,
            kept_tokens=decision.kept,
            passes=decision.passes,
            thought_age_ms=f"{(job.look.stamp_ns - thought_ns) / 1e6:.0f}",
            overhead_ms=f"{1000 * (time.monotonic() - job.submitted_s - decision.timings['total']):.1f}",
            **{f"{phase}_ms": f"{1000 * seconds:.1f}" for phase, seconds in decision.timings.items()},
        )
        self.report.publish()

    def _think_aloud(
        self, decision_id: int, stamp_ns: int, text: str, tokens: int, kept: int, **ending: bool
    ) -> None:
        """Publishes a thought as far as it has grown; `ending` sets `finished` and `truncated`."""
        message = Reasoning(decision_id=decision_id, text=text, tokens=tokens, kept_tokens=kept, **ending)
        message.header.stamp = to_time(stamp_ns)
        message.header.frame_id = self._frame
        self._reasoning.publish(message)

    def _watch(self) -> None:
        """Looks after the cameras and the goal's time."""
        self._goals.watch()
        timeout_s = self.settings.number("image_timeout_s")
        silent = self._eyes.silent(time.monotonic(), timeout_s, self._since_s)
        idle = len(silent) == len(self._cameras) and (self._words is None or self._done_ns is not None)
        if not silent or idle:
            self.report.solved("cameras")
            return
        names = " and ".join(silent)
        topics = ", ".join(f"/{name}/image_raw" for name in silent)
        sentence = f"No image from {names} for {timeout_s:g} s: nothing is decided, the arm holds. "
        sentence += f"Start the camera, or remap its topic to {topics}."
        self.report.problem(
            "cameras", sentence, Level.WARNING if len(silent) == len(self._cameras) else Level.ERROR
        )


def main() -> int:
    """Runs the node."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    return run(PolicyNode)


if __name__ == "__main__":
    raise SystemExit(main())
