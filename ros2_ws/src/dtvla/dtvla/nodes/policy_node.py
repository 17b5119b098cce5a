"""The policy node: looks through the cameras, thinks aloud, proposes action chunks.

Callbacks run in one thread, decisions in another (`Worker`), so that a new instruction or a cancelled
goal is heard while the policy thinks. One node serves one robot, or several in namespaces of their own
whose decisions share the passes of one policy.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from functools import partial
from itertools import count

import numpy as np
from rclpy.clock import Clock, ClockType
from std_msgs.msg import String

from dtvla.control.chunks import NS_PER_S
from dtvla.graph import default_bundle
from dtvla.nodes.base import GraphNode, describe
from dtvla.nodes.parameters import POLICY, Refusal
from dtvla.nodes.process import run
from dtvla.nodes.seat import Seat, Table
from dtvla.nodes.worker import Discarded, Job, Worker
from dtvla.policy.background import BackgroundThinker, Question, Thought
from dtvla.policy.batch import PolicyBatch, Request
from dtvla.policy.errors import DecisionStopped, PolicyInputError
from dtvla.policy.options import DecisionOptions
from dtvla.policy.runner import Decision, Policy

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
        look = {camera.name: gray for camera in self._policy.bundle.spec.cameras}
        self._policy.decide(look, "Warm up")  # the first decision is slow
        if self._batch is not None:
            self._batch.decide({i: Request(look, "Warm up") for i in range(len(self._batch))})
        self.get_logger().info(self._policy.runs_on)
        self.report.values(
            bundle=path, fingerprint=self._policy.bundle.fingerprint[:16], runs_on=self._policy.runs_on
        )

    def activate(self) -> None:
        worker = self.live(Worker(self._decide), Worker.close)
        self._thinker: BackgroundThinker | None = None
        if self._max_thought_age_ns:
            thinker = BackgroundThinker(self._policy.sibling(), self._on_thinking_failed)
            self._thinker = self.live(thinker, BackgroundThinker.close)
        table = Table(self._policy.bundle.spec, worker, lambda: next(self._ids))
        self._seats = {robot: Seat(self, robot, table) for robot in self._robots}
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.live(
            self.create_timer(WATCH_PERIOD_S, self.guarded(self._watch), clock=steady), self.destroy_timer
        )
        if self.settings.text("instruction"):
            for seat in self._seats.values():
                seat.on_instruction(String(data=self.settings.text("instruction")))

    def deactivate(self) -> None:
        for seat in self._seats.values():
            seat.leave("The policy node was deactivated.")

    def cleanup(self) -> None:
        del self._policy, self._batch

    def _watch(self) -> None:
        for seat in self._seats.values():
            seat.watch()

    def _decide(self, jobs: Sequence[tuple[Job, Discarded]]) -> None:
        """Runs in the worker's thread; every failure becomes a sentence, and then the arm holds."""
        if self._batch is not None:
            self._decide_together(self._batch, jobs)
            return
        ((job, discarded),) = jobs
        seat = self._seats[job.robot]
        try:
            decision, thought_ns = self._decide_alone(job, discarded)
        except Exception as error:
            _explain(seat, error)
        else:
            seat.publish(job, decision, thought_ns, discarded)

    def _decide_alone(self, job: Job, discarded: Discarded) -> tuple[Decision, int]:
        """The decision and the stamp of the image that its thought is about."""
        look, thinker, seat = job.look, self._thinker, self._seats[job.robot]
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
            aloud = partial(seat.think_aloud, job.decision_id, look.stamp_ns)
            decision = self._policy.decide(
                look.pictures, job.instruction, on_text=aloud, should_stop=discarded
            )
            thought_ns = look.stamp_ns
        if thinker is not None:
            thinker.know(Thought(decision.thought_ids, job.instruction, thought_ns))
            aloud = partial(seat.think_aloud, job.decision_id + 1, look.stamp_ns)  # later decisions use it
            thinker.ask(Question(look.pictures, job.instruction, look.stamp_ns, aloud))
        return decision, thought_ns

    def _decide_together(self, batch: PolicyBatch, jobs: Sequence[tuple[Job, Discarded]]) -> None:
        """Decides for all robots that wait, in shared passes."""
        requests = {}
        for job, discarded in jobs:
            index, seat = self._robots.index(job.robot), self._seats[job.robot]
            if job.fresh:
                batch.reset(index)
            aloud = partial(seat.think_aloud, job.decision_id, job.look.stamp_ns)
            requests[index] = Request(job.look.pictures, job.instruction, aloud, discarded)
        try:
            answers = batch.decide(requests)
        except Exception as error:
            for job, _ in jobs:
                _explain(self._seats[job.robot], error)
            return
        for job, discarded in jobs:
            seat, answer = self._seats[job.robot], answers[self._robots.index(job.robot)]
            if isinstance(answer, Decision):
                seat.publish(job, answer, job.look.stamp_ns, discarded)
            else:
                _explain(seat, answer)

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
        if name and not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
            raise Refusal(f"Robot '{name}' is no namespace: letters, digits and _ only, a letter first.")
    if len(set(found)) < len(found) or (len(found) > 1 and "" in found):
        raise Refusal(f"The robots '{names}' must have different names, none of them empty.")
    return found


def _explain(seat: Seat, error: Exception) -> None:
    """Says why a robot gets no decision; that it was stopped needs no saying."""
    if isinstance(error, PolicyInputError):
        seat.problem("input", f"{error} The arm holds.")
    elif not isinstance(error, DecisionStopped):
        seat.problem("inference", f"The decision failed: {describe(error)}. The arm holds.")


def main() -> int:
    """Runs the node."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    return run(PolicyNode)


if __name__ == "__main__":
    raise SystemExit(main())
