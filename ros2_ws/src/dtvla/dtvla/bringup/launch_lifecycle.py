"""How a launch brings one lifecycle node alive: in its turn, again when it was started anew, or not at all.

Needs `launch` and `launch_ros`, which are not on PyPI.
"""

from __future__ import annotations

import asyncio

from launch import Action, LaunchContext
from launch.actions import EmitEvent, OpaqueCoroutine, OpaqueFunction, RegisterEventHandler, Shutdown
from launch.event_handlers import OnProcessStart
from launch.events import matches_action
from launch.events.process import ProcessStarted
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from launch_ros.ros_adapters import get_ros_node
from lifecycle_msgs.msg import Transition

LOOK_S = 0.1
MATCH_S = 0.5  # between the discovery of a node and that of its service
_FAILED_FROM = ("configuring", "activating", "errorprocessing")


class BringUp:
    """Configures and activates a node when the one before it is active; then leaves it to the operator.

    Discovery goes on knowing a killed process for some 20 s, and a request sent to that one is lost. So what
    counts is a publisher of the node's transitions that was not there when the process started.

    Args:
        node: the node.
        after: who comes next.
    """

    def __init__(self, node: LifecycleNode, after: BringUp | None = None) -> None:
        self._node, self._after = node, after
        self.permitted = False
        self._started = False
        self._busy = False
        self._strangers: set[tuple[int, ...]] = set()

    def handlers(self) -> list[Action]:
        """To be registered before the node's process starts."""
        moved = OpaqueFunction(function=self._on_moved)
        return [
            RegisterEventHandler(OnProcessStart(target_action=self._node, on_start=self._on_start)),
            RegisterEventHandler(OnStateTransition(target_lifecycle_node=self._node, entities=[moved])),
        ]

    def _on_start(self, event: ProcessStarted, context: LaunchContext) -> list[Action]:
        self._strangers = self._publishers(context)
        self._started = self._busy = True
        return [self._configuration()] if self.permitted else []

    def _on_moved(self, context: LaunchContext) -> list[Action]:
        start, goal = context.locals.event.start_state, context.locals.event.goal_state
        if not self._busy or context.is_shutdown:
            return []
        if (start, goal) == ("configuring", "inactive"):
            return [EmitEvent(event=self._change(Transition.TRANSITION_ACTIVATE))]
        if goal == "active":
            self._busy = False
            return self._after.permit() if self._after is not None else []
        if start in _FAILED_FROM and goal != "errorprocessing":
            reason = f"{self._node.node_name} refused to start; its own sentence stands above"
            return [Shutdown(reason=reason)]
        return []

    def permit(self) -> list[Action]:
        """It is this node's turn, and stays so."""
        first, self.permitted = not self.permitted, True
        return [self._configuration()] if first and self._started else []

    def _configuration(self) -> Action:
        return OpaqueCoroutine(coroutine=self._configure)

    async def _configure(self, context: LaunchContext) -> None:
        while not self._publishers(context) - self._strangers:
            await asyncio.sleep(LOOK_S)
        await asyncio.sleep(MATCH_S)
        await context.emit_event(self._change(Transition.TRANSITION_CONFIGURE))

    def _change(self, transition: int) -> ChangeState:
        return ChangeState(lifecycle_node_matcher=matches_action(self._node), transition_id=transition)

    def _publishers(self, context: LaunchContext) -> set[tuple[int, ...]]:
        topic = f"{self._node.node_name}/transition_event"
        found = get_ros_node(context).get_publishers_info_by_topic(topic)
        return {tuple(info.endpoint_gid) for info in found}
