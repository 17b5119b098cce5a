"""The policy node as a process with a tiny random policy; the test is its cameras and its operator."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import PERIOD_NS, NodeProcess, Probe, active, picture, probe_domain
from rclpy.action import ActionClient
from sensor_msgs.msg import Image
from std_msgs.msg import String

from dtvla.nodes.common import qos
from dtvla.nodes.common.conversions import to_ns
from dtvla.nodes.lifecycle.graph_client import BringUpError
from dtvla_msgs.action import ExecuteInstruction
from dtvla_msgs.msg import ActionChunk, Reasoning

pytestmark = pytest.mark.ros
INSTRUCTION = "Pick up the can"


class Stage:
    """A policy process with the test as its cameras and its operator."""

    def __init__(self, probe: Probe, process: NodeProcess, prefix: str = "") -> None:
        self.probe = probe
        self.process = process
        self.chunks = probe.listen(ActionChunk, f"{prefix}/policy/action_chunk")
        self.thoughts = probe.listen(Reasoning, f"{prefix}/policy/reasoning", qos.STREAM)
        self.cameras = {
            c: probe.speak(Image, f"{prefix}/{c}/image_raw", qos.SENSOR) for c in ("agentview", "wrist")
        }
        self.operator = probe.speak(String, f"{prefix}/instruction", qos.LATCHED)
        probe.expect(lambda: probe.node.count_publishers(f"{prefix}/policy/action_chunk") > 0, "no policy")
        self.now_ns = time.time_ns()

    def instruct(self, words: str) -> None:
        self.operator.publish(String(data=words))
        self.operator.wait_for_all_acked()

    def show(self, *, ahead: int = 20, **changes: Any) -> int:
        """Both cameras see the same moment, `ahead` periods after the last one; returns its stamp."""
        self.now_ns += ahead * PERIOD_NS
        for publisher in self.cameras.values():
            publisher.publish(picture(self.now_ns, **changes))
        return self.now_ns

    def decide(self) -> ActionChunk:
        """Shows one moment, again and again like a waiting world, until the decision on it comes."""
        stamp_ns = self.show()

        def decision() -> list[ActionChunk]:
            return [c for c in self.chunks if to_ns(c.header.stamp) == stamp_ns and c.thought]

        def decided() -> bool:
            self.show(ahead=0)
            self.probe.wait(lambda: bool(decision()), 0.3)
            return bool(decision())

        self.probe.expect(decided, "no decision comes")
        return decision()[0]

    def stays_silent(self) -> bool:
        """No decision comes on several looks."""
        self.chunks.clear()
        for _ in range(5):
            self.show()
            self.probe.wait(lambda: False, 0.2)
        return not any(chunk.thought for chunk in self.chunks)  # a hold has no thought

    def show_until_complaint(self, words: str, **changes: Any) -> None:
        """Shows pictures until the policy complains about them."""

        def complains() -> bool:
            self.show(**changes)
            return words in self.probe.complaint("policy_node")

        self.probe.expect(complains, f"the policy does not complain about '{words}'")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, random_bundle_path: Path) -> Iterator[Stage]:
    with probe_domain() as (probe, domain):
        folder = tmp_path_factory.mktemp("policy")
        with active("policy_node", probe, domain, folder, bundle=str(random_bundle_path)) as process:
            yield Stage(probe, process)


def test_a_decision_carries_metres_radians_and_the_policys_own_numbers(stage: Stage) -> None:
    stage.instruct(INSTRUCTION)
    chunk = stage.decide()
    raw = np.asarray(chunk.raw_actions).reshape(chunk.horizon, 7)
    assert chunk.instruction == INSTRUCTION
    assert chunk.header.frame_id == "panda_link0"
    np.testing.assert_array_equal(np.asarray(chunk.translations).reshape(-1, 3), raw[:, :3] * 0.05)
    np.testing.assert_array_equal(np.asarray(chunk.rotations).reshape(-1, 3), raw[:, 3:6] * 0.5)
    assert all(0.0 <= opening <= 0.08 for opening in chunk.gripper_openings)


def test_the_thought_grows_word_by_word_and_ends_as_the_chunk_says(stage: Stage) -> None:
    stage.instruct(INSTRUCTION)
    chunk = stage.decide()

    def ours() -> list[Reasoning]:
        return [thought for thought in stage.thoughts if thought.decision_id == chunk.decision_id]

    stage.probe.expect(lambda: any(thought.finished for thought in ours()), "the thought never ends")
    tokens = [thought.tokens for thought in ours()]
    assert len(tokens) > 3
    assert tokens == sorted(tokens)
    assert ours()[-1].text == chunk.thought


def test_decision_ids_only_grow_and_only_one_decision_is_taken_per_interval(stage: Stage) -> None:
    stage.instruct(INSTRUCTION)
    first = stage.decide()
    again = stage.decide()
    assert again.decision_id > first.decision_id
    last = stage.now_ns
    for _ in range(4):  # the random bundle executes 5 rows of a chunk
        stage.show(ahead=1)
        stage.probe.wait(lambda: False, 0.1)
    assert not [c for c in stage.chunks if to_ns(c.header.stamp) > last]


def test_a_wrong_encoding_is_refused_in_words_and_heals(stage: Stage) -> None:
    stage.instruct(INSTRUCTION)
    stage.decide()
    stage.show_until_complaint("encoded as 'bgr8'; 'rgb8' is needed", encoding="bgr8")
    assert stage.process.alive
    stage.decide()
    stage.probe.expect(lambda: not stage.probe.complaint("policy_node"), "the complaint stays")


def test_an_image_smaller_than_the_policy_sees_is_refused(stage: Stage) -> None:
    stage.instruct(INSTRUCTION)
    stage.show_until_complaint("smaller than", size=8)
    stage.decide()


def test_data_that_do_not_fill_the_image_are_refused(stage: Stage) -> None:
    bad = picture(stage.now_ns + PERIOD_NS)
    bad.height = 65
    stage.cameras["wrist"].publish(bad)
    stage.probe.expect_complaint("policy_node", "Camera 'wrist' sent 12288 bytes")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("", "The instruction is empty"),
        ("x" * 10_000, "10000 characters"),
        ("pick\x07up", "control character"),
    ],
)
def test_a_bad_instruction_is_refused_and_nothing_is_decided(
    stage: Stage, words: str, complaint: str
) -> None:
    stage.instruct(INSTRUCTION)
    stage.decide()
    stage.instruct(words)
    stage.probe.expect_complaint("policy_node", complaint)
    assert stage.stays_silent()
    assert stage.process.alive


def test_a_missing_camera_is_named(stage: Stage) -> None:
    stage.instruct(INSTRUCTION)

    def show_one() -> bool:
        stage.now_ns += PERIOD_NS
        stage.cameras["agentview"].publish(picture(stage.now_ns))
        return "No image from wrist" in stage.probe.complaint("policy_node")

    stage.probe.expect(show_one, "the missing camera is not named")


def test_a_goal_gives_feedback_refuses_a_second_one_and_a_cancel_stops_the_decisions(stage: Stage) -> None:
    probe, feedback = stage.probe, []
    client = ActionClient(probe.node, ExecuteInstruction, "/execute_instruction")
    probe.expect(client.server_is_ready, "no action server")
    goal = ExecuteInstruction.Goal(instruction=INSTRUCTION, timeout=0.0)
    sent = client.send_goal_async(goal, feedback_callback=lambda message: feedback.append(message.feedback))
    probe.expect(sent.done, "the goal is not answered")
    handle = sent.result()
    assert handle.accepted
    chunk = stage.decide()
    probe.expect(lambda: any(f.thought == chunk.thought for f in feedback), "no feedback comes")

    second = client.send_goal_async(goal)
    probe.expect(second.done, "the second goal is not answered")
    assert not second.result().accepted

    stage.chunks.clear()
    cancelled = handle.cancel_goal_async()
    result = handle.get_result_async()
    probe.expect(lambda: cancelled.done() and result.done(), "the cancel is not answered")
    assert "Cancelled" in result.result().result.message
    assert not result.result().result.success
    probe.expect(lambda: bool(stage.chunks), "the arm is not told to hold")
    assert set(stage.chunks[-1].translations) == {0.0}
    assert stage.stays_silent()
    client.destroy()


def test_a_goal_with_an_empty_instruction_is_rejected(stage: Stage) -> None:
    client = ActionClient(stage.probe.node, ExecuteInstruction, "/execute_instruction")
    stage.probe.expect(client.server_is_ready, "no action server")
    sent = client.send_goal_async(ExecuteInstruction.Goal(instruction="  "))
    stage.probe.expect(sent.done, "the goal is not answered")
    assert not sent.result().accepted
    stage.probe.expect_complaint("policy_node", "The instruction is empty")
    client.destroy()


def test_a_bundle_with_one_flipped_byte_is_refused_and_the_file_is_named(
    random_bundle_path: Path, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(random_bundle_path, tmp_path / "broken"))
    content = bytearray((broken / "decoder.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (broken / "decoder.onnx").write_bytes(content)
    with (
        probe_domain() as (probe, domain),
        NodeProcess("policy_node", domain, tmp_path, bundle=str(broken)) as process,
    ):
        with pytest.raises(BringUpError, match=r"decoder\.onnx"):
            probe.bring_up(["policy_node"])
        assert process.alive
        assert "Traceback" not in process.log.read_text()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("threads", "many", "int"),
        ("image_timeout_s", -1.0, "0.1 to 60 s"),
        ("backend", "abacus", "one of auto"),
    ],
)
def test_a_bad_parameter_fails_the_configuration_with_a_sentence(
    random_bundle_path: Path, tmp_path: Path, name: str, value: object, words: str
) -> None:
    parameters = {"bundle": str(random_bundle_path), name: value}
    with (
        probe_domain() as (probe, domain),
        NodeProcess("policy_node", domain, tmp_path, **parameters) as process,
    ):
        with pytest.raises(BringUpError, match=f"Parameter '{name}' .*{words}"):
            probe.bring_up(["policy_node"])
        assert process.alive
        assert "Traceback" not in process.log.read_text()


def test_with_thoughts_in_the_background_a_chunk_says_how_old_its_thought_is(
    tmp_path: Path, random_bundle_path: Path
) -> None:
    parameters = {"bundle": str(random_bundle_path), "max_thought_age_s": 2.0}
    with (
        probe_domain() as (probe, domain),
        active("policy_node", probe, domain, tmp_path, **parameters) as process,
    ):
        stage = Stage(probe, process)
        stage.instruct(INSTRUCTION)

        def age_s(chunk: ActionChunk) -> float:
            return (to_ns(chunk.header.stamp) - to_ns(chunk.thought_stamp)) / 1e9

        assert age_s(stage.decide()) == 0.0, "the first decision thinks itself"
        later = stage.decide()
        assert age_s(later) == pytest.approx(1.0), "the thought about the look before, a second ago"
        assert later.thought
        stage.now_ns += 100 * PERIOD_NS
        assert age_s(stage.decide()) == 0.0, "no thought is young enough: the decision thinks itself"
        stage.instruct("Open the drawer")
        chunk = stage.decide()
        assert (chunk.instruction, age_s(chunk)) == ("Open the drawer", 0.0)


def test_one_node_serves_two_robots_each_as_if_it_were_alone(
    stage: Stage, tmp_path: Path, random_bundle_path: Path
) -> None:
    parameters = {"bundle": str(random_bundle_path), "robots": "left,right"}
    with (
        probe_domain() as (probe, domain),
        active("policy_node", probe, domain, tmp_path, **parameters) as process,
    ):
        left, right = (Stage(probe, process, f"/{name}") for name in ("left", "right"))
        left.instruct(INSTRUCTION)
        right.instruct("Open the drawer")
        chunks = {"left": left.decide(), "right": right.decide()}
        assert [chunks[name].instruction for name in chunks] == [INSTRUCTION, "Open the drawer"]
        stage.instruct(INSTRUCTION)
        alone = stage.decide()
        assert chunks["left"].thought == alone.thought
        np.testing.assert_allclose(chunks["left"].raw_actions, alone.raw_actions, atol=1e-4)
        right.show_until_complaint("right: The images of camera 'wrist'", encoding="bgr8")
        assert left.decide().thought, "a bad camera of one robot holds up the other"


def test_a_frozen_camera_is_reported_and_nothing_is_decided_until_it_lives_again(
    tmp_path: Path, random_bundle_path: Path
) -> None:
    with probe_domain() as (probe, domain):
        settings = {"bundle": str(random_bundle_path), "frozen_image_s": 1.0}
        with active("policy_node", probe, domain, tmp_path, **settings) as process:
            stage = Stage(probe, process)
            stage.instruct(INSTRUCTION)
            stage.show_until_complaint("has not changed in a single bit")
            probe.wait(lambda: False, 1.0)  # a decision on the first look may still be on its way
            assert stage.stays_silent()
            sizes = iter(range(32, 400))  # another size is another picture

            def decides() -> bool:
                stage.show(size=next(sizes))
                return bool(probe.wait(lambda: any(chunk.thought for chunk in stage.chunks), 0.5))

            probe.expect(decides, "no decision after the picture changed")
            probe.expect(lambda: not probe.complaint("policy_node"), "the complaint stays")
