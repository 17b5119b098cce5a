"""Hears every command that is published, judges it, and keeps when the arm was told to move.

A node of its own, in a thread of its own. Times are those at which the writer wrote (DDS source timestamps,
the machine's clock); sequence numbers tell whether a command was missed.
"""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict, deque
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions
from rosgraph_msgs.msg import Clock as ClockMessage
from sensor_msgs.msg import JointState

from dtvla.nodes.common import qos
from dtvla_msgs.msg import ActionChunk, EndEffectorDelta
from tests.faults.invariants import DELTA_PERIOD_S, PANDA, Allowed, Exceeded, Judge, turn_between

NS = 1e9
MOVES_M, MOVES_RAD = 1e-6, 1e-5  # within one command; below, the target stands still
FOREIGN_SEC = 1  # an intruder of ours stamps its poses so: they are not the controller's
# A target that is further from the arm than this, and comes straight back to it, gives way to an arm that
# lags (the simulated one does where its world is slower than the clock): nothing new is asked of the arm.
LAGS_M, STRAIGHT = 0.02, 0.99
AT_ARM_M = 0.1  # a controller begins where the arm is; the following error of the one before may lie between


@dataclass(frozen=True)
class Told:
    """One command: when it was written (Unix time, s) and whether it moves the arm on.

    `gives_way`: it moves the target straight back to the arm, which is no motion that anybody asked for.
    """

    time_s: float
    moves: bool
    gives_way: bool = False


@dataclass(frozen=True)
class Planned:
    """One chunk on the controller's topic: when it came, and how long its rows last at most, by /clock."""

    time_s: float
    decision_id: int
    hold: bool
    lasts_s: float
    good: bool


@dataclass
class Record:
    """What was heard. Append-only; safe to read from another thread."""

    told: list[Told] = field(default_factory=list)
    chunks: list[Planned] = field(default_factory=list)
    pose_times: list[float] = field(default_factory=list)
    clock: list[tuple[float, float]] = field(default_factory=list)  # when it was written, what it said (s)
    said: list[tuple[float, str, str]] = field(default_factory=list)  # when, who, what: reports of nodes
    exceeded: list[Exceeded] = field(default_factory=list)
    traces: list[str] = field(default_factory=list)  # the commands around the first one that exceeded a limit
    foreign: int = 0
    missed: int = 0
    starts: int = 0
    good_pose_s: float = 0.0
    deltas: int = 0

    @property
    def last_move_s(self) -> float:
        return next((item.time_s for item in reversed(self.told) if item.moves), 0.0)

    def after_clock(self, since_s: float, lasts_s: float) -> float:
        """When /clock had gone on by `lasts_s` since a moment; infinite when it has not yet.

        The rows of a chunk are counted by that clock: where it runs slowly or stands, they last longer.
        """
        before = [said for time_s, said in self.clock if time_s <= since_s]
        due = (before[-1] if before else 0.0) + lasts_s
        return next((time_s for time_s, said in self.clock if time_s > since_s and said >= due), math.inf)

    def said_after(self, since_s: float, who: str, words: str) -> float:
        """When a node first reported something since a moment; infinite when it did not."""
        return next(
            (at for at, name, text in self.said if at > since_s and name == who and words in text), math.inf
        )

    def moved_after(self, time_s: float) -> list[Told]:
        """Commands after a moment that move the arm."""
        found = []
        for item in reversed(self.told):
            if item.time_s <= time_s:
                break
            if item.moves:
                found.append(item)
        return found[::-1]


class Monitor:
    """Runs until `close`.

    Args:
        domain: ROS domain of the graph.
        arm: whether the graph tells an arm target poses; otherwise the simulator's deltas are judged.
        allowed: limits of the arm.
    """

    def __init__(self, domain: int, *, arm: bool = True, allowed: Allowed = PANDA) -> None:
        self.record = Record()
        self.judge = Judge(allowed)
        self._context = Context()
        rclpy.init(context=self._context, domain_id=domain, signal_handler_options=SignalHandlerOptions.NO)
        self.node = rclpy.create_node("fault_monitor", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._writers: dict[str, bytes] = {}
        self._numbers: dict[tuple[str, bytes], int] = defaultdict(int)
        self._last: tuple[Any, Any] | None = None
        self._recent: deque[tuple[float, int, Any]] = deque(maxlen=16)
        self._measured: Any = None
        hear = self.node.create_subscription
        if arm:
            hear(PoseStamped, "target_pose", self._on_target, qos.patient(qos.TARGET, 2000))
            hear(JointState, "gripper/target", self._on_gripper, qos.patient(qos.TARGET, 2000))
        else:
            hear(EndEffectorDelta, "controller/ee_delta", self._on_delta, qos.patient(qos.COMMAND, 2000))
        hear(ActionChunk, "policy/action_chunk", self._on_chunk, qos.patient(qos.COMMAND))
        hear(DiagnosticArray, "/diagnostics", self._on_report, 200)
        hear(PoseStamped, "ee_pose", self._on_pose, qos.patient(qos.SENSOR))
        hear(ClockMessage, "/clock", self._on_clock, qos.patient(qos.CLOCK))
        self._thread = threading.Thread(target=self._spin, name="monitor", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Leaves the graph."""
        self._executor.shutdown(timeout_sec=2.0)
        self._thread.join(5.0)
        self.node.destroy_node()
        rclpy.try_shutdown(context=self._context)

    def _spin(self) -> None:
        try:
            while self._context.ok():
                self._executor.spin_once(timeout_sec=0.1)
        except ExternalShutdownException:
            return
        except Exception:
            if self._context.ok():
                raise

    def _count(self, topic: str, info: Any) -> tuple[bool, int]:
        """Whether another writer speaks than before, and how many messages are missing since its last."""
        writer = bytes(info["publisher_gid"]["data"])
        number = int(info["publication_sequence_number"] or 0)
        known = self._numbers[topic, writer]
        missing = max(0, number - known - 1) if known else 0
        self.record.missed += missing
        self._numbers[topic, writer] = number
        changed = self._writers.get(topic) != writer
        self._writers[topic] = writer
        return changed, missing

    def _on_target(self, message: PoseStamped, info: Any) -> None:
        if message.header.stamp.sec == FOREIGN_SEC:
            self.record.foreign += 1
            return
        time_s = info["source_timestamp"] / NS
        place, turn = message.pose.position, message.pose.orientation
        position = np.array([place.x, place.y, place.z])
        quaternion = np.array([turn.w, turn.x, turn.y, turn.z])
        changed, missing = self._count("target_pose", info)
        if changed:
            self._begin(time_s, position)
        found = self.judge.pose(time_s, message.header.frame_id, position, quaternion, lost=missing > 0)
        self._recent.append((time_s, int(info["publication_sequence_number"] or 0), position))
        if found and (not self.record.exceeded or found[0].time_s - self.record.exceeded[-1].time_s > 1.0):
            self.record.traces.append(self._trace())
        self.record.exceeded += found
        moves = False
        if self._last is not None:
            moves = bool(
                np.linalg.norm(position - self._last[0]) > MOVES_M
                or np.linalg.norm(turn_between(self._last[1], quaternion)) > MOVES_RAD
            )
        gives_way = moves and self._last is not None and self._goes_back(self._last[0], position)
        self._last = position, quaternion
        self.record.told.append(Told(time_s, moves and not gives_way, gives_way))

    def _goes_back(self, before: Any, now: Any) -> bool:
        """Whether a step of the target goes straight back to the measured arm."""
        if self._measured is None:
            return False
        step, way = now - before, self._measured - before
        lengths = float(np.linalg.norm(step) * np.linalg.norm(way))
        return bool(np.linalg.norm(way) > LAGS_M and step @ way >= STRAIGHT * lengths)

    def _begin(self, time_s: float, position: Any) -> None:
        """The first command of a controller: it must begin where the arm is."""
        self.judge.begin()
        self._last = None
        self.record.starts += 1
        if self._measured is not None:
            away_m = float(np.linalg.norm(position - self._measured))
            if away_m > AT_ARM_M:
                self.record.exceeded.append(
                    Exceeded("distance of a first target from the arm", away_m, AT_ARM_M, time_s)
                )

    def _trace(self) -> str:
        """The newest commands: time before the last one (ms), number, and how far it moved (mm)."""
        recent = list(self._recent)
        steps = (
            f"{1000 * (time_s - recent[-1][0]):.1f} ms #{number} "
            f"{1000 * float(np.linalg.norm(place - before[2])):.2f} mm"
            for before, (time_s, number, place) in pairwise(recent)
        )
        return "; ".join(steps)

    def _on_gripper(self, message: JointState, info: Any) -> None:
        self._count("gripper/target", info)
        time_s = info["source_timestamp"] / NS
        self.record.exceeded += self.judge.gripper(
            time_s, message.position[0], message.velocity[0], message.effort[0]
        )

    def _on_delta(self, message: EndEffectorDelta, info: Any) -> None:
        self._count("ee_delta", info)
        time_s, v, w = info["source_timestamp"] / NS, message.translation, message.rotation
        self.record.deltas += 1
        vectors = np.array([v.x, v.y, v.z]), np.array([w.x, w.y, w.z])
        self.record.exceeded += self.judge.delta(time_s, *vectors, message.gripper_opening)
        moves = bool(
            np.linalg.norm(vectors[0]) > MOVES_M * DELTA_PERIOD_S or np.linalg.norm(vectors[1]) > MOVES_RAD
        )
        self.record.told.append(Told(time_s, moves and not message.hold))

    def _on_chunk(self, message: ActionChunk, info: Any) -> None:
        numbers = (*message.translations[:3000], *message.rotations[:3000])
        good = message.horizon <= 1000 and bool(np.isfinite(numbers).all())
        time_s = info["source_timestamp"] / NS
        lasts_s = min(message.horizon * message.control_period, 60.0) if good and not message.hold else 0.0
        self.record.chunks.append(Planned(time_s, message.decision_id, message.hold, lasts_s, good))

    def _on_report(self, message: DiagnosticArray, info: Any) -> None:
        for status in message.status:
            if not self.record.said or self.record.said[-1][1:] != (status.name, status.message):
                self.record.said.append((info["source_timestamp"] / NS, status.name, status.message))

    def _on_clock(self, message: ClockMessage, info: Any) -> None:
        said_s = message.clock.sec + message.clock.nanosec / NS
        self.record.clock.append((info["source_timestamp"] / NS, said_s))

    def _on_pose(self, message: PoseStamped, info: Any) -> None:
        time_s, place = info["source_timestamp"] / NS, message.pose.position
        position = np.array([place.x, place.y, place.z])
        stamp_s = message.header.stamp.sec + message.header.stamp.nanosec / NS
        if np.isfinite(position).all():
            self._measured = position
            # The bridge's clock lags the machine's; a fault of ours shifts by far more than this.
            if self._offset_ok(stamp_s, time_s):
                self.record.good_pose_s = time_s
        self.record.pose_times.append(time_s)

    def _offset_ok(self, stamp_s: float, time_s: float) -> bool:
        """Whether a stamp goes on as the ones before did, to a second."""
        offset = stamp_s - time_s
        before = getattr(self, "_offset", None)
        if before is not None and abs(offset - before[0]) > 3.0 and time_s - before[1] < 10.0:
            return False
        self._offset = (offset, time_s)
        return True


def now_s() -> float:
    """The clock that source timestamps are from, s."""
    return time.time()
