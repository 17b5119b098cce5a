"""Too much of anything: nodes refuse it in words, stay alive, keep their memory, and heal when it ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from harness import BASE_FRAME, PERIOD_NS, NodeProcess, Probe, active, chunk, picture, probe_domain
from sensor_msgs.msg import Image
from std_msgs.msg import String

from dtvla.nodes.common import qos
from dtvla.nodes.common.conversions import to_ns, to_time
from dtvla_msgs.msg import ActionChunk

pytestmark = pytest.mark.ros
RATE = 2.0  # instructions per second
SIDE_PX = 512  # 0.8 MB per picture
PICTURES = 400  # per camera and round: 0.6 GB in all
KEPT_MB = 60.0  # far below what a round brings; allocators need some room


class Stage:
    """A policy process, with the test as its cameras and its operator."""

    def __init__(self, probe: Probe, process: NodeProcess) -> None:
        self.probe, self.process = probe, process
        self.chunks = probe.listen(ActionChunk, "/policy/action_chunk")
        self.operator = probe.speak(String, "/instruction", qos.LATCHED)
        self.cameras = [probe.speak(Image, f"/{c}/image_raw", qos.SENSOR) for c in ("agentview", "wrist")]
        self.now_ns = 10**18

    def show(self, message: Image) -> None:
        self.now_ns += PERIOD_NS
        message.header.stamp = to_time(self.now_ns)
        for camera in self.cameras:
            camera.publish(message)

    def decide(self, words: str) -> None:
        """Instructs and shows pictures until a decision on one of them comes."""
        self.probe.wait(lambda: False, 1.0 / RATE)  # the node lets one more instruction in
        self.operator.publish(String(data=words))
        since_ns, message = self.now_ns, picture(0)

        def decided() -> bool:
            self.show(message)
            self.probe.wait(lambda: False, 0.1)
            return any(
                c.thought and c.instruction == words and to_ns(c.header.stamp) > since_ns for c in self.chunks
            )

        self.probe.expect(decided, f"no decision on '{words}' comes")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, random_bundle_path: Path) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("policy")
    parameters = {"bundle": str(random_bundle_path), "max_instructions_per_s": RATE}
    with (
        probe_domain() as (probe, domain),
        active("policy_node", probe, domain, folder, **parameters) as process,
    ):
        yield Stage(probe, process)


def memory_mb(process: NodeProcess) -> float:
    status = Path(f"/proc/{process.process.pid}/status").read_text()
    return float(status.split("VmRSS:")[1].split()[0]) / 1000


def test_a_flood_of_instructions_is_refused_the_arm_holds_and_the_next_one_is_followed(stage: Stage) -> None:
    stage.decide("Pick up the can")
    sent = 0

    def flooded() -> bool:
        nonlocal sent
        for _ in range(10):
            sent += 1
            stage.operator.publish(String(data=f"Open drawer {sent}"))
            stage.operator.wait_for_all_acked()
        stage.probe.spin(0.01)
        return "More than 2 instructions per second" in stage.probe.complaint("policy_node")

    stage.probe.expect(flooded, "a flood of instructions is not refused")
    assert "The arm holds" in stage.probe.complaint("policy_node")
    stage.probe.expect(lambda: stage.chunks[-1].hold, "the arm is not told to hold")
    stage.decide("Pick up the can")
    stage.probe.expect(lambda: not stage.probe.complaint("policy_node"), "the complaint stays")


def test_a_flood_of_pictures_leaves_the_memory_flat(stage: Stage) -> None:
    message = picture(0, size=SIDE_PX)
    used = []
    for _ in range(3):  # the first round fills what allocators and DDS keep
        for _ in range(PICTURES):
            stage.show(message)
            stage.probe.spin(0.0)
        stage.decide("Pick up the can")
        used.append(memory_mb(stage.process))
    assert used[2] - used[0] < KEPT_MB, f"resident memory after each round: {used} MB"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [("x" * 2_000_000, "has 2000000 characters"), ("\x1b[2J", "control character U+001B")],
)
def test_an_instruction_that_is_too_long_or_no_text_is_refused(
    stage: Stage, words: str, complaint: str
) -> None:
    stage.decide("Pick up the can")
    stage.probe.wait(lambda: False, 1.0 / RATE)
    stage.operator.publish(String(data=words))
    stage.probe.expect_complaint("policy_node", complaint)
    stage.decide("Pick up the can")


def test_a_picture_larger_than_any_cameras_is_refused(stage: Stage) -> None:
    wide = picture(0)
    wide.height, wide.width, wide.step = 1, 5000, 15000
    wide.data = np.zeros(15000, np.uint8).tobytes()

    def complains() -> bool:
        stage.show(wide)
        return "5000x1 px; 1 to 4096 are possible" in stage.probe.complaint("policy_node")

    stage.probe.expect(complains, "a picture of 5000 px is not refused")
    stage.decide("Pick up the can")


def test_huge_chunks_are_refused_by_the_controller_and_leave_its_memory_flat(tmp_path: Path) -> None:
    with probe_domain() as (probe, domain), active("controller_node", probe, domain, tmp_path) as controller:
        policy = probe.speak(ActionChunk, "/policy/action_chunk")
        long = chunk(1, 10**18, rows=200_000)
        wordy = chunk(2, 10**18)
        wordy.thought = "word " * 2_000_000
        wordy.header.frame_id = BASE_FRAME
        policy.publish(long)
        probe.expect_complaint("controller_node", "says it has 200000 rows; 1 to 1000 are possible")
        before = memory_mb(controller)
        for _ in range(20):
            policy.publish(long)
            policy.publish(wordy)
            policy.wait_for_all_acked()
        policy.publish(long)
        probe.expect_complaint("controller_node", "says it has 200000 rows")
        assert controller.alive
        assert memory_mb(controller) - before < KEPT_MB
