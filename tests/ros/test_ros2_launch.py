"""The launch files with the real `ros2 launch`, where there is one (it is not on PyPI)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import PATIENCE_S, Probe, probe_domain

from dtvla.bringup.launcher import environment

pytestmark = [
    pytest.mark.ros,
    pytest.mark.skipif(
        shutil.which("ros2") is None, reason="needs a ROS 2 installation that is sourced; not on PyPI"
    ),
]


@contextmanager
def launched(domain: int, folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """`ros2 launch dtvla policy.launch.py` in a group of its own, and its output."""
    log = folder / "launch.log"
    line = ["ros2", "launch", "dtvla", "policy.launch.py", "markers:=false", *arguments]
    env = {name: value for name, value in environment(domain, folder).items() if name != "DTVLA_LAUNCHER_PID"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            line, env=env, start_new_session=True, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        yield process, log
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        process.wait(PATIENCE_S)


def node_pid(launch: subprocess.Popen[bytes], name: str) -> int:
    """The process of one node among the launch's children; 0 while there is none."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            words = (entry / "cmdline").read_bytes()
        except (OSError, IndexError):  # it has just ended
            continue
        if parent == launch.pid and f"__node:={name}".encode() in words:
            return int(entry.name)
    return 0


def wait_until_loaded(probe: Probe) -> None:
    """Waits for a report of a policy that has loaded its bundle, from now on."""
    probe.reports.pop("policy_node", None)

    def loaded() -> bool:
        report = probe.reports.get("policy_node")
        return report is not None and any(item.key == "runs_on" for item in report.values)

    probe.expect(loaded, "the policy does not come alive")


def test_a_node_that_refuses_to_start_ends_the_launch_and_says_why(tmp_path: Path) -> None:
    """The others used to go on without it for ever."""
    with (
        probe_domain() as (_, domain),
        launched(domain, tmp_path, "bundle:=/nowhere", "robots:=fr3") as (process, log),
    ):
        process.wait(PATIENCE_S)
        words = log.read_text()
        assert "/nowhere is not a policy bundle" in words
        assert "There is no argument 'robots', it is not used. Is robot meant?" in words
        assert "Traceback" not in words


def test_a_killed_policy_comes_back_and_a_killed_controller_ends_the_launch(
    tmp_path: Path, random_bundle_path: Path
) -> None:
    """The dead policy is still discovered when its successor starts: a request sent to it is lost."""
    with (
        probe_domain() as (probe, domain),
        launched(domain, tmp_path, f"bundle:={random_bundle_path}") as (process, log),
    ):
        wait_until_loaded(probe)
        first = node_pid(process, "policy_node")
        os.kill(first, signal.SIGKILL)
        probe.expect(lambda: node_pid(process, "policy_node") not in (0, first), "it is not started anew")
        wait_until_loaded(probe)
        os.kill(node_pid(process, "controller_node"), signal.SIGKILL)
        process.wait(PATIENCE_S)
        assert "Traceback" not in log.read_text()
