"""What the faults do to the running graph, what undoes it, and when the controller can know of it."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from std_msgs.msg import String

from dtvla.nodes.common import qos
from tests.faults.bags import readable
from tests.faults.failing_bundle import TRIGGER
from tests.faults.harness import Harness, Helper
from tests.faults.monitor import Record

CAN_KNOW_POSE_S = 0.2  # robot_timeout_s of the controller node
CLOCK_JUMP_S = 0.5  # clock_jump_s of the controller node
WATCH_S = 0.1  # it looks after clocks and rivals so often
MOST_LOST_S = 0.25  # of a recording: what a control period takes on a busy machine, and its queue
FILLS_S = 60.0  # a bag fills the small disk within this also on a busy machine
ALLOWED_S = 0.15  # 100 ms and one control period


@dataclass
class Context:
    """What a fault has at hand while it acts."""

    harness: Harness
    random: random.Random
    began_s: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    helpers: list[Helper] = field(default_factory=list)

    @property
    def record(self) -> Record:
        return self.harness.monitor.record


# --- when the controller can know --------------------
def plan_over(context: Context, begin: float, end: float) -> float:
    """The rows of the last good chunk are used up: at most horizon times period after it came, by /clock."""
    del begin
    known = [chunk for chunk in context.record.chunks if chunk.good and chunk.time_s < end - 0.05]
    return context.record.after_clock(known[-1].time_s, known[-1].lasts_s) if known else 0.0


def state_silent(context: Context, begin: float, end: float) -> float:
    """The last good pose of the arm is robot_timeout_s old."""
    del end
    return max(float(context.facts.get("last_pose_s", begin)), begin) + CAN_KNOW_POSE_S


def at_once(context: Context, begin: float, end: float) -> float:
    """The fault itself is the end of all commands."""
    del context, end
    return begin


def after_watch(context: Context, begin: float, end: float) -> float:
    """The controller looks for it ten times a second."""
    del end
    return float(context.facts.get("seen_s", begin)) + WATCH_S


def rival_found(context: Context, begin: float, end: float) -> float:
    """The controller's own discovery of the second publisher, by its report.

    DDS finds an endpoint at different times in different processes (up to 0.6 s apart on two busy cores);
    until then nothing of it reaches the controller. How much later than a third node it found out is noted.
    """
    del end
    found_s = context.record.said_after(begin, "controller_node", " publish")
    later_ms = 1000 * (found_s - float(context.facts["seen_s"]))
    context.notes.append(f"the controller's DDS found it {later_ms:+.0f} ms after a third node's did")
    return found_s


def clock_still(context: Context, begin: float, end: float) -> float:
    """The clock has not gone on for clock_jump_s."""
    del context, end
    return begin + CLOCK_JUMP_S + WATCH_S


# --- what is done --------------------
def kill(node: str, context: Context) -> float:
    begin = time.time()
    context.harness.kill(node)
    _last_pose(context, node, begin)
    return begin


def pause(node: str, context: Context) -> float:
    begin = time.time()
    context.harness.signal(node, signal.SIGSTOP)
    _last_pose(context, node, begin)
    return begin


def _last_pose(context: Context, node: str, begin: float) -> None:
    context.facts["last_pose_s"] = context.record.pose_times[-1] if node == "libero_bridge_node" else begin


def resume(node: str, context: Context) -> None:
    context.harness.signal(node, signal.SIGCONT)


def restart(node: str, context: Context) -> None:
    context.harness.restart(node)
    if node == "libero_bridge_node":
        context.harness.begin_episode()


def spoil(topics: list[str], fault: str, value: float, context: Context) -> float:
    begin = context.harness.spoil(topics, fault, value)
    context.facts["last_pose_s"] = begin
    return begin


def heal(topics: list[str], context: Context) -> None:
    context.harness.spoil(topics, "", 0.0)


def intrude(what: str, context: Context) -> float:
    harness, node = context.harness, context.harness.monitor.node
    topic = {"second_arm": "target_pose"}.get(what, "policy/action_chunk")
    before = node.count_publishers(topic)
    helper = harness.intrude(what)
    context.helpers.append(helper)
    begin = time.time()
    if what in ("second_arm", "second_policy"):
        harness.await_(lambda: node.count_publishers(topic) > before, 10.0)
        context.facts["seen_s"] = time.time()
    return begin


def send_off(context: Context) -> None:
    for helper in context.helpers:
        helper.end()
    context.helpers.clear()
    if context.facts.get("instruction"):
        _say(context, context.facts["instruction"])


def huge_instruction(context: Context) -> float:
    context.facts["instruction"] = context.harness.client.state.instruction  # type: ignore[union-attr]
    return intrude("huge_instruction", context)


def _say(context: Context, words: str) -> None:
    """An instruction on the topic, as an operator gives it."""
    node = context.harness.client.node
    publisher = node.create_publisher(String, "instruction", qos.LATCHED)
    context.harness.await_(lambda: publisher.get_subscription_count() > 0, 10.0)
    publisher.publish(String(data=words))
    context.harness.spin(0.5)
    node.destroy_publisher(publisher)


# --- the recorder's disk --------------------
class SmallDisk:
    """A file system of a few MB in memory, as root; None where mounting is not allowed."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        line = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}M", "dtvla-faults", str(folder)]
        self.mounted = subprocess.run(line, capture_output=True, check=False).returncode == 0

    def fill(self) -> None:
        """As another program would."""
        with (self.folder / "ballast").open("wb") as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(65536))
                file.flush()

    def close(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.folder)], capture_output=True, check=False)
            self.mounted = False


def record_on_small_disk(context: Context, min_free_mb: float) -> None:
    """Before the fault: the recorder writes to a disk of 24 MB."""
    disk = SmallDisk(context.harness.folder / f"disk_{time.monotonic_ns()}", 24)
    context.facts["disk"] = disk
    if not disk.mounted:
        context.notes.append("no file system could be mounted here (root is needed): not tried")
        return
    output = disk.folder / "recording"
    context.harness.restart("recorder_node", output=str(output), min_free_mb=min_free_mb)
    context.facts["bag"] = output / "bag"


def fill_disk(context: Context) -> float:
    """The recorder leaves no room of its own, so that it meets the end of the disk itself."""
    record_on_small_disk(context, 0.0)
    context.harness.spin(3.0)
    context.harness.await_motion()
    context.facts["fault_s"] = begin = time.time()
    context.facts["disk"].fill()
    return begin


def let_disk_fill(context: Context) -> float:
    """The recorder ends when 16 MB are left."""
    record_on_small_disk(context, 16.0)
    return time.time()


def check_disk(context: Context) -> str:
    disk = context.facts["disk"]
    if not disk.mounted:
        return ""

    def words() -> list[str]:
        said = context.harness.words(context.began_s)
        return [w for w in said if w.startswith("recorder_node") and "recording has ended" in w]

    ended = context.harness.await_(lambda: bool(words()), FILLS_S)
    copy = context.harness.folder / "from_small_disk"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(context.facts["bag"], copy)
    disk.close()
    context.harness.restart("recorder_node")
    if not ended:
        return "the recorder did not say that its disk is full"
    times, fault_s = readable(copy), context.facts.get("fault_s")
    if fault_s is None:
        context.notes.append(f"bag: complete, {len(times)} messages")
        return "" if (copy / "metadata.yaml").is_file() else "the bag is not complete"
    context.notes.append(_bag_note(times, fault_s))
    return "" if times and fault_s - times[-1] < MOST_LOST_S else "messages before the fault are missing"


# --- what must be true besides --------------------
def check_bag(context: Context) -> str:
    """The killed recorder's bag can be read, up to the fault."""
    bag = context.facts.get("bag") or newest_bag(context.harness)
    times = readable(bag)
    if not times:
        return f"nothing can be read from {bag.name}"
    lost_ms = 1000 * (context.facts["fault_s"] - times[-1])
    context.notes.append(_bag_note(times, context.facts["fault_s"]))
    return (
        ""
        if lost_ms < 1000 * MOST_LOST_S
        else f"the last {lost_ms:.0f} ms before the fault are missing in the bag"
    )


def _bag_note(times: list[float], fault_s: float) -> str:
    if not times:
        return "bag: nothing readable"
    before_ms = 1000 * (fault_s - times[-1])
    return f"bag: {len(times)} messages readable, the newest {before_ms:.0f} ms before the fault"


def newest_bag(harness: Harness) -> Path:
    """The bag folder that was begun last."""
    return max((harness.folder / "recording").glob("bag*"), key=lambda path: path.stat().st_ctime)


def remember_bag(context: Context) -> float:
    context.facts["bag"] = newest_bag(context.harness)
    begin = kill("recorder_node", context)
    context.facts["fault_s"] = begin
    return begin


# --- a provider that fails --------------------
def provoke(context: Context) -> float:
    """Says the word on which the spoilt graph fails."""
    context.facts["instruction"] = context.harness.client.state.instruction  # type: ignore[union-attr]
    begin = time.time()
    _say(context, TRIGGER)
    return begin


def calm(context: Context) -> None:
    _say(context, context.facts["instruction"])


def check_inference_words(context: Context) -> str:
    said = [w for w in context.harness.words(context.began_s) if "decision failed" in w]
    return "" if said else "the policy node did not say that its decisions fail"


def _nothing(context: Context) -> None:
    del context
