"""The lifecycle manager as a node of its own, for `ros2 launch` or by hand beside nodes that run already.

It ends with status 1, and with the sentence of whoever is to blame, when the graph does not come up.
"""

from __future__ import annotations

import re

import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from dtvla.nodes.common.diagnostics import Reporter
from dtvla.nodes.common.lifecycle_node import declare
from dtvla.nodes.common.parameters import LIFECYCLE_MANAGER, Refusal, validate
from dtvla.nodes.common.process import run
from dtvla.nodes.lifecycle.bring_up import HEARTBEAT_S, TimeLimits
from dtvla.nodes.lifecycle.lifecycle_manager import LifecycleManager

PERIOD_S = 0.1
_ITEM = re.compile(r"([A-Za-z][A-Za-z0-9_]*)(?:=([0-9.]+))?")


class LifecycleManagerNode(Node):
    """Brings the nodes of its parameter alive, watches them, and tells on /diagnostics what is wrong.

    Attributes:
        status: exit status of the process.
    """

    def __init__(self) -> None:
        super().__init__("lifecycle_manager_node")
        self.status = 0
        self._report = Reporter(self)
        self._manager: LifecycleManager | None = None
        self._failure = ""
        self._silent: set[str] = set()
        self._was_busy = True
        try:
            self._manager = self._begin()
        except Refusal as error:
            self._failure = str(error)
        self.create_timer(PERIOD_S, self._step, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _begin(self) -> LifecycleManager:
        settings = validate(LIFECYCLE_MANAGER, declare(self, LIFECYCLE_MANAGER, read_only=True))
        limits_s = parse_nodes(settings.text("nodes"))
        limits = TimeLimits(settings.number("start_timeout_s"), settings.number("transition_timeout_s"))
        manager = LifecycleManager(self, self.get_logger().info, limits, follow=True)
        manager.bring_up(list(limits_s), limits_s)
        return manager

    def _step(self) -> None:
        if self._manager is None:
            self._end(self._failure)
            return
        self._manager.step()
        if failure := self._manager.take_failure():
            self._end(failure)
            return
        silent = self._manager.silent
        for name in self._silent - set(silent):
            self._report.solved(name)
        for name, words in silent.items():
            self._report.problem(name, f"{words}.")
        self._silent = set(silent)
        if self._was_busy and not self._manager.busy:
            self.get_logger().info("All nodes are active.")
        self._was_busy = self._manager.busy

    def _end(self, sentence: str) -> None:
        self._report.problem("bring-up", sentence)
        self.status = 1
        rclpy.try_shutdown(context=self.context)


def parse_nodes(text: str) -> dict[str, float]:
    """Names of nodes in the order in which they come alive, and how long each may be silent, in s.

    Args:
        text: the value of the parameter `nodes`.

    Raises:
        Refusal: it is no such list, or empty.
    """
    found: dict[str, float] = {}
    for item in filter(None, text.replace(" ", "").split(",")):
        match = _ITEM.fullmatch(item)
        try:
            if match is None or match[1] in found or (limit_s := float(match[2] or HEARTBEAT_S)) <= 0:
                raise ValueError
            found[match[1]] = limit_s
        except ValueError:
            raise Refusal(
                f"Parameter 'nodes' has '{item}'; it must list names of nodes, each once, such as "
                "controller_node,policy_node=20 (the seconds that it may be silent)."
            ) from None
    if not found:
        raise Refusal("Parameter 'nodes' is empty; it must name at least one node to bring up.")
    return found


def main() -> int:
    """Runs the node."""
    return run(LifecycleManagerNode)


if __name__ == "__main__":
    raise SystemExit(main())
