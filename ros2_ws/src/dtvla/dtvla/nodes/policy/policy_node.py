"""The policy node: looks through the cameras, thinks aloud, proposes action chunks.

Callbacks run in one thread, decisions in another (`InferenceThread`), so that a new instruction or a
cancelled
goal is heard while the policy thinks. One node serves one robot, or several in namespaces of their own
whose decisions share the passes of one policy.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from itertools import count

import numpy as np
from rclpy.clock import Clock, ClockType
from std_msgs.msg import String

from dtvla.control.action_chunk import NS_PER_S
from dtvla.errors import DecisionStopped, PolicyInputError
from dtvla.nodes.common.lifecycle_node import GraphNode, describe
from dtvla.nodes.common.names import NAME, RULE
from dtvla.nodes.common.parameters import POLICY, Refusal
from dtvla.nodes.common.process import run
from dtvla.nodes.policy.inference_thread import Discarded, InferenceRequest, InferenceThread
from dtvla.nodes.policy.robot_session import RobotSession, SharedPolicy
from dtvla.policy.async_thinking import BackgroundThinker, Question, Thought
from dtvla.policy.batching import PolicyBatch, Request
from dtvla.policy.options import DecisionOptions
from dtvla.policy.policy import Decision, Policy
from dtvla.resources import default_bundle

WATCH_PERIOD_S = 0.1
SWITCH_INTERVAL_S = 0.0005  # the thread that decides must not wait 5 ms for the one that listens
NODE = "policy_node"


class PolicyNode(GraphNode):
    """Images and an instruction in, /policy/reasoning and /policy/action_chunk out."""

    schema = POLICY

    def __init__(self) -> None:
        super().__init__(NODE)
        self._ids = count(1)

    def configure(self) -> None:
        settings = self.settings
        self._robots = robots(settings.text("robots"))
        self._max_thought_age_ns = round(settings.number("max_thought_age_s") * NS_PER_S)
        if len(self._robots) > 1 and self._max_thought_age_ns:
            raise Refusal("max_thought_age_s is for one robot; leave it 0, or give each robot its own node.")
        path = settings.text("bundle") or str(default_bundle())
        options = DecisionOptions(
            drafts=settings.flag("drafts"),
            thought_tokens=settings.integer("thought_tokens") or None,
            thought_seconds=settings.number("thought_s") or None,
        )
        threads = settings.integer("threads") or None
        self._policy = Policy.load(
            path, settings.text("backend"), threads, options, settings.text("trusted_key")
        )
        self._batch: PolicyBatch | None = None
        if len(self._robots) > 1:
            self._batch = PolicyBatch(self._policy, len(self._robots))
        size = self._policy.bundle.spec.image.size
        gray = np.full((size, size, 3), 128, np.uint8)
        observation = {camera.name: gray for camera in self._policy.bundle.spec.cameras}
        self._policy.decide(observation, "Warm up")  # the first decision is slow
        if self._batch is not None:
            self._batch.decide({i: Request(observation, "Warm up") for i in range(len(self._batch))})
        self.get_logger().info(self._policy.runs_on)
        self.report.values(
            bundle=path, fingerprint=self._policy.bundle.fingerprint[:16], runs_on=self._policy.runs_on
        )

    def activate(self) -> None:
        worker = self.live(InferenceThread(self._decide), InferenceThread.close)
        self._thinker: BackgroundThinker | None = None
        if self._max_thought_age_ns:
            thinker = BackgroundThinker(self._policy.sibling(), self._on_thinking_failed)
            self._thinker = self.live(thinker, BackgroundThinker.close)
        table = SharedPolicy(self._policy.bundle.spec, worker, lambda: next(self._ids))
        self._sessions = {robot: RobotSession(self, robot, table) for robot in self._robots}
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.live(
            self.create_timer(WATCH_PERIOD_S, self.guarded(self._watch), clock=steady), self.destroy_timer
        )
        if self.settings.text("instruction"):
            for session in self._sessions.values():
                session.on_instruction(String(data=self.settings.text("instruction")))

    def deactivate(self) -> None:
        for session in self._sessions.values():
            session.leave("The policy node was deactivated.")

    def cleanup(self) -> None:
        del self._policy, self._batch

    def _watch(self) -> None:
        for session in self._sessions.values():
            session.watch()

    def _decide(self, requests: Sequence[tuple[InferenceRequest, Discarded]]) -> None:
        """Runs in the worker's thread; every failure becomes a sentence, and then the arm holds."""
        if self._batch is not None:
            self._decide_together(self._batch, requests)
            return
        ((request, discarded),) = requests
        session = self._sessions[request.robot]
        try:
            decision, thought_ns = self._decide_alone(request, discarded)
        except Exception as error:
            _explain(session, error)
        else:
            session.publish(request, decision, thought_ns, discarded)

    def _decide_alone(self, request: InferenceRequest, discarded: Discarded) -> tuple[Decision, int]:
        """The decision and the stamp of the image that its thought is about."""
        observation, thinker, session = request.observation, self._thinker, self._sessions[request.robot]
        if request.fresh:
            self._policy.reset()
            if thinker is not None:
                thinker.forget()
        known = None
        if thinker is not None:
            known = thinker.newest(request.instruction, observation.stamp_ns, self._max_thought_age_ns)
        if known is not None:
            decision, thought_ns = (
                self._policy.act(observation.pictures, request.instruction, known.ids),
                known.stamp_ns,
            )
        else:
            aloud = partial(session.think_aloud, request.decision_id, observation.stamp_ns)
            decision = self._policy.decide(
                observation.pictures, request.instruction, on_text=aloud, should_stop=discarded
            )
            thought_ns = observation.stamp_ns
        if thinker is not None:
            thinker.know(Thought(decision.thought_ids, request.instruction, thought_ns))
            later_id = request.decision_id + 1  # later decisions use it
            aloud = partial(session.think_aloud, later_id, observation.stamp_ns)
            thinker.ask(Question(observation.pictures, request.instruction, observation.stamp_ns, aloud))
        return decision, thought_ns

    def _decide_together(
        self, batch: PolicyBatch, requests: Sequence[tuple[InferenceRequest, Discarded]]
    ) -> None:
        """Decides for all robots that wait, in shared passes."""
        batched = {}
        for request, discarded in requests:
            index, session = self._robots.index(request.robot), self._sessions[request.robot]
            if request.fresh:
                batch.reset(index)
            aloud = partial(session.think_aloud, request.decision_id, request.observation.stamp_ns)
            batched[index] = Request(request.observation.pictures, request.instruction, aloud, discarded)
        try:
            answers = batch.decide(batched)
        except Exception as error:
            for request, _ in requests:
                _explain(self._sessions[request.robot], error)
            return
        for request, discarded in requests:
            session, answer = self._sessions[request.robot], answers[self._robots.index(request.robot)]
            if isinstance(answer, Decision):
                session.publish(request, answer, request.observation.stamp_ns, discarded)
            else:
                _explain(session, answer)

    def _on_thinking_failed(self, error: Exception) -> None:
        self.report.problem(
            "thinking",
            f"A thought in the background failed: {describe(error)}. Every decision thinks itself.",
        )


def robots(names: str) -> list[str]:
    """The namespaces in a comma-separated list; [""] when it is empty: one robot without a namespace.

    Raises:
        Refusal: a name that ROS does not allow, or one that comes twice.
    """
    found = [name.strip().strip("/") for name in names.split(",")] if names.strip() else [""]
    for name in found:
        if name and not NAME.fullmatch(name):
            raise Refusal(f"Robot '{name}' is no namespace: {RULE}.")
    if len(set(found)) < len(found) or (len(found) > 1 and "" in found):
        raise Refusal(f"The robots '{names}' must have different names, none of them empty.")
    return found


def _explain(session: RobotSession, error: Exception) -> None:
    """Says why a robot gets no decision; that it was stopped needs no saying."""
    if isinstance(error, PolicyInputError):
        session.problem("input", f"{error} The arm holds.")
    elif not isinstance(error, DecisionStopped):
        session.problem("inference", f"The decision failed: {describe(error)}. The arm holds.")


def main() -> int:
    """Runs the node."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    return run(PolicyNode)


if __name__ == "__main__":
    raise SystemExit(main())
