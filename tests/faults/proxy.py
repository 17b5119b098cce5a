"""A process in the middle: relays topics of the graph, and spoils them when it is told to.

The nodes on the sending side are started with the topics below remapped to `middle/...`; this process passes
those that it is started with on under their real names. Each sender has one of its own: a chunk of 112 MB
must not hold up the arm's state and the clock as well. Faults come as JSON lines on stdin:
{"topics": ..., "fault": ..., "value": ...}; each is acknowledged on stdout with the time from which it acts.
"""

from __future__ import annotations

import array
import contextlib
import copy
import json
import math
import random
import sys
import threading
import time
from typing import Any

import numpy as np
import rclpy
from geometry_msgs.msg import PoseStamped
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rosgraph_msgs.msg import Clock as ClockMessage
from sensor_msgs.msg import Image, JointState

from dtvla.nodes.common import qos
from dtvla.nodes.common.process import end_with_launcher
from dtvla_msgs.msg import ActionChunk

RELAYED = {
    "policy/action_chunk": (ActionChunk, qos.COMMAND),
    "agentview/image_raw": (Image, qos.SENSOR),
    "wrist/image_raw": (Image, qos.SENSOR),
    "ee_pose": (PoseStamped, qos.SENSOR),
    "joint_states": (JointState, qos.SENSOR),
    "/clock": (ClockMessage, qos.CLOCK),
}
SENDERS = {
    "policy_node": ["policy/action_chunk"],
    "libero_bridge_node": [topic for topic in RELAYED if topic != "policy/action_chunk"],
}
CHECK_S = 0.002
NS = 1_000_000_000


def remaps(node: str) -> list[str]:
    """Arguments that make a node send to the middle instead."""
    found = []
    for topic in SENDERS.get(node, []):
        found += ["-r", f"{topic}:={middle_name(topic)}"]
    return found


def middle_name(topic: str) -> str:
    return f"/middle/{topic.strip('/')}"


class Relay:
    """One topic."""

    def __init__(self, node: Any, topic: str) -> None:
        kind, profile = RELAYED[topic]
        self.topic, self.fault, self.value = topic, "", 0.0
        self._random = random.Random(1)
        self._late: list[tuple[float, Any]] = []
        self._held: Any = None
        self._frozen: Any = None
        self._count = 0
        self._out = node.create_publisher(kind, topic, profile)
        node.create_subscription(kind, middle_name(topic), self._on_message, profile)

    def set(self, fault: str, value: float) -> None:
        self._frozen = self._held = None
        self.fault, self.value = fault, value

    def due(self, now: float) -> None:
        """Sends what was delayed and is due."""
        while self._late and self._late[0][0] <= now:
            self._out.publish(self._late.pop(0)[1])

    def _on_message(self, message: Any) -> None:
        fault, value = self.fault, self.value
        if fault == "drop" or (fault == "drop_some" and self._random.random() < value):
            return
        if fault == "delay":
            self._late.append((time.monotonic() + value, message))
            return
        if fault == "reorder":  # each second one before the one it followed
            if self._held is None:
                self._held = message
                return
            self._out.publish(message)
            message, self._held = self._held, None
        if isinstance(message, Image):
            message = self._image(message)
        elif fault:
            message = _spoil(message, fault, value)
        self._out.publish(message)
        if fault == "duplicate":
            self._out.publish(message)
            self._late.append((time.monotonic() + value, message))

    def _image(self, message: Image) -> Image:
        fault = self.fault
        if fault == "freeze":
            stamp = message.header.stamp
            self._frozen = message = self._frozen or message
            message.header.stamp = stamp
            return message
        if fault == "size":
            message.width, message.height = 7, 5
        elif fault == "encoding":
            message.encoding = "bayer_rggb8"
        elif fault == "shift":
            message = _spoil(message, fault, self.value)
        elif fault == "truncate":
            message.data = message.data[: len(message.data) // 2]
        else:  # one bit of noise, as no real camera is without
            self._count += 1
            message.data[0] = (message.data[0] & 0xFE) | (self._count & 1)
        return message


def _spoil(message: Any, fault: str, value: float) -> Any:
    if fault == "nan" and isinstance(message, ActionChunk):
        message.translations[min(5, len(message.translations) - 1)] = math.nan
    elif fault == "nan" and isinstance(message, PoseStamped):
        message.pose.position.y = math.nan
    elif fault == "nan" and isinstance(message, JointState):
        message.position = array.array("d", [math.nan] * len(message.position))
    elif fault == "rows" and isinstance(message, ActionChunk):
        message = copy.deepcopy(message)
        rows = int(value)
        message.horizon = rows
        for name, width in (
            ("translations", 3),
            ("rotations", 3),
            ("gripper_openings", 1),
            ("raw_actions", 7),
        ):
            setattr(message, name, array.array("d", np.zeros(rows * width).tobytes()))
    elif fault == "shift":
        stamp = message.clock if isinstance(message, ClockMessage) else message.header.stamp
        moved = stamp.sec * NS + stamp.nanosec + round(value * NS)
        stamp.sec, stamp.nanosec = moved // NS, moved % NS
    return message


def main() -> int:
    """Relays the topics of one sender (the argument) until stdin ends."""
    end_with_launcher()
    rclpy.init()
    node = rclpy.create_node(f"middle_of_{sys.argv[1]}")
    relays = {topic: Relay(node, topic) for topic in SENDERS[sys.argv[1]]}
    orders: list[dict[str, Any]] = []
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()

    def check() -> None:
        now = time.monotonic()
        for relay in relays.values():
            relay.due(now)
        while orders:
            order = orders.pop(0)
            for topic in order["topics"]:
                relays[topic].set(order["fault"], order["value"])
            print(json.dumps({"time_s": time.time()}), flush=True)

    node.create_timer(CHECK_S, check, clock=Clock(clock_type=ClockType.STEADY_TIME))
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    print(json.dumps({"time_s": time.time()}), flush=True)
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
        executor.spin()
    return 0


def _listen(orders: list[dict[str, Any]]) -> None:
    for line in sys.stdin:
        orders.append(json.loads(line))


if __name__ == "__main__":
    raise SystemExit(main())
