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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from dtvla.graph import GraphOptions, NodeSpec, ParameterValue, overrides, parameter_file, selected
from dtvla.leftovers import sweep
from dtvla.security import enclave

if TYPE_CHECKING:
    from dtvla.nodes.supervisor import Supervisor

END_TIMEOUT_S = 10.0
SETTLED_S = 60.0  # a younger file may belong to a process that is just about to map it
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ChildDied(RuntimeError):
    """A process of the graph ended by itself; the message names it and quotes its last words."""


class Interrupted(Exception):
    """The user (or the system) asked us to end."""


@dataclass
class Child:
    """One node process."""

    spec: NodeSpec
    process: subprocess.Popen[bytes]
    log: Path | None


def command(node: NodeSpec, parameters: dict[str, ParameterValue]) -> list[str]:
    """The command line of one node process."""
    line = [sys.executable, "-m", node.module, "--ros-args", "-r", f"__node:={node.name}"]
    line += ["--enclave", enclave(node.name)]  # it counts when SROS2 is on (docs/security.md)
    for source, target in node.remappings:
        line += ["-r", f"{source}:={target}"]
    file = parameter_file(node)
    if file is not None:
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
    """

    options: GraphOptions
    domain: int
    progress: Callable[[str], None] = lambda _: None
    children: list[Child] = field(default_factory=list)
    _supervisor: Supervisor | None = None
    _interrupted: bool = False
    _started_s: float = field(default_factory=lambda: time.time() - 1.0)
    _handlers: dict[int, Any] = field(default_factory=dict)

    @property
    def supervisor(self) -> Supervisor:
        """Our own node in the graph."""
        assert self._supervisor is not None, "the graph is not running"
        return self._supervisor

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
        """Raises when a child has died (`ChildDied`) or we were asked to end (`Interrupted`)."""
        if self._interrupted:
            raise Interrupted
        for child in self.children:
            status = child.process.poll()
            if status is not None:
                raise ChildDied(_obituary(child, status))

    def watch(self) -> None:
        """Waits until a child dies or we are asked to end; raises what `check` raises."""
        while True:
            self.supervisor.spin()

    def _start(self) -> None:
        from dtvla.nodes.supervisor import Supervisor

        sweep(0.0, time.time() - SETTLED_S)  # what a launcher that was killed itself could not sweep
        logs = self.options.output / "log"
        logs.mkdir(parents=True, exist_ok=True)
        env = environment(self.domain, logs)
        os.environ.update({name: env[name] for name in ("ROS_AUTOMATIC_DISCOVERY_RANGE", "ROS_LOG_DIR")})
        parameters = overrides(self.options)
        nodes = selected(self.options)
        for node in nodes:
            self.check()
            self.children.append(_spawn(node, parameters.get(node.name, {}), env, logs))
        self._supervisor = Supervisor(self.domain, self.check)
        self._supervisor.bring_up([node.name for node in nodes if node.lifecycle], self.progress)

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
        if self._supervisor is not None:
            self._supervisor.close()
            self._supervisor = None
        sweep(self._started_s)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._interrupted = True  # `check` raises it where nothing can be left half done


def _spawn(node: NodeSpec, parameters: dict[str, ParameterValue], env: dict[str, str], logs: Path) -> Child:
    """Starts a node in a session of its own, so that Ctrl-C in the terminal reaches only the launcher."""
    if not node.lifecycle:  # the console speaks to the user directly
        process = subprocess.Popen(
            command(node, parameters), env=env, start_new_session=True, stdin=subprocess.DEVNULL
        )
        return Child(node, process, None)
    log = logs / f"{node.name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command(node, parameters),
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


def _obituary(child: Child, status: int) -> str:
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    sentence = f"The process {child.spec.name} ({child.spec.sentence}) {how}; the graph is shut down."
    lines = child.log.read_text(errors="replace").strip().splitlines() if child.log is not None else []
    return sentence + (f" Its last words: {lines[-1]}  (all of them: {child.log})" if lines else "")


def _yaml(value: ParameterValue) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)
