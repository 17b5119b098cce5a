"""The lifecycle manager between the callbacks of its node, with stand-ins for the services of DDS."""

from __future__ import annotations

import time
from typing import Any, cast

from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.node import Node
from rclpy.task import Future

from dtvla.nodes.lifecycle.lifecycle_manager import STEP_S, LifecycleManager


class Service:
    """A service that answers when the test says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, Future]] = []

    def service_is_ready(self) -> bool:
        return True

    def call_async(self, request: Any) -> Future:
        self.asked.append((request, Future()))
        return self.asked[-1][1]

    def remove_pending_request(self, future: Future) -> None:
        pass


class Graph:
    """What the manager asks of its node."""

    def __init__(self) -> None:
        self.services: dict[type, Service] = {}

    def get_namespace(self) -> str:
        return "/"

    def create_subscription(self, *_: Any) -> None:
        pass

    def create_client(self, kind: type, _: str) -> Service:
        return self.services.setdefault(kind, Service())

    def get_publishers_info_by_topic(self, _: str) -> list[Any]:
        return []


def test_two_answers_of_one_node_at_once_configure_it_once() -> None:
    """A stalled launcher found two answers waiting: the first made the second void, and taking it raised."""
    graph = Graph()
    manager = LifecycleManager(cast(Node, graph))
    manager.bring_up(["recorder_node"])
    states, changes = graph.services[GetState], graph.services[ChangeState]
    deadline = time.monotonic() + 20.0
    while len(states.asked) < 2 and time.monotonic() < deadline:
        time.sleep(STEP_S)
        manager.step()
    assert len(states.asked) >= 2
    unconfigured = State(id=State.PRIMARY_STATE_UNCONFIGURED)
    for _, future in states.asked:
        future.set_result(GetState.Response(current_state=unconfigured))
    time.sleep(STEP_S)
    manager.step()
    assert [request.transition.id for request, _ in changes.asked] == [Transition.TRANSITION_CONFIGURE]
