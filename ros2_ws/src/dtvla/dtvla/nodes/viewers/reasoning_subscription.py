"""Listens to the policy and the controller of one robot, for nodes that show what they say."""

from __future__ import annotations

import time
from collections.abc import Callable

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from std_msgs.msg import String

from dtvla.nodes.common import qos
from dtvla.nodes.common.lifecycle_node import GraphNode
from dtvla.nodes.viewers.reasoning_state import ReasoningState
from dtvla_msgs.msg import ActionChunk, Reasoning

DIAGNOSTICS_DEPTH = 50


class ReasoningSubscription:
    """Keeps a `ReasoningState` up to date. Created when its node is activated; `node.live` undoes it.

    Args:
        node: who listens; topics are below its namespace.
        reasoning_state: what is kept.
        on_chunk: told of each chunk that is no hold, after `reasoning_state` was.
    """

    def __init__(
        self,
        node: GraphNode,
        reasoning_state: ReasoningState,
        on_chunk: Callable[[ActionChunk], None] = lambda _: None,
    ) -> None:
        self._reasoning_state, self._on_chunk = reasoning_state, on_chunk
        self._controller = f"{node.get_namespace()}/controller_node".strip("/")
        for kind, topic, callback, quality in (
            (String, "instruction", self._on_instruction, qos.LATCHED),
            (Reasoning, "policy/reasoning", self._on_reasoning, qos.STREAM),
            (ActionChunk, "policy/action_chunk", self._on_action_chunk, qos.COMMAND),
            (DiagnosticArray, "/diagnostics", self._on_diagnostics, DIAGNOSTICS_DEPTH),
        ):
            subscription = node.create_subscription(kind, topic, node.guarded(callback), quality)
            node.live(subscription, node.destroy_subscription)

    def _on_instruction(self, message: String) -> None:
        self._reasoning_state.on_instruction(message.data)

    def _on_reasoning(self, message: Reasoning) -> None:
        self._reasoning_state.on_thought(
            message.decision_id,
            message.text,
            time.monotonic(),
            tokens=message.tokens,
            kept=message.kept_tokens,
            finished=message.finished,
            truncated=message.truncated,
        )

    def _on_action_chunk(self, message: ActionChunk) -> None:
        if message.hold:
            return
        took_ms = 1000 * message.inference_time.sec + message.inference_time.nanosec / 1e6
        self._reasoning_state.on_decision(message.decision_id, message.instruction, took_ms, time.monotonic())
        self._on_chunk(message)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == self._controller:
                state = next((item.value for item in status.values if item.key == "state"), "")
                complaint = status.message if status.level != DiagnosticStatus.OK else ""
                self._reasoning_state.on_controller(state, complaint, time.monotonic())
