"""The launcher's own node in the graph: lifecycle transitions, diagnostics, episodes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from dtvla.errors import DtvlaError
from dtvla.nodes.common import qos
from dtvla_msgs.msg import ActionChunk, TaskState
from dtvla_msgs.srv import ResetScene

START_TIMEOUT_S = 60.0
TRANSITION_TIMEOUT_S = 120.0
POLL_S = 0.1
LAST_WORDS_S = 1.0


class BringUpError(DtvlaError, RuntimeError):
    """A node did not start or refused a transition; the message is its own sentence where it gave one."""


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
        self._prefix = self.node.get_namespace().strip("/")
        self.reports: dict[str, DiagnosticStatus] = {}
        self.heard_s: dict[str, float] = {}  # when each node reported last, monotonic
        self.state: TaskState | None = None
        self.latencies_s: list[float] = []
        self._counted_id = 0
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 50)
        self.node.create_subscription(TaskState, "task_state", self._on_state, qos.LATCHED)
        self.node.create_subscription(ActionChunk, "policy/action_chunk", self._on_chunk, qos.COMMAND)

    def close(self) -> None:
        """Leaves the graph."""
        self._executor.shutdown(timeout_sec=1.0)
        self.node.destroy_node()
        rclpy.try_shutdown(context=self._context)

    def spin(self, seconds: float = POLL_S) -> None:
        """Handles what has come in, for at most `seconds`."""
        self._check()
        self._executor.spin_once(timeout_sec=seconds)

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Spins until the condition holds; False when the time is over first."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                return False
            self.spin()
        return True

    def call(self, kind: type, service: str, requests: Any, timeout_s: float) -> Any:
        """Calls a service and returns its response.

        Raises:
            BringUpError: no such service, or no answer in time.
        """
        return self.call_all(kind, {service: requests}, timeout_s)[service]

    def call_all(self, kind: type, requests: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Calls several services of one type at the same time; returns the responses by service name."""
        clients = {name: self.node.create_client(kind, name) for name in requests}
        try:
            for name, client in clients.items():
                if not self.wait(client.service_is_ready, START_TIMEOUT_S):
                    raise BringUpError(f"The service {name} did not appear within {START_TIMEOUT_S:g} s.")
            futures = {name: client.call_async(requests[name]) for name, client in clients.items()}
            for name, future in futures.items():
                if not self.wait(future.done, timeout_s):
                    raise BringUpError(f"The service {name} did not answer within {timeout_s:g} s.")
            return {name: future.result() for name, future in futures.items()}
        finally:
            for client in clients.values():
                self.node.destroy_client(client)

    def bring_up(self, nodes: Sequence[str], progress: Callable[[str], None] = lambda _: None) -> None:
        """Configures all nodes (at the same time) and activates them (in the given order).

        Raises:
            BringUpError: with the node's own sentence.
        """
        progress("loading " + ", ".join(nodes))
        self._transition(nodes, Transition.TRANSITION_CONFIGURE)
        for name in nodes:
            progress(f"activating {name}")
            self._transition([name], Transition.TRANSITION_ACTIVATE)

    def await_successor(self, name: str) -> None:
        """Waits for the first report of a node that was started anew; discovery still knows the dead one.

        Raises:
            BringUpError: it does not come.
        """
        self.reports.pop(name, None)
        self.heard_s.pop(name, None)
        if not self.wait(lambda: name in self.reports, START_TIMEOUT_S):
            raise BringUpError(f"{name} was started anew and did not report within {START_TIMEOUT_S:g} s.")

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

    def _transition(self, nodes: Sequence[str], transition: int) -> None:
        request = ChangeState.Request(transition=Transition(id=transition))
        requests = {f"{name}/change_state": request for name in nodes}
        for service, response in self.call_all(ChangeState, requests, TRANSITION_TIMEOUT_S).items():
            if not response.success:
                raise BringUpError(self._last_words(service.split("/")[0]))

    def _last_words(self, name: str) -> str:
        """The sentence with which a node refused, from its diagnostics."""
        self.wait(
            lambda: name in self.reports and self.reports[name].level != DiagnosticStatus.OK, LAST_WORDS_S
        )
        report = self.reports.get(name)
        return report.message if report is not None else f"{name} refused to start; its log says why."

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            name = status.name.removeprefix(f"{self._prefix}/") if self._prefix else status.name
            self.reports[name] = status
            self.heard_s[name] = time.monotonic()

    def _on_state(self, message: TaskState) -> None:
        self.state = message

    def _on_chunk(self, message: ActionChunk) -> None:
        duration = message.inference_time
        if not message.hold and message.decision_id != self._counted_id:  # it may be sent again
            self._counted_id = message.decision_id
            self.latencies_s.append(duration.sec + duration.nanosec / 1e9)
