"""The launcher's own node in the graph: brings the others alive, watches them, and starts episodes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import rclpy
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from dtvla.errors import DtvlaError
from dtvla.nodes.common import qos
from dtvla.nodes.lifecycle.bring_up import START_TIMEOUT_S, TRANSITION_TIMEOUT_S
from dtvla.nodes.lifecycle.lifecycle_manager import LifecycleManager
from dtvla_msgs.msg import ActionChunk, TaskState
from dtvla_msgs.srv import ResetScene

POLL_S = 0.1
STALL_S = 120.0  # an episode that makes no step for so long is given up

T = TypeVar("T")


class BringUpError(DtvlaError, RuntimeError):
    """A node did not start or refused a transition; the message is its own sentence where it gave one."""


class EpisodeBroken(DtvlaError, RuntimeError):
    """The graph did not play an episode to its end; the message says what the nodes report."""


class GraphClient:
    """A small ROS node inside the launcher's process.

    Args:
        domain: ROS domain of the graph.
        check: called while waiting; raises when there is no point in waiting on (a child died, Ctrl-C).
        namespace: of the graph's nodes and topics.
    """

    def __init__(self, domain: int, check: Callable[[], None] = lambda: None, namespace: str = "") -> None:
        self._check = check
        self._context = Context()
        rclpy.init(
            args=[],  # no enclave: that of the operator's tools (docs/security.md)
            context=self._context,
            domain_id=domain,
            signal_handler_options=SignalHandlerOptions.NO,
        )
        self.node = rclpy.create_node("dtvla_launcher", context=self._context, namespace=namespace)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self.manager = LifecycleManager(self.node)
        self.state: TaskState | None = None
        self.latencies_s: list[float] = []
        self._counted_id = 0
        self.node.create_subscription(TaskState, "task_state", self._on_state, qos.LATCHED)
        self.node.create_subscription(ActionChunk, "policy/action_chunk", self._on_chunk, qos.COMMAND)

    @property
    def reports(self) -> dict[str, DiagnosticStatus]:
        """The last report of each node that has reported."""
        return self.manager.reports

    def close(self) -> None:
        """Leaves the graph."""
        self._executor.shutdown(timeout_sec=1.0)
        self.node.destroy_node()
        rclpy.try_shutdown(context=self._context)

    def spin(self, seconds: float = POLL_S) -> None:
        """Handles what has come in, for at most `seconds`.

        Raises:
            BringUpError: a node that is being brought up does not come, or refuses.
        """
        self._check()
        self._executor.spin_once(timeout_sec=seconds)
        self.manager.step()
        if failure := self.manager.take_failure():
            raise BringUpError(failure)

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Spins until the condition holds; False when the time is over first."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                return False
            self.spin()
        return True

    def call(self, kind: type, service: str, request: Any, timeout_s: float) -> Any:
        """Calls a service and returns its response.

        Raises:
            BringUpError: no such service, or no answer in time.
        """
        client = self.node.create_client(kind, service)
        try:
            if not self.wait(client.service_is_ready, START_TIMEOUT_S):
                raise BringUpError(f"The service {service} did not appear within {START_TIMEOUT_S:g} s.")
            future = client.call_async(request)
            if not self.wait(future.done, timeout_s):
                raise BringUpError(f"The service {service} did not answer within {timeout_s:g} s.")
            return future.result()
        finally:
            self.node.destroy_client(client)

    def bring_up(
        self,
        nodes: Sequence[str],
        tell: Callable[[str], None] = lambda _: None,
        heartbeats_s: Mapping[str, float] | None = None,
    ) -> None:
        """Configures all nodes (at the same time) and activates them (in the given order).

        Args:
            nodes: their names. They have just been started.
            tell: told in words what is being waited for, now and later.
            heartbeats_s: how long a node may be silent once it is active, where it is not `HEARTBEAT_S`.

        Raises:
            BringUpError: with the node's own sentence.
        """
        self.manager.bring_up(nodes, heartbeats_s, tell)
        while self.manager.busy:
            self.spin()

    def reset_scene(self, suite: str, task: int, seed: int) -> ResetScene.Response:
        """Starts an episode.

        Raises:
            BringUpError: the bridge refused; the message is its sentence.
        """
        request = ResetScene.Request(suite=suite, task=task, seed=seed)
        response = self.call(ResetScene, "reset_scene", request, TRANSITION_TIMEOUT_S)
        if not response.success:
            raise BringUpError(response.message)
        return response

    def await_episode(self, ended: Callable[[], T | None], check: Callable[[], None] = lambda: None) -> T:
        """Spins until an episode is over.

        Args:
            ended: what is known of its end; None while it goes on.
            check: called while waiting; may raise.

        Raises:
            EpisodeBroken: no step was made for `STALL_S`, with what the nodes complain of.
        """
        step, moved_s = None, time.monotonic()
        while (found := ended()) is None:
            self.spin()
            check()
            if self.state is not None and (self.state.episode, self.state.step) != step:
                step, moved_s = (self.state.episode, self.state.step), time.monotonic()
            if time.monotonic() - moved_s > STALL_S:
                words = [
                    f"{name}: {report.message}"
                    for name, report in self.reports.items()
                    if report.level != DiagnosticStatus.OK
                ]
                raise EpisodeBroken(
                    f"No step was made for {STALL_S:g} s. " + " ".join(words or ["No node complains."])
                )
        return found

    def _on_state(self, message: TaskState) -> None:
        self.state = message

    def _on_chunk(self, message: ActionChunk) -> None:
        duration = message.inference_time
        if not message.hold and message.decision_id != self._counted_id:  # it may be sent again
            self._counted_id = message.decision_id
            self.latencies_s.append(duration.sec + duration.nanosec / 1e9)
