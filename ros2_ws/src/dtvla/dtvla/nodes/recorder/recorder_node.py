"""The recorder node: an MCAP bag of all topics, and one MP4 per episode.

Everything is received serialised; only what the video shows is taken apart.
"""

from __future__ import annotations

import contextlib
import re
import time
from functools import partial
from itertools import chain, count
from pathlib import Path

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from numpy.typing import NDArray
from rclpy.qos import QoSProfile
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String

from dtvla.evaluation.video import Caption, EpisodeVideo, Painter
from dtvla.nodes.common import qos
from dtvla.nodes.common.conversions import picture_from, to_ns
from dtvla.nodes.common.lifecycle_node import GraphNode
from dtvla.nodes.common.parameters import RECORDER
from dtvla.nodes.common.process import run
from dtvla.nodes.controller.arm_output import GRIPPER, TARGET
from dtvla.nodes.recorder.bag_writer import BagWriter, DiskFull
from dtvla.policy.options import CAMERAS
from dtvla_msgs.msg import ActionChunk, EndEffectorDelta, Reasoning, TaskState

LONGEST_NAME = 80  # characters of a task's name
FINAL_FRAMES = 20  # the outcome stays readable for a second
DIAGNOSTICS = QoSProfile(depth=50)
TOPICS: tuple[tuple[str, type, QoSProfile], ...] = (
    *((f"{camera}/image_raw", Image, qos.SENSOR) for camera in CAMERAS),
    ("joint_states", JointState, qos.SENSOR),
    ("ee_pose", PoseStamped, qos.SENSOR),
    ("instruction", String, qos.LATCHED),
    ("policy/action_chunk", ActionChunk, qos.COMMAND),
    ("policy/reasoning", Reasoning, qos.STREAM),
    ("controller/ee_delta", EndEffectorDelta, qos.COMMAND),
    (TARGET, PoseStamped, qos.TARGET),
    (GRIPPER, JointState, qos.TARGET),
    ("task_state", TaskState, qos.LATCHED),
    ("/diagnostics", DiagnosticArray, DIAGNOSTICS),
)


def file_name(words: str) -> str:
    """Words of a message as a part of a file's name: they must not lead to another folder."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", words[:LONGEST_NAME])


class RecorderNode(GraphNode):
    """Records until it is deactivated or ended; files are complete then."""

    schema = RECORDER

    def __init__(self) -> None:
        super().__init__("recorder_node")
        self._bag: BagWriter | None = None
        self._video: EpisodeVideo | None = None

    def configure(self) -> None:
        self._output = Path(self.settings.text("output"))
        self._painter = Painter()

    def activate(self) -> None:
        if self.settings.flag("bag"):
            self._bag = BagWriter(unused(self._output / "bag"), self.settings.number("min_free_mb"))
        self._full = False
        self._tick_ns = 0
        self._state: TaskState | None = None
        self._pictures: dict[str, NDArray[np.uint8]] = {}
        self._thought, self._decision = "", ""
        for topic, kind, quality in TOPICS:
            callback = self.guarded(partial(self._on_message, topic, kind))
            subscription = self.create_subscription(kind, topic, callback, qos.patient(quality), raw=True)
            self.live(subscription, self.destroy_subscription)

    def deactivate(self) -> None:
        try:
            self._draw()
            self._end_video()
        finally:
            bag, self._bag = self._bag, None
            if bag is not None:
                try:
                    bag.close()
                except DiskFull as full:
                    self.report.problem("disk", str(full))

    def _on_message(self, topic: str, kind: type, data: bytes) -> None:
        if self._full:
            return
        try:
            self._record(topic, kind, data)
        except DiskFull as full:
            self._give_up(str(full))
        except OSError as error:  # of the video
            self._give_up(
                f"Nothing can be written to {self._output} any more ({error.strerror}): recording has ended. "
                "Make room, then start the recorder again."
            )

    def _record(self, topic: str, kind: type, data: bytes) -> None:
        if self._bag is not None and (kind is not Image or self.settings.flag("bag_images")):
            package = kind.__module__.split(".")[0]
            self._bag.write(
                self.resolve_topic_name(topic), f"{package}/msg/{kind.__name__}", time.time_ns(), data
            )
        if self.settings.flag("video"):
            show = {Image: self._show_image, Reasoning: self._show_thought, ActionChunk: self._show_decision}
            show[TaskState] = self._show_state
            if kind in show:
                show[kind](topic, deserialize_message(data, kind))

    def _give_up(self, sentence: str) -> None:
        """No room: says so once, saves what can be saved, and lets the others go on."""
        self._full = True
        self.report.problem("disk", sentence)
        bag, self._bag = self._bag, None
        video, self._video = self._video, None
        for ending in (bag, video):
            with contextlib.suppress(DiskFull, OSError):
                if ending is not None:
                    ending.close()

    def _show_image(self, topic: str, message: Image) -> None:
        camera = topic.split("/")[0]
        self._turn(to_ns(message.header.stamp))
        self._pictures[camera] = picture_from(message, camera)

    def _show_thought(self, topic: str, message: Reasoning) -> None:
        self._thought = message.text

    def _show_decision(self, topic: str, message: ActionChunk) -> None:
        took_ms = 1000 * message.inference_time.sec + message.inference_time.nanosec / 1e6
        self._decision = f"decision {message.decision_id}, {took_ms:.0f} ms"

    def _show_state(self, topic: str, message: TaskState) -> None:
        self._turn(to_ns(message.header.stamp))
        if self._state is None or self._state.episode != message.episode:
            self._begin_video(message)
        self._state = message

    def _turn(self, stamp_ns: int) -> None:
        """Draws the tick before when a message of the next one comes: its thought is known only then."""
        if stamp_ns > self._tick_ns:
            self._draw()
            self._tick_ns = stamp_ns

    def _draw(self) -> None:
        state = self._state
        if state is None or self._video is None:
            return
        caption = Caption(
            instruction=state.instruction,
            thought=self._thought,
            decision=self._decision,
            progress=f"step {state.step} of {state.max_steps}, seed {state.seed}",
            outcome=state.success if state.done else None,
        )
        self._video.add(self._painter.frame(self._pictures, caption), FINAL_FRAMES if state.done else 1)
        if state.done:
            self._end_video()

    def _begin_video(self, state: TaskState) -> None:
        self._end_video()
        self._thought, self._decision = "", ""
        name = f"episode_{state.episode:02d}_{file_name(state.task_name)}_seed{state.seed}.mp4"
        self._video = EpisodeVideo(unused(self._output / name), self.settings.number("frame_rate_hz"))

    def _end_video(self) -> None:
        if self._video is not None:
            self._video.close()
            self.report.values(last_video=self._video.path)
            self._video = None


def unused(path: Path) -> Path:
    """`path`, or the first of path_2, path_3, ... that does not exist: a recorder may be started anew."""
    names = chain([path], (path.with_name(f"{path.stem}_{number}{path.suffix}") for number in count(2)))
    return next(name for name in names if not name.exists())


def main() -> int:
    """Runs the node."""
    return run(RecorderNode)


if __name__ == "__main__":
    raise SystemExit(main())
