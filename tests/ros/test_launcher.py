"""`dtvla up` and `dtvla demo` as a user runs them: how they end, and what they leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import pytest
from harness import descendants_of, shared_memory_files
from rosbags.highlevel import AnyReader

from dtvla.bringup import domains
from dtvla.nodes.recorder.bag_writer import typestore

pytestmark = [pytest.mark.ros, pytest.mark.sim]
PATIENCE_S = 180.0


def _hear_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Run:
    """A `dtvla` command in a process of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.out = folder / "stdout.txt"
        with self.out.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dtvla.cli", *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=folder,
                # A script's background job ignores SIGINT, and so would its children: the tests press Ctrl-C.
                preexec_fn=_hear_ctrl_c,
            )

    @property
    def text(self) -> str:
        return self.out.read_text()

    def wait_for(self, condition: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.process.poll() is None, f"it ended early:\n{self.text}"
            assert time.monotonic() < deadline, f"{otherwise}:\n{self.text}"
            time.sleep(0.05)

    def nodes(self) -> list[int]:
        return descendants_of(self.process.pid)

    def end(self, number: int) -> int:
        """Sends a signal to the launcher alone and returns its exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def left_nothing(self) -> bool:
        """No process of ours is alive (any more: the kernel tells them one by one)."""
        deadline = time.monotonic() + 20.0
        while self.nodes() and time.monotonic() < deadline:
            time.sleep(0.05)
        return not self.nodes()


@pytest.fixture
def start(tmp_path: Path, random_bundle_path: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def run(command: str, *arguments: str) -> Run:
        line = [command, "--bundle", str(random_bundle_path), "--output", str(tmp_path / "out"), *arguments]
        runs.append(Run(tmp_path, *line))
        return runs[-1]

    yield run
    for each in runs:
        if each.process.poll() is None:
            each.end(signal.SIGINT)


def segments_of(pids: list[int]) -> set[str]:
    """Names of the participants' own segments that these processes have mapped (ports are shared by all)."""
    found = set()
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        except OSError:
            continue
        names = (Path(line.split()[-1]).name for line in lines if "/dev/shm/fastdds_" in line)
        found.update(name for name in names if "port" not in name)
    return found


def test_ctrl_c_while_running_ends_everything_and_leaves_nothing(start: Callable[..., Run]) -> None:
    run = start("up")
    run.wait_for(lambda: "step " in run.text, "no thought appears")
    segments = segments_of(run.nodes())
    assert len(run.nodes()) == 4
    assert segments
    assert run.end(signal.SIGINT) == 130
    assert run.left_nothing()
    assert not segments & shared_memory_files()
    assert "Traceback" not in run.text


@pytest.mark.parametrize("moment_s", [0.2, 1.5])
def test_ctrl_c_during_the_start_ends_everything(start: Callable[..., Run], moment_s: float) -> None:
    run = start("up")
    run.wait_for(lambda: bool(run.nodes()), "no node starts")
    time.sleep(moment_s)  # not a wait for something: the moment of the interruption
    assert run.end(signal.SIGINT) == 130
    assert run.left_nothing()
    assert "Traceback" not in run.text


def test_a_killed_launcher_takes_its_processes_with_it(start: Callable[..., Run]) -> None:
    run = start("up", "--no-simulator")
    run.wait_for(lambda: "The graph runs" in run.text, "the graph does not come up")
    assert run.nodes()
    run.end(signal.SIGKILL)
    assert run.left_nothing()


def test_a_killed_node_is_named_and_the_rest_is_ended(start: Callable[..., Run]) -> None:
    run = start("up", "--no-simulator", "--no-show")
    run.wait_for(lambda: "The graph runs" in run.text, "the graph does not come up")
    victim = next(pid for pid in run.nodes() if b"dtvla.nodes.policy.policy_node" in _command_line(pid))
    segments = segments_of([victim])
    os.kill(victim, signal.SIGKILL)
    assert run.process.wait(PATIENCE_S) == 1
    assert "policy_node" in run.text
    assert "SIGKILL" in run.text
    assert run.left_nothing()
    assert not segments & shared_memory_files()


def test_a_killed_policy_is_started_anew_where_that_is_wanted(start: Callable[..., Run]) -> None:
    run = start("up", "--no-simulator", "--no-show", "--respawn")
    run.wait_for(lambda: "The graph runs" in run.text, "the graph does not come up")
    victim = next(pid for pid in run.nodes() if b"dtvla.nodes.policy.policy_node" in _command_line(pid))
    os.kill(victim, signal.SIGKILL)
    run.wait_for(lambda: "it is started anew" in run.text, "the death is not noticed")
    run.wait_for(lambda: run.text.count("activating policy_node") == 2, "the new policy is not activated")
    run.process.send_signal(signal.SIGINT)
    run.process.wait(PATIENCE_S)
    assert run.left_nothing()


def test_a_policy_that_hangs_is_ended_and_started_anew(start: Callable[..., Run]) -> None:
    run = start("up", "--no-simulator", "--no-show", "--respawn")
    run.wait_for(lambda: "The graph runs" in run.text, "the graph does not come up")
    victim = next(pid for pid in run.nodes() if b"dtvla.nodes.policy.policy_node" in _command_line(pid))
    os.kill(victim, signal.SIGSTOP)
    run.wait_for(lambda: run.text.count("activating policy_node") == 2, "no new policy is activated")
    assert "policy_node has not reported for 10 s; it is ended." in run.text
    run.process.send_signal(signal.SIGINT)
    run.process.wait(PATIENCE_S)
    assert run.left_nothing()


def test_only_the_named_nodes_of_a_graph_are_started_and_brought_up(start: Callable[..., Run]) -> None:
    run = start("up", "--only", "controller_node")
    run.wait_for(lambda: "The graph runs" in run.text, "the graph does not come up")
    (only,) = run.nodes()
    assert b"dtvla.nodes.controller.controller_node" in _command_line(only)
    assert run.end(signal.SIGINT) == 130


def test_a_busy_domain_is_refused_in_words(start: Callable[..., Run]) -> None:
    with domains.reserve() as taken:
        run = start("up", "--domain", str(taken.domain))
        assert run.process.wait(PATIENCE_S) == 1
    assert f"ROS domain {taken.domain} is in use" in run.text
    assert "--join" in run.text
    assert "Traceback" not in run.text


def test_a_folder_that_is_no_bundle_is_refused_in_words(tmp_path: Path) -> None:
    run = Run(tmp_path, "up", "--bundle", str(tmp_path))
    assert run.process.wait(PATIENCE_S) == 1
    assert "policy.json" in run.text
    assert "Traceback" not in run.text


def test_a_simulator_without_gl_is_a_sentence_with_a_remedy(
    start: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "no_such_gl")
    run = start("up", "--no-show")
    assert run.process.wait(PATIENCE_S) == 1
    assert "MUJOCO_GL" in run.text
    assert "apt-get install" in run.text
    assert "Traceback" not in run.text


def test_the_demo_leaves_a_report_a_video_per_episode_and_a_readable_bag(start: Callable[..., Run]) -> None:
    run = start("demo", "--max-steps", "8", "--episodes", "2")
    assert run.process.wait(PATIENCE_S) == 0, run.text
    folder = next((run.folder / "out").iterdir())
    report = json.loads((folder / "report.json").read_text())
    assert report["complete"]
    assert [episode["steps"] for episode in report["episodes"]] == [8, 8]
    for episode in report["episodes"]:
        with av.open(str(folder / episode["video"])) as video:
            frames = sum(1 for _ in video.decode(video=0))
        assert frames >= 8 + 20  # a frame per step, and the outcome for a second
    with AnyReader([folder / "bag"], default_typestore=typestore()) as reader:
        counts = {c.topic: c.msgcount for c in reader.connections}
        assert counts["/controller/ee_delta"] >= 16
        assert counts["/agentview/image_raw"] >= 16
        thoughts = [c for c in reader.connections if c.topic == "/policy/action_chunk"]
        _, _, raw = next(reader.messages(thoughts))
        assert reader.deserialize(raw, "dtvla_msgs/msg/ActionChunk").decision_id >= 1


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
