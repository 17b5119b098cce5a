"""What a node says about itself on /diagnostics: its problems as sentences, its figures as key and value."""

from __future__ import annotations

import re
import threading
from enum import IntEnum

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

PERIOD_S = 1.0


class Level(IntEnum):
    """How bad a problem is."""

    WARNING = 1
    ERROR = 2


_LEVEL_BYTES = {
    0: DiagnosticStatus.OK,
    Level.WARNING: DiagnosticStatus.WARN,
    Level.ERROR: DiagnosticStatus.ERROR,
}


def words_of(sentence: str) -> str:
    """A sentence without its figures."""
    return re.sub(r"[-+]?\d[\d.e+-]*", "#", sentence)


class Reporter:
    """Keeps the open problems of one node by key, and publishes them once a second and on every change.

    It has its own steady timer: a node whose simulated clock stands still goes on reporting. Safe to
    use from several threads.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._lock = threading.Lock()
        self._problems: dict[str, tuple[Level, str]] = {}
        self._values: dict[str, str] = {}
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._timer = node.create_timer(PERIOD_S, self.publish, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def problem(self, key: str, sentence: str, level: Level = Level.ERROR) -> None:
        """Opens (or rewords) the problem `key`; it stays in the report until `solved(key)`."""
        with self._lock:
            known = self._problems.get(key)
            self._problems[key] = (level, sentence)
        if known is not None and known[0] == level and words_of(known[1]) == words_of(sentence):
            return  # other figures go out with the next report: some change with every message
        if level is Level.ERROR:  # two calls: rclpy ties each place in the code to one severity
            self._node.get_logger().error(sentence)
        else:
            self._node.get_logger().warning(sentence)
        self.publish()

    def solved(self, key: str) -> None:
        """Closes the problem `key`, if it is open."""
        with self._lock:
            known = self._problems.pop(key, None)
        if known is not None:
            self.publish()

    def values(self, **values: object) -> None:
        """Sets figures of the report; they go out with the next one."""
        with self._lock:
            self._values.update({key: str(value) for key, value in values.items()})

    def publish(self) -> None:
        """Sends the report now."""
        with self._lock:
            problems = sorted(self._problems.values(), key=lambda item: -item[0])
            values = [KeyValue(key=key, value=value) for key, value in self._values.items()]
        status = DiagnosticStatus(
            level=_LEVEL_BYTES[problems[0][0] if problems else 0],
            name=self._node.get_fully_qualified_name().lstrip("/"),
            hardware_id="dtvla",
            message=" ".join(sentence for _, sentence in problems) or "All is well.",
            values=values,
        )
        message = DiagnosticArray(status=[status])
        message.header.stamp = self._node.get_clock().now().to_msg()
        if self._node.context.ok():
            self._publisher.publish(message)
