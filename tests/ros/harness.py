"""Real node processes and a probe that talks to them over DDS."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image

from dtvla.bringup import domains, shared_memory
from dtvla.bringup.graph import EXECUTABLES, GraphOptions
from dtvla.bringup.launcher import command, environment
from dtvla.nodes.common import qos
from dtvla.nodes.common.conversions import image_message, to_time
from dtvla.nodes.lifecycle.graph_client import GraphClient
from dtvla_msgs.msg import ActionChunk

PATIENCE_S = 60.0
PERIOD_NS = 50_000_000
BASE_FRAME = "panda_link0"
SPECS = {node.name: node for node in EXECUTABLES}


class NodeProcess:
    """One node of the graph as a process of its own, ended on leaving."""

    def __init__(
        self, name: str, domain: int, folder: Path, *, namespace: str = "", **parameters: Any
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._started_s = time.time() - 1.0
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                command(SPECS[name], parameters, GraphOptions(bundle=Path(), namespace=namespace)),
                env=environment(domain, folder),
                start_new_session=True,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """As the kernel's out-of-memory killer would."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> NodeProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.alive:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(PATIENCE_S)
        shared_memory.sweep(self._started_s, stays=True)  # the probe stays
        if error is not None:
            print(f"--- {self.log.name}\n{self.log.read_text()}")


class Probe(GraphClient):
    """A test's own node: listens, publishes, waits."""

    def __init__(self, domain: int) -> None:
        super().__init__(domain)
        self.domain = domain

    def listen(self, kind: type, topic: str, profile: QoSProfile = qos.COMMAND) -> list[Any]:
        """A list that grows with every message of the topic."""
        heard: list[Any] = []
        self.node.create_subscription(kind, topic, heard.append, qos.patient(profile))
        return heard

    def speak(self, kind: type, topic: str, profile: QoSProfile = qos.COMMAND) -> Any:
        """A publisher, once somebody listens."""
        publisher = self.node.create_publisher(kind, topic, profile)
        self.expect(lambda: publisher.get_subscription_count() > 0, f"nobody listens to {topic}")
        return publisher

    def expect(self, condition: Any, otherwise: str, timeout_s: float = PATIENCE_S) -> None:
        """Waits for a condition; fails with words and the nodes' reports when it does not come."""
        if not self.wait(condition, timeout_s):
            reports = {name: status.message for name, status in self.reports.items()}
            raise AssertionError(f"After {timeout_s:g} s: {otherwise}. Reports: {reports}")

    def complaint(self, node: str) -> str:
        """What a node complains about now; empty when it is well."""
        report = self.reports.get(node)
        return report.message if report is not None and report.level != DiagnosticStatus.OK else ""

    def expect_complaint(self, node: str, words: str) -> None:
        self.expect(lambda: words in self.complaint(node), f"{node} does not complain about '{words}'")

    def figure(self, node: str, key: str) -> str | None:
        """A figure of a node's newest report."""
        report = self.reports.get(node)
        return next((item.value for item in report.values if item.key == key), None) if report else None


@contextmanager
def probe_domain() -> Iterator[tuple[Probe, int]]:
    """A probe in a domain of its own."""
    with domains.reserve() as reservation:
        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
        begin_s = time.time() - 1.0
        probe = Probe(reservation.domain)
        try:
            yield probe, reservation.domain
        finally:
            probe.close()
            shared_memory.sweep(begin_s)


def active(name: str, probe: Probe, domain: int, folder: Path, **parameters: object) -> NodeProcess:
    """A configured and activated node process."""
    process = NodeProcess(name, domain, folder, **parameters)
    try:
        probe.bring_up([name])
        probe.expect(lambda: name in probe.reports, f"{name} does not report")
    except BaseException as error:
        process.__exit__(type(error), error, None)
        raise
    return process


def chunk(decision_id: int, stamp_ns: int, *, rows: int = 10, execute_steps: int = 5) -> ActionChunk:
    """A chunk whose row k moves k mm along x; its raw actions are not exactly convertible on purpose."""
    translations = np.zeros((rows, 3))
    translations[:, 0] = 0.001 * np.arange(rows)
    raw = np.full((rows, 7), 0.1) / 3
    raw[:, 0] = np.arange(rows) / 50
    message = ActionChunk(
        decision_id=decision_id,
        horizon=rows,
        execute_steps=execute_steps,
        control_period=0.05,
        translations=translations.ravel().tolist(),
        rotations=[0.0] * (3 * rows),
        gripper_openings=[0.08] * rows,
        raw_actions=raw.ravel().tolist(),
        thought="A thought.",
    )
    message.header.stamp = to_time(stamp_ns)
    message.header.frame_id = BASE_FRAME
    return message


def pose(stamp_ns: int) -> PoseStamped:
    message = PoseStamped()
    message.header.stamp = to_time(stamp_ns)
    message.header.frame_id = BASE_FRAME
    return message


def picture(stamp_ns: int, *, size: int = 64, encoding: str = "rgb8") -> Image:
    pixels = np.arange(size * size * 3, dtype=np.uint32).astype(np.uint8).reshape(size, size, 3)
    message = image_message(pixels, to_time(stamp_ns), "camera")
    message.encoding = encoding
    return message


def descendants_of(launcher_pid: int) -> list[int]:
    """Living processes that a launcher has started, wherever they hang in the process tree now."""
    marker = f"DTVLA_LAUNCHER_PID={launcher_pid}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if marker in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def shared_memory_files() -> set[str]:
    return {path.name for path in shared_memory.SHM.iterdir() if shared_memory.stem_of(path.name)}
