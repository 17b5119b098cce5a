"""What rviz and other viewers get: the markers and the overlay of real nodes that hear a policy think."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseStamped
from harness import PERIOD_NS, Probe, active, chunk, picture, pose, probe_domain
from sensor_msgs.msg import Image
from std_msgs.msg import String
from visualization_msgs.msg import Marker, MarkerArray

from dtvla.bringup.rviz_config import CONFIG, remappings
from dtvla.evaluation.video import BACKGROUND, SIZE
from dtvla.nodes.common import qos
from dtvla.nodes.common.conversions import to_duration
from dtvla.resources import resource
from dtvla_msgs.msg import ActionChunk, Reasoning
from tools.figures.markers import Display

pytestmark = pytest.mark.ros
TOPICS: dict[str, tuple[type, str, Any]] = {
    "instruction": (String, "instruction", qos.LATCHED),
    "thought": (Reasoning, "policy/reasoning", qos.STREAM),
    "chunk": (ActionChunk, "policy/action_chunk", qos.COMMAND),
    "pose": (PoseStamped, "ee_pose", qos.SENSOR),
    "report": (DiagnosticArray, "/diagnostics", 10),
}


class Stage:
    """Plays policy, robot and controller, and looks on as rviz would."""

    def __init__(self, probe: Probe, silence_s: float) -> None:
        self.probe, self.silence_s = probe, silence_s
        self.display = Display()
        self.arrays: list[MarkerArray] = []
        probe.node.create_subscription(MarkerArray, "reasoning_markers", self._take, qos.STREAM)
        self.say = {name: probe.speak(*topic) for name, topic in TOPICS.items()}
        self.decision = 0

    def _take(self, message: MarkerArray) -> None:
        self.display.take(message)
        self.arrays.append(message)

    def texts(self, name: str) -> list[str]:
        return [marker.text for marker in self.display.named(name)]

    def expect(self, condition: Any, otherwise: str) -> None:
        self.probe.expect(condition, f"{otherwise}; shown: {sorted(self.display.markers)}")

    def think(self, text: str, *, kept: int = 0, finished: bool = True) -> None:
        message = Reasoning(decision_id=self.decision, text=text, kept_tokens=kept, finished=finished)
        message.tokens = len(text.split())
        self.say["thought"].publish(message)

    def decide(self, *, openings: list[float] | None = None, **changes: Any) -> None:
        """One decision: where the arm is, what it thinks, what it plans."""
        self.decision += 1
        stamp_ns = self.decision * 5 * PERIOD_NS
        here = pose(stamp_ns)
        here.pose.position.x, here.pose.position.z = 0.4, 0.3
        self.say["pose"].publish(here)
        self.think(f"The can is {self.decision} cm left. Next: move over it.", kept=9)
        message = chunk(self.decision, stamp_ns)
        message.instruction = "Pick up the can"
        message.inference_time = to_duration(0.042)
        message.gripper_openings = openings or [0.08] * 10
        for name, value in changes.items():
            setattr(message, name, value)
        self.say["chunk"].publish(message)

    def show(self, **changes: Any) -> None:
        """Decides, and waits until that is seen."""
        self.decide(**changes)
        line = f"decision {self.decision}, 42 ms"
        self.expect(lambda: line in self.texts("decision"), "the decision is not shown")

    def controller(self, state: str, complaint: str = "") -> None:
        level = DiagnosticStatus.ERROR if complaint else DiagnosticStatus.OK
        status = DiagnosticStatus(name="controller_node", level=level, message=complaint)
        status.values = [KeyValue(key="state", value=state)]
        self.say["report"].publish(DiagnosticArray(status=[status]))


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Silence is long here: only one test waits for it, with a node of its own."""
    folder = tmp_path_factory.mktemp("markers")
    parameters = {"silence_s": 600.0, "past_chunks": 3, "translation_scale": 0.5}
    with (
        probe_domain() as (probe, domain),
        active("reasoning_markers_node", probe, domain, folder, **parameters),
    ):
        stage = Stage(probe, 600.0)
        stage.say["instruction"].publish(String(data="Pick up the can"))
        stage.expect(lambda: stage.texts("instruction") == ["Pick up the can"], "no instruction is shown")
        yield stage


def test_the_thought_is_shown_while_it_grows_with_the_words_it_keeps(stage: Stage) -> None:
    stage.show()
    stage.show()
    stage.decision += 1
    stage.think("The can is", kept=3, finished=False)
    stage.expect(lambda: stage.texts("thought") == ["The can is"], "the growing thought is not shown")
    assert "thinking: 3 tokens, 3 kept" in stage.texts("decision")
    stage.think("The can is 9 cm left. Next: move over it.", kept=8)
    stage.expect(lambda: len(stage.texts("thought")) == 2, "the whole thought is not shown")
    new, kept = stage.display.named("thought")
    assert (new.text, kept.text) == ("The can is 9 cm left. Next: move", "over it.")
    assert new.color != kept.color


def test_a_chunk_draws_where_the_gripper_is_to_go_and_when_it_closes(stage: Stage) -> None:
    stage.show(openings=[0.08] * 2 + [0.0] * 8)
    path = stage.display.named("path")[0]
    assert (path.type, path.header.frame_id, path.frame_locked) == (Marker.LINE_STRIP, "panda_link0", True)
    steps = 0.5 * 0.001 * np.concatenate([[0], np.cumsum(np.arange(10))])
    np.testing.assert_allclose([p.x for p in path.points], 0.4 + steps)
    np.testing.assert_allclose([p.z for p in path.points], 0.3)
    assert stage.texts("gripper words") == ["closes"]
    (ball,) = stage.display.named("gripper")
    assert ball.pose.position.x == pytest.approx(0.4005)


def test_past_paths_fade_and_rviz_never_grows(stage: Stage) -> None:
    for _ in range(8):
        stage.show()
    paths = stage.display.named("path")
    assert [marker.id for marker in paths] == [0, 1, 2, 3]
    alphas = [marker.color.a for marker in paths]
    assert alphas == sorted(alphas, reverse=True)
    assert len({(marker.ns, marker.id) for array in stage.arrays for marker in array.markers}) < 40
    lifetimes = {marker.lifetime.sec for array in stage.arrays for marker in array.markers if marker.text}
    assert lifetimes == {600}


def test_the_workspace_and_the_controllers_state_are_always_there(stage: Stage) -> None:
    (box,) = stage.display.named("workspace")
    assert (box.type, len(box.points)) == (Marker.LINE_LIST, 24)
    assert (min(p.x for p in box.points), max(p.z for p in box.points)) == (0.15, 0.8)
    stage.controller("executing")
    stage.expect(lambda: stage.texts("controller") == ["executing"], "the state is not shown")
    green = stage.display.named("controller")[0].color
    stage.controller("stopped: /clear_stop releases the arm", "The arm is stopped.")
    stage.expect(lambda: "The arm is stopped." in stage.texts("controller"), "no complaint is shown")
    assert stage.display.named("controller")[0].color != green
    stage.expect(lambda: stage.texts("controller") == ["no controller"], "a silent controller is not noticed")


def test_what_cannot_be_drawn_is_refused_in_words(stage: Stage) -> None:
    stage.show()
    before = len(stage.display.named("path")[0].points)
    for changes, words in (
        ({"translations": [float("nan")] * 30}, "is not a finite number"),
        ({"horizon": 11}, "11 rows need 33"),
    ):
        stage.decide(**changes)
        stage.probe.expect_complaint("reasoning_markers_node", words)
    assert len(stage.display.named("path")[0].points) == before
    stage.show()
    stage.expect(lambda: not stage.probe.complaint("reasoning_markers_node"), "the complaint stays")


def test_another_instruction_takes_thought_and_paths_away(stage: Stage) -> None:
    """The last test that plays on this stage."""
    stage.show()
    stage.say["instruction"].publish(String(data="Push the block"))
    stage.expect(lambda: stage.texts("instruction") == ["Push the block"], "the old instruction stays")
    left = {name for name, _ in stage.display.markers}
    assert left == {"instruction", "workspace", "controller"}


def test_a_silent_policys_words_disappear(tmp_path: Path) -> None:
    with (
        probe_domain() as (probe, domain),
        active("reasoning_markers_node", probe, domain, tmp_path, silence_s=2.0),
    ):
        stage = Stage(probe, 2.0)
        stage.show()
        stage.expect(lambda: not stage.texts("thought"), "the thought of a silent policy stays")
        assert {name for name, _ in stage.display.markers} == {"instruction", "workspace", "controller"}


def test_the_overlay_is_painted_while_somebody_looks_and_only_then(tmp_path: Path) -> None:
    with (
        probe_domain() as (probe, domain),
        active("reasoning_overlay_node", probe, domain, tmp_path, rate_hz=20.0),
    ):
        node = probe.node
        assert node.count_subscribers("/agentview/image_raw") == 0  # nobody looks: nothing is received
        heard: list[Image] = []
        viewer = node.create_subscription(Image, "reasoning/overlay", heard.append, qos.SENSOR)
        cameras = {
            name: probe.speak(Image, f"{name}/image_raw", qos.SENSOR) for name in ("agentview", "wrist")
        }
        probe.speak(Reasoning, "policy/reasoning", qos.STREAM).publish(
            Reasoning(decision_id=1, text="The can is 12 cm left.", tokens=7)
        )

        def pixels() -> np.ndarray:
            return np.frombuffer(heard[-1].data, np.uint8).reshape(SIZE[1], SIZE[0], 3)

        def drawn(left: int, right: int, top: int, bottom: int) -> bool:
            for publisher in cameras.values():
                publisher.publish(picture(PERIOD_NS))  # best effort: one alone may get lost
            return bool(heard) and bool((pixels()[top:bottom, left:right] != BACKGROUND).any())

        probe.expect(lambda: drawn(0, 384, 48, 432), "the first camera is not shown")
        probe.expect(lambda: drawn(384, 768, 48, 432), "the second camera is not shown")
        probe.expect(lambda: drawn(780, 1216, 80, 110), "the thought is not shown")
        assert (heard[-1].encoding, heard[-1].header.stamp.nanosec) == ("rgb8", PERIOD_NS)
        node.destroy_subscription(viewer)
        probe.expect(
            lambda: node.count_subscribers("/agentview/image_raw") == 0, "the node goes on receiving images"
        )


def test_cameras_that_the_overlay_cannot_show_are_refused_in_words(tmp_path: Path) -> None:
    from dtvla.nodes.lifecycle.graph_client import BringUpError

    with (
        probe_domain() as (probe, domain),
        pytest.raises(BringUpError, match="one or two names are needed"),
        active("reasoning_overlay_node", probe, domain, tmp_path, cameras="a,b,c"),
    ):
        pass


def test_rviz_in_a_namespace_listens_to_that_robot() -> None:
    """By the rules that the launch file hands to rviz, read by the real rcl."""
    rules = remappings(resource(CONFIG), "wrist=/d405/image")
    line = ["--ros-args", "-r", "__ns:=/left", *(word for rule in rules for word in ("-r", ":=".join(rule)))]
    with probe_domain() as (probe, _):
        node = rclpy.create_node("rviz2", context=probe.node.context, cli_args=line)
        resolved = {topic: node.resolve_topic_name(topic) for topic, _ in rules}
        node.destroy_node()
    assert resolved.pop("/wrist/image_raw") == "/d405/image"
    assert all(name == f"/left{topic}" for topic, name in resolved.items())
