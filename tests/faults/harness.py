"""The graph as real processes, each of which can be killed, paused and started anew."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus

from dtvla.bringup.graph import GRAPH, GraphOptions, overrides
from dtvla.bringup.launcher import command, environment
from dtvla.bringup.shared_memory import sweep
from dtvla.nodes.lifecycle.graph_client import GraphClient
from dtvla.resources import default_bundle
from tests.faults import proxy
from tests.faults.monitor import Monitor

NODES = (
    "recorder_node",
    "reasoning_markers_node",
    "controller_node",
    "policy_node",
    "libero_bridge_node",
)
SPECS = {node.name: node for node in GRAPH}
END_S = 20.0
ANSWER_S = 60.0


class StageBroke(RuntimeError):
    """The graph did not do what it must before a fault can be tried; the message says what."""


class Helper:
    """A process of ours that reads orders from stdin and answers with JSON lines."""

    def __init__(self, module: str, arguments: list[str], domain: int, folder: Path) -> None:
        self._log = (folder / f"{module.rsplit('.', 1)[1]}.log").open("ab")
        self.module = module
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=environment(domain, folder),
            start_new_session=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )

    def answer(self, timeout_s: float = ANSWER_S) -> dict[str, Any]:
        """The next line that it prints."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], timeout_s)[0]:
            raise StageBroke(f"{self.module} gave no answer within {timeout_s:g} s.")
        line = self.process.stdout.readline()
        if not line:
            raise StageBroke(f"{self.module} ended; see {self._log.name}.")
        return dict(json.loads(line))

    def order(self, **words: Any) -> dict[str, Any]:
        """Gives an order and waits for the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write((json.dumps(words) + "\n").encode())
        self.process.stdin.flush()
        return self.answer()

    def end(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        if self.module == "tests.faults.proxy" or self._waited() is None:
            self.process.kill()
        self.process.wait(END_S)
        self._log.close()

    def _waited(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(5.0)
        return None


@dataclass
class Harness:
    """Everything that runs, as a context manager.

    Args:
        folder: for logs and recordings.
        domain: reserved ROS domain.
        in_the_middle: whether topics pass through the process that can spoil them.
        more: parameters beside the graph's own, by node.
        nodes: which run.
        arm: a Panda that is told target poses; otherwise the simulator's own deltas, still in real time.
        preferred: whether the system let the controller run with real-time priority.
    """

    folder: Path
    domain: int
    in_the_middle: bool = False
    more: dict[str, dict[str, Any]] = field(default_factory=dict)
    nodes: tuple[str, ...] = NODES
    arm: bool = True
    bundle: Path = field(default_factory=default_bundle)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    complaints: dict[str, tuple[float, str]] = field(default_factory=dict)
    preferred: bool = False
    _proxies: dict[str, Helper] = field(default_factory=dict)
    _began_s: float = field(default_factory=time.time)
    _seed: int = 20_000

    def __enter__(self) -> Harness:
        self.folder.mkdir(parents=True, exist_ok=True)
        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
        os.environ["ROS_LOG_DIR"] = str(self.folder / "ros")
        self.options = GraphOptions(
            bundle=self.bundle,
            robot="panda" if self.arm else "simulator",
            realtime=True,
            autostart=False,
            repeat=True,
            console=False,
            record="recorder_node" in self.nodes,
            markers="reasoning_markers_node" in self.nodes,
            max_steps=1000,
            output=self.folder / "recording",
        )
        self.client = GraphClient(self.domain, self._look)
        self.monitor = Monitor(self.domain, arm=self.arm)
        try:
            if self.in_the_middle:
                for sender in proxy.SENDERS:
                    self._proxies[sender] = Helper("tests.faults.proxy", [sender], self.domain, self.folder)
                for helper in self._proxies.values():
                    helper.answer()
            for name in self.nodes:
                self._spawn(name)
            self.client.bring_up(list(self.nodes))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends everything."""
        for name in reversed(list(self.processes)):
            self.signal(name, signal.SIGCONT)
            self.signal(name, signal.SIGTERM)
        deadline = time.monotonic() + END_S
        for process in self.processes.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()
        for helper in self._proxies.values():
            helper.end()
        self._proxies.clear()
        self.monitor.close()
        self.client.close()
        sweep(self._began_s - 1.0)

    def signal(self, name: str, number: int) -> None:
        """Sends a signal to a node's process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.processes[name].pid, number)

    def kill(self, name: str) -> None:
        """As the kernel's out-of-memory killer would."""
        self.signal(name, signal.SIGKILL)
        self.processes[name].wait()

    def restart(self, name: str, **parameters: Any) -> None:
        """What a process manager does with one that died."""
        if self.processes[name].poll() is None:
            self.signal(name, signal.SIGTERM)
            self.processes[name].wait(END_S)
        sweep(self._began_s - 1.0)
        self._spawn(name, **parameters)
        self.client.bring_up([name])

    def spoil(self, topics: list[str], fault: str, value: float = 0.0) -> float:
        """Tells the process in the middle what to do; returns from when on it does."""
        (sender,) = {name for name, sent in proxy.SENDERS.items() if set(topics) & set(sent)}
        return float(self._proxies[sender].order(topics=topics, fault=fault, value=value)["time_s"])

    def intrude(self, what: str) -> Helper:
        """A foreign process; it has begun when this returns."""
        helper = Helper("tests.faults.intruder", [what], self.domain, self.folder)
        helper.answer()
        return helper

    def begin_episode(self) -> None:
        """A scene, with a seed of its own."""
        self._seed += 1
        self.client.reset_scene("embedded", self._seed % 3, self._seed)

    def spin(self, seconds: float) -> None:
        """Lets time pass."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.client.spin(min(left, 0.02))

    def await_motion(self, timeout_s: float = 60.0, since_s: float | None = None) -> float | None:
        """Waits until a command moves the arm (after `since_s`, Unix time); its time or None."""
        since_s = time.time() if since_s is None else since_s
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            moved = self.monitor.record.moved_after(since_s)
            if moved:
                return moved[0].time_s
            self.spin(0.02)
        return None

    def await_(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Waits for a condition."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                return False
            self.spin(0.02)
        return True

    def dead(self) -> list[str]:
        """Nodes whose process ended."""
        return [name for name, process in self.processes.items() if process.poll() is not None]

    def words(self, since_s: float) -> list[str]:
        """What nodes complained about since a moment, each once."""
        return [words for time_s, words in self.complaints.values() if time_s >= since_s]

    def _spawn(self, name: str, **parameters: Any) -> None:
        decided = {**overrides(self.options).get(name, {}), **self.more.get(name, {}), **parameters}
        line = command(SPECS[name], decided, self.options)
        if self.in_the_middle:
            line += proxy.remaps(name)
        with (self.folder / f"{name}.log").open("ab") as out:
            self.processes[name] = subprocess.Popen(
                line,
                env=environment(self.domain, self.folder),
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self.preferred = _prefer(name, self.processes[name].pid) or self.preferred

    def _look(self) -> None:
        """Notes complaints, with the time of the newest one; figures in them do not make them others."""
        for name, status in list(self.client.reports.items()):
            if status.level != DiagnosticStatus.OK:
                key = f"{name}: {re.sub(r'[-+]?[0-9][0-9.e+]*', '#', status.message)}"
                self.complaints[key] = (time.time(), f"{name}: {status.message}")


def _prefer(name: str, pid: int) -> bool:
    """Real-time priority for the controller, as on a robot, and a higher one for the simulated robot.

    The latter stands for a machine of its own. True when it is the controller, and the system allows it.
    """
    try:
        if name == "libero_bridge_node":
            os.setpriority(os.PRIO_PROCESS, pid, -10)
        if name == "controller_node":
            os.sched_setscheduler(pid, os.SCHED_RR, os.sched_param(10))
            return True
    except OSError:
        pass
    return False
