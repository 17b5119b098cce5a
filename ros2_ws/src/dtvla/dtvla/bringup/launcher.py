"""Starts the graph as real processes, watches over them, and ends every one of them.

Used by `dtvla up` and `dtvla demo` on a machine that has only pip wheels; with a ROS installation
`ros2 launch dtvla policy.launch.py` does the same from the same node table.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from dtvla.bringup.graph import (
    GraphOptions,
    NodeSpec,
    ParameterValue,
    managed,
    overrides,
    parameter_files,
    remappings,
    selected,
)
from dtvla.bringup.shared_memory import sweep
from dtvla.bringup.sros2 import enclave
from dtvla.errors import DtvlaError

if TYPE_CHECKING:
    from dtvla.nodes.lifecycle.graph_client import GraphClient

END_TIMEOUT_S = 10.0
MOST_STARTS = 4  # of one node; more often, and something is wrong with it
SETTLED_S = 60.0  # a younger file may belong to a process that is just about to map it
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ChildDied(DtvlaError, RuntimeError):
    """A process of the graph ended by itself; the message names it and quotes its last words."""


class Interrupted(Exception):
    """The user (or the system) asked us to end."""


@dataclass
class Child:
    """One node process."""

    spec: NodeSpec
    process: subprocess.Popen[bytes]
    log: Path | None


def command(
    node: NodeSpec, parameters: Mapping[str, ParameterValue], options: GraphOptions | None = None
) -> list[str]:
    """The command line of one node process."""
    line = [sys.executable, "-m", node.module, "--ros-args", "-r", f"__node:={node.name}"]
    namespace = options.namespace if options is not None else ""
    line += ["--enclave", enclave(node.name, namespace)]  # it counts when SROS2 is on (docs/security.md)
    if options is not None:
        if options.namespace:
            line += ["-r", f"__ns:=/{options.namespace.strip('/')}"]
        for source, target in remappings(node, options):
            line += ["-r", f"{source}:={target}"]
    for file in parameter_files(node, options.robot if options is not None else "simulator"):
        line += ["--params-file", str(file)]
    for name, value in parameters.items():
        line += ["-p", f"{name}:={_yaml(value)}"]
    return line


def environment(domain: int, logs: Path) -> dict[str, str]:
    """The environment of the node processes: our domain, our logs, this machine only by default."""
    return os.environ | {
        "ROS_DOMAIN_ID": str(domain),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": os.environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST"),
        "ROS_LOG_DIR": str(logs / "ros"),
        "DTVLA_LAUNCHER_PID": str(os.getpid()),
        "PYTHONUNBUFFERED": "1",
    }


@dataclass
class RunningGraph:
    """The graph's processes, as a context manager: leaving it ends them all, whatever happened.

    Args:
        options: what runs.
        domain: a reserved ROS domain.
        progress: told in words what is being waited for.
        more: parameters beside those that the options decide, by node name.
    """

    options: GraphOptions
    domain: int
    progress: Callable[[str], None] = lambda _: None
    more: Mapping[str, Mapping[str, ParameterValue]] = field(default_factory=dict)
    children: list[Child] = field(default_factory=list)
    _client: GraphClient | None = None
    _starts: Counter[str] = field(default_factory=Counter)
    _silent: set[str] = field(default_factory=set)  # those that were told of
    _interrupted: bool = False
    _started_s: float = field(default_factory=lambda: time.time() - 1.0)
    _handlers: dict[int, Any] = field(default_factory=dict)

    @property
    def client(self) -> GraphClient:
        """Our own node in the graph."""
        assert self._client is not None, "the graph is not running"
        return self._client

    def __enter__(self) -> RunningGraph:
        for number in _SIGNALS:
            if signal.getsignal(number) is signal.SIG_IGN:  # as under nohup
                continue
            self._handlers[number] = signal.signal(number, self._on_signal)
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def check(self) -> None:
        """Looks after the children: one that died or hangs is started anew where the options allow it.

        Raises:
            ChildDied: one is gone for good.
            Interrupted: we were asked to end.
        """
        if self._interrupted:
            raise Interrupted
        self._look_after_silent_ones()
        for index, child in enumerate(self.children):
            status = child.process.poll()
            if status is not None:
                self._replace(index, _obituary(child, status))

    def watch(self) -> None:
        """Waits until a child dies or we are asked to end; raises what `check` raises."""
        while True:
            self.client.spin()

    def _start(self) -> None:
        from dtvla.nodes.lifecycle.graph_client import GraphClient

        sweep(0.0, time.time() - SETTLED_S)  # what a launcher that was killed itself could not sweep
        self._logs.mkdir(parents=True, exist_ok=True)
        env = environment(self.domain, self._logs)
        os.environ.update({name: env[name] for name in ("ROS_AUTOMATIC_DISCOVERY_RANGE", "ROS_LOG_DIR")})
        for node in selected(self.options):
            self.check()
            self.children.append(self._spawn(node))
        self._client = GraphClient(self.domain, self.check, self.options.namespace)
        limits_s = managed(self.options)
        self._client.bring_up(list(limits_s), self.progress, limits_s)

    @property
    def _logs(self) -> Path:
        return self.options.output / "log"

    def _spawn(self, node: NodeSpec) -> Child:
        parameters = {**overrides(self.options).get(node.name, {}), **self.more.get(node.name, {})}
        self._starts[node.name] += 1
        return _spawn(
            node, command(node, parameters, self.options), environment(self.domain, self._logs), self._logs
        )

    def _replace(self, index: int, obituary: tuple[str, str]) -> None:
        """Starts a dead child anew, if the arm can hold meanwhile and it has not died too often."""
        spec, client = self.children[index].spec, self._client
        often = self._starts[spec.name] >= MOST_STARTS
        if not (self.options.respawn and spec.respawn) or client is None or often:
            raise ChildDied(f"{obituary[0]}; the graph is shut down.{obituary[1]}")
        self.progress(f"{obituary[0]}; it is started anew.{obituary[1]}")
        sweep(self._started_s, stays=True)
        self.children[index] = self._spawn(spec)
        client.manager.bring_up([spec.name])

    def _look_after_silent_ones(self) -> None:
        """Tells of a node that reports nothing; with `respawn` it is ended, as if it had died."""
        silent = self._client.manager.silent if self._client is not None else {}
        for child in self.children:
            words = silent.get(child.spec.name)
            if words is not None and self.options.respawn:
                self.progress(f"{words}; it is ended.")
                _signal_group(child.process, signal.SIGKILL)
                child.process.wait()
            elif words is not None and child.spec.name not in self._silent:
                self.progress(f"{words}.")
        self._silent = set(silent)

    def _end(self) -> None:
        """Ends all processes: first asks, then insists; sweeps what killed ones left in shared memory."""
        living = [child for child in reversed(self.children) if child.process.poll() is None]
        for child in living:
            _signal_group(child.process, signal.SIGTERM)
        deadline = time.monotonic() + END_TIMEOUT_S
        for child in living:
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal_group(child.process, signal.SIGKILL)
                child.process.wait()
        if self._client is not None:
            self._client.close()
            self._client = None
        sweep(self._started_s)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._interrupted = True  # `check` raises it where nothing can be left half done


def _spawn(node: NodeSpec, line: list[str], env: dict[str, str], logs: Path) -> Child:
    """Starts a node in a session of its own, so that Ctrl-C in the terminal reaches only the launcher."""
    if not node.lifecycle:  # the console speaks to the user directly
        process = subprocess.Popen(line, env=env, start_new_session=True, stdin=subprocess.DEVNULL)
        return Child(node, process, None)
    log = logs / f"{node.name}.log"
    with log.open("ab") as out:
        process = subprocess.Popen(
            line,
            env=env,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    return Child(node, process, log)


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _obituary(child: Child, status: int) -> tuple[str, str]:
    """How a process ended, and its last words (empty without a log)."""
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    sentence = f"The process {child.spec.name} ({child.spec.sentence}) {how}"
    lines = child.log.read_text(errors="replace").strip().splitlines() if child.log is not None else []
    return sentence, f" Its last words: {lines[-1]}  (all of them: {child.log})" if lines else ""


def _yaml(value: ParameterValue) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)
