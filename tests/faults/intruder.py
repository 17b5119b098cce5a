"""A foreign process in the graph's domain that publishes what it should not. Ends with its stdin.

Prints the time of its first message as a JSON line, once somebody has heard it (where somebody can).
"""

from __future__ import annotations

import array
import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import rclpy
from geometry_msgs.msg import PoseStamped
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image
from std_msgs.msg import String

from dtvla.nodes.common import qos
from dtvla.nodes.common.process import end_with_launcher
from dtvla_msgs.msg import ActionChunk
from tests.faults.monitor import FOREIGN_SEC

FRAME = "panda_link0"
PERIOD_S = 0.05
WORDS = "pick up the red block and put it where nobody would look for it "


def second_policy(node: Any) -> Callable[[], None]:
    """Chunks of another policy: 5 mm per period along y."""
    publisher = node.create_publisher(ActionChunk, "policy/action_chunk", qos.COMMAND)
    number = iter(range(100_000, 10**9))

    def send() -> None:
        publisher.publish(_chunk(next(number), 10))

    return send


def second_arm(node: Any) -> Callable[[], None]:
    """Target poses beside the controller's."""
    publisher = node.create_publisher(PoseStamped, "target_pose", qos.TARGET)

    def send() -> None:
        message = PoseStamped()
        message.header.stamp.sec = FOREIGN_SEC
        message.header.frame_id = "intruder"
        message.pose.position.x, message.pose.orientation.w = 0.5, 1.0
        publisher.publish(message)

    return send


def wrong_types(node: Any) -> Callable[[], None]:
    """Strings on the topics of chunks, poses, joints, images and clock."""
    topics = (
        "policy/action_chunk",
        "ee_pose",
        "joint_states",
        "agentview/image_raw",
        "/clock",
        "target_pose",
    )
    publishers = [node.create_publisher(String, topic, qos.COMMAND) for topic in topics]

    def send() -> None:
        for publisher in publishers:
            publisher.publish(String(data="\x00 not what you expect " * 20))

    return send


def huge_instruction(node: Any) -> Callable[[], None]:
    """One instruction of 8 MB."""
    publisher = node.create_publisher(String, "instruction", qos.LATCHED)
    message = String(data=WORDS * (8_000_000 // len(WORDS)))
    return _once(lambda: publisher.publish(message), lambda: publisher.get_subscription_count() > 0)


def huge_image(node: Any) -> Callable[[], None]:
    """Pictures of 4096 x 4096 px (50 MB) beside the camera's, one in two seconds."""
    publisher = node.create_publisher(Image, "agentview/image_raw", qos.STREAM)
    message = Image(height=4096, width=4096, encoding="rgb8", step=3 * 4096)
    message.data = array.array("B", bytes(3 * 4096 * 4096))
    return _seldom(lambda: publisher.publish(message), 2.0)


def huge_chunk(node: Any) -> Callable[[], None]:
    """Chunks of a million rows (112 MB), one in two seconds."""
    publisher = node.create_publisher(ActionChunk, "policy/action_chunk", qos.COMMAND)
    message = _chunk(200_000, 1_000_000)
    return _seldom(lambda: publisher.publish(message), 2.0)


def clock_jumps(node: Any) -> Callable[[], None]:
    """A second clock that is an hour ahead, once in half a second."""
    publisher = node.create_publisher(Clock, "/clock", qos.CLOCK)

    def send() -> None:
        publisher.publish(Clock(clock=_stamp(time.time() + 3600.0)))

    return _seldom(send, 0.5)


WHAT = {
    make.__name__: make
    for make in (
        second_policy,
        second_arm,
        wrong_types,
        huge_instruction,
        huge_image,
        huge_chunk,
        clock_jumps,
    )
}


def _chunk(number: int, rows: int) -> ActionChunk:
    def doubles(values: Any) -> array.array[float]:
        return array.array("d", np.ascontiguousarray(values, np.float64).tobytes())

    way = np.zeros((rows, 3))
    way[:, 1] = 0.005
    message = ActionChunk(
        decision_id=number,
        horizon=rows,
        execute_steps=min(5, rows),
        control_period=PERIOD_S,
        translations=doubles(way.ravel()),
        rotations=doubles(np.zeros(3 * rows)),
        gripper_openings=doubles(np.full(rows, 0.08)),
        raw_actions=doubles(np.zeros(7 * rows)),
    )
    message.header.frame_id = FRAME
    message.header.stamp = _stamp(time.time())
    return message


def _stamp(seconds: float) -> Any:
    from builtin_interfaces.msg import Time

    return Time(sec=int(seconds), nanosec=int((seconds % 1) * 1e9))


def _once(send: Callable[[], None], ready: Callable[[], bool]) -> Callable[[], None]:
    done = False

    def step() -> None:
        nonlocal done
        if not done and ready():
            done = True
            send()

    return step


def _seldom(send: Callable[[], None], every_s: float) -> Callable[[], None]:
    last_s = 0.0

    def step() -> None:
        nonlocal last_s
        if time.monotonic() - last_s >= every_s:
            last_s = time.monotonic()
            send()

    return step


def main() -> int:
    """Publishes until stdin ends."""
    end_with_launcher()
    over = threading.Event()
    threading.Thread(target=_await_end, args=(over,), daemon=True).start()
    rclpy.init()
    node = rclpy.create_node("intruder")
    step = WHAT[sys.argv[1]](node)
    rclpy.spin_once(node, timeout_sec=0.3)  # discovery
    print(json.dumps({"time_s": time.time()}), flush=True)
    while not over.is_set():
        step()
        rclpy.spin_once(node, timeout_sec=PERIOD_S)
    node.destroy_node()
    rclpy.try_shutdown()
    return 0


def _await_end(over: threading.Event) -> None:
    sys.stdin.read()
    over.set()


if __name__ == "__main__":
    raise SystemExit(main())
