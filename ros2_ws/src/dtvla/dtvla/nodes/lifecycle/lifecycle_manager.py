"""The lifecycle manager: brings the nodes of a graph alive in order and watches their heartbeats.

One for all ways to start a graph: `dtvla up` has it in its own process, `ros2 launch` as a node of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.client import Client
from rclpy.node import Node
from rclpy.task import Future

from dtvla.nodes.lifecycle.bring_up import BringUp, LifecycleRequest, TimeLimits

STEP_S = 0.05
_TRANSITIONS = {
    LifecycleRequest.CONFIGURE: Transition.TRANSITION_CONFIGURE,
    LifecycleRequest.ACTIVATE: Transition.TRANSITION_ACTIVATE,
}


class LifecycleManager:
    """Applies the rule of `BringUp` to the nodes beside a node of ours.

    It never waits: call `step` again and again, between the callbacks of the node's executor.

    Discovery goes on knowing a killed process for some 20 s, and a request sent to that one is lost. So a
    node is asked for its state until somebody answers: only a living process does, and DDS has then matched
    its other services too.

    Args:
        node: ours; names of the others are relative to its namespace.
        tell: told in words what goes on.
        limits: how long it may take.
        follow: also bring up a node that somebody else started anew.
    """

    def __init__(
        self,
        node: Node,
        tell: Callable[[str], None] = lambda _: None,
        limits: TimeLimits | None = None,
        *,
        follow: bool = False,
    ) -> None:
        self._node, self._follow = node, follow
        self._prefix = node.get_namespace().strip("/")
        self._rule = BringUp(tell, limits)
        self._names: list[str] = []
        self._clients: dict[tuple[str, type], Client] = {}
        self._pending: list[tuple[str, Client, Future]] = []
        self._stepped_s = 0.0
        self.reports: dict[str, DiagnosticStatus] = {}  # the last one of each node, whether managed or not
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 50)

    @property
    def busy(self) -> bool:
        """Whether a node is still to be brought alive."""
        return self._rule.busy

    @property
    def silent(self) -> dict[str, str]:
        """The active nodes that have not reported for longer than they may, each with words for it."""
        return self._rule.silent

    def take_failure(self) -> str:
        """Why a bring-up ended early, once; empty when none did."""
        return self._rule.take_failure()

    def bring_up(
        self,
        nodes: Sequence[str],
        heartbeats_s: Mapping[str, float] | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        """Begins to bring nodes alive which have just been started, perhaps anew.

        Args:
            nodes: names, in the order of activation.
            heartbeats_s: how long a node may be silent once it is active, where it is not `HEARTBEAT_S`.
            tell: told in words what goes on, from now on.
        """
        if tell is not None:
            self._rule.tell = tell
        for name in nodes:
            self.reports.pop(name, None)  # words of a process that has ended
            self._forget(name)
            for kind, service in ((ChangeState, "change_state"), (GetState, "get_state")):
                # In this order: DDS matches the older one first, so when one answers the other does.
                if (name, kind) not in self._clients:
                    client = self._node.create_client(kind, f"{name}/{service}")
                    self._clients[name, kind] = client
        self._names = list(dict.fromkeys([*self._names, *nodes]))
        self._rule.tell("loading " + ", ".join(nodes))
        self._rule.begin(nodes, heartbeats_s)

    def step(self) -> None:
        """Takes the answers that have come, and asks what is to be asked now."""
        now_s = time.monotonic()
        if now_s - self._stepped_s < STEP_S:
            return
        self._stepped_s = now_s
        if self._follow:
            for name in self._names:
                if self._rule.is_new(name, self._instances(name)):
                    self._rule.tell(f"{name} was started anew")
                    self.bring_up([name])
        for item in [each for each in self._pending if each[2].done()]:
            if item in self._pending:  # else an answer before it has just made it void
                self._pending.remove(item)
                self._take(item[0], item[2].result())
        for name, request in self._rule.step(now_s):
            self._ask(name, request)

    def _take(self, name: str, answer: Any) -> None:
        if isinstance(answer, GetState.Response):
            for asked, request in self._rule.state_is(name, answer.current_state.id):
                self._forget(name)
                self._ask(asked, request)
        elif isinstance(answer, ChangeState.Response):
            self._rule.has_moved(name, answer.success)

    def _ask(self, name: str, request: LifecycleRequest) -> None:
        if request is LifecycleRequest.GET_STATE:
            client, message = self._clients[name, GetState], GetState.Request()
            if not client.service_is_ready():
                return
        else:
            client = self._clients[name, ChangeState]
            message = ChangeState.Request(transition=Transition(id=_TRANSITIONS[request]))
        self._pending.append((name, client, client.call_async(message)))

    def _forget(self, name: str) -> None:
        """Drops the answers that are still to come from a node: they are about what was before."""
        for item in [each for each in self._pending if each[0] == name]:
            self._pending.remove(item)
            item[1].remove_pending_request(item[2])

    def _instances(self, name: str) -> set[bytes]:
        """The processes of a node that discovery knows, by their publishers of transitions."""
        found = self._node.get_publishers_info_by_topic(f"{name}/transition_event")
        return {bytes(info.endpoint_gid) for info in found}

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            name = status.name.removeprefix(f"{self._prefix}/") if self._prefix else status.name
            self.reports[name] = status
            self._rule.reports(name, status.message if status.level != DiagnosticStatus.OK else "")
