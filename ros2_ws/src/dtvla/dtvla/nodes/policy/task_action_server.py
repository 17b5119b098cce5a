"""The action /execute_instruction: one goal at a time, with the thought as feedback."""

from __future__ import annotations

from collections.abc import Callable

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.task import Future

from dtvla.nodes.common.diagnostics import Level
from dtvla.nodes.common.lifecycle_node import GraphNode
from dtvla.nodes.common.parameters import Refusal
from dtvla_msgs.action import ExecuteInstruction
from dtvla_msgs.msg import TaskState

LONGEST_TIMEOUT_S = 86_400.0


def check_timeout(timeout_s: float) -> None:
    """Checks the time that a goal is given.

    Raises:
        Refusal: it is no number, or beyond a day.
    """
    if not timeout_s <= LONGEST_TIMEOUT_S:  # NaN is refused here too
        raise Refusal(
            f"Its timeout is {timeout_s:g} s; up to {LONGEST_TIMEOUT_S:g} s are possible (0: none)."
        )


class TaskActionServer:
    """Follows one operator's goal from acceptance to its result.

    Args:
        node: the node that serves the action.
        begin: starts to follow an instruction; raises `Refusal` with a sentence.
        halt: stops deciding and holds the arm.
        prefix: of the action's name, for one of several robots (as in `left/`).
    """

    def __init__(
        self, node: GraphNode, begin: Callable[[str], None], halt: Callable[[], None], prefix: str = ""
    ) -> None:
        self._node = node
        self._begin = begin
        self._halt = halt
        self._goal: ServerGoalHandle | None = None
        self._outcome: Future = Future()
        self._decisions = 0
        self._step = 0
        self._deadline_ns: int | None = None
        self._world_moved = False
        # An exception in these would leave the operator without an answer.
        guarded_goal, guarded_cancel = node.guarded(self._on_goal), node.guarded(self._on_cancel)
        self._server = ActionServer(
            node,
            ExecuteInstruction,
            f"{prefix}execute_instruction",
            execute_callback=self._execute,
            goal_callback=lambda request: guarded_goal(request) or GoalResponse.REJECT,
            cancel_callback=lambda goal: guarded_cancel(goal) or CancelResponse.ACCEPT,
        )

    def close(self) -> None:
        """Ends the server; a goal in progress must have been finished before."""
        self._server.destroy()

    def on_decision(self, thought: str) -> None:
        """Sends a finished thought as feedback."""
        if self._goal is not None:
            self._decisions += 1
            self._goal.publish_feedback(
                ExecuteInstruction.Feedback(thought=thought, decisions=self._decisions, step=self._step)
            )

    def on_task_state(self, state: TaskState) -> None:
        """Ends the goal when the world says that the task is over (and it was not over before)."""
        self._step = state.step
        if self._goal is None:
            return
        if not state.done:
            self._world_moved = True
        elif self._world_moved:
            words = "The task is solved." if state.success else "The episode ran out of steps."
            self._halt()
            self.finish(state.success, words)

    def watch(self) -> None:
        """Called about ten times a second: ends the goal after a cancel or when its time is over."""
        goal = self._goal
        if goal is None or self._outcome.done():
            return
        if goal.is_cancel_requested:
            self.finish(False, "Cancelled; the arm holds.")
        elif self._deadline_ns is not None and self._node.get_clock().now().nanoseconds >= self._deadline_ns:
            self._halt()
            self.finish(False, f"The time of {goal.request.timeout:g} s is over; the arm holds.")

    def finish(self, success: bool, message: str) -> None:
        """Sets the outcome of the goal in progress, if there is one."""
        if self._goal is not None and not self._outcome.done():
            self._outcome.set_result((success, message))

    def _on_goal(self, request: ExecuteInstruction.Goal) -> GoalResponse:
        if self._goal is not None:
            self._refuse("A goal is in progress; cancel it before sending another.")
            return GoalResponse.REJECT
        try:
            check_timeout(request.timeout)
            self._begin(request.instruction)
        except Refusal as refusal:
            self._refuse(str(refusal))
            return GoalResponse.REJECT
        self._node.report.solved("goal")
        return GoalResponse.ACCEPT

    def _refuse(self, sentence: str) -> None:
        self._node.report.problem("goal", f"The goal was refused: {sentence}", Level.WARNING)

    def _on_cancel(self, goal: ServerGoalHandle) -> CancelResponse:
        self._halt()
        return CancelResponse.ACCEPT

    async def _execute(self, goal: ServerGoalHandle) -> ExecuteInstruction.Result:
        self._decisions, self._world_moved = 0, False
        self._outcome = Future(executor=self._node.executor)
        timeout_s = goal.request.timeout
        now_ns = self._node.get_clock().now().nanoseconds
        self._deadline_ns = now_ns + round(timeout_s * 1e9) if timeout_s > 0 else None
        self._goal = goal
        success, message = await self._outcome
        self._goal = None
        if success:
            goal.succeed()
        elif goal.is_cancel_requested:
            goal.canceled()
        else:
            goal.abort()
        return ExecuteInstruction.Result(success=success, message=message, decisions=self._decisions)
