"""The cameras beside the thought as one picture, for viewers that know nothing of markers.

Nothing is received or painted while nobody looks.
"""

from __future__ import annotations

import time
from functools import partial

import numpy as np
from builtin_interfaces.msg import Time
from numpy.typing import NDArray
from rclpy.clock import Clock, ClockType
from rclpy.subscription import Subscription
from sensor_msgs.msg import Image

from dtvla.evaluation.video import Caption, Painter
from dtvla.nodes.common import qos
from dtvla.nodes.common.conversions import image_message, picture_from
from dtvla.nodes.common.lifecycle_node import GraphNode
from dtvla.nodes.common.parameters import REASONING_OVERLAY, Refusal
from dtvla.nodes.common.process import run
from dtvla.nodes.viewers.reasoning_state import ReasoningState
from dtvla.nodes.viewers.reasoning_subscription import ReasoningSubscription
from dtvla.policy.options import CAMERAS
from dtvla_msgs.msg import TaskState

HEARTBEAT_S = 1.0
MOST_CAMERAS = 2  # what the painter has room for


class ReasoningOverlayNode(GraphNode):
    """Camera images and what policy and controller say in; reasoning/overlay out."""

    schema = REASONING_OVERLAY

    def __init__(self) -> None:
        super().__init__("reasoning_overlay_node")

    def configure(self) -> None:
        self._cameras = cameras(self.settings.text("cameras"))
        self._painter = Painter()

    def activate(self) -> None:
        self._reasoning_state = ReasoningState(self.settings.number("silence_s"))
        self._task: TaskState | None = None
        self._synchroniser: list[Subscription] = []
        self._pictures: dict[str, tuple[float, NDArray[np.uint8]]] = {}  # when received, and what
        self._stamp = Time()
        self._painted: tuple[object, ...] = ()
        self._sent_s = 0.0
        self._overlay = self.live(
            self.create_publisher(Image, "reasoning/overlay", qos.COMMAND), self.destroy_publisher
        )
        ReasoningSubscription(self, self._reasoning_state)
        task = self.create_subscription(TaskState, "task_state", self.guarded(self._on_task), qos.LATCHED)
        self.live(task, self.destroy_subscription)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        period_s = 1.0 / self.settings.number("rate_hz")
        self.live(self.create_timer(period_s, self.guarded(self._beat), clock=steady), self.destroy_timer)

    def deactivate(self) -> None:
        self._unsubscribe_cameras()

    def _on_task(self, message: TaskState) -> None:
        self._task = message

    def _on_image(self, camera: str, message: Image) -> None:
        try:
            picture = picture_from(message, camera)
        except Refusal as refusal:
            self.report.problem(f"image {camera}", str(refusal))
            self._pictures.pop(camera, None)
            return
        self.report.solved(f"image {camera}")
        self._pictures[camera] = time.monotonic(), picture
        self._stamp = message.header.stamp

    def _beat(self) -> None:
        """Paints if somebody looks and there is something new, or nothing was sent for a while."""
        now_s = time.monotonic()
        self._reasoning_state.look_at_clock(now_s)
        if not self._overlay.get_subscription_count():
            self._unsubscribe_cameras()
            return
        self._subscribe_cameras()
        self._forget_old_pictures(now_s)
        caption = self._caption()
        scene = (caption, *sorted((name, when_s) for name, (when_s, _) in self._pictures.items()))
        if scene == self._painted and now_s - self._sent_s < HEARTBEAT_S:
            return
        self._painted, self._sent_s = scene, now_s
        pictures = {name: picture for name, (_, picture) in self._pictures.items()}
        self._overlay.publish(image_message(self._painter.frame(pictures, caption), self._stamp, ""))

    def _caption(self) -> Caption:
        reasoning_state, task = self._reasoning_state, self._task
        state, complaint = reasoning_state.controller
        progress = complaint or state or "no controller"
        if task is not None and not complaint:
            progress += f", step {task.step} of {task.max_steps}"
        about = ", ".join(
            words for words in (reasoning_state.decision_line, reasoning_state.thought_line) if words
        )
        return Caption(
            instruction=reasoning_state.instruction or "No instruction yet",
            thought=reasoning_state.thought,
            decision=about,
            progress=progress,
            outcome=task.success if task is not None and task.done else None,
            kept_from=reasoning_state.kept_from,
        )

    def _subscribe_cameras(self) -> None:
        if self._synchroniser:
            return
        for camera in self._cameras:
            callback = self.guarded(partial(self._on_image, camera))
            self._synchroniser.append(
                self.create_subscription(Image, f"{camera}/image_raw", callback, qos.SENSOR)
            )

    def _unsubscribe_cameras(self) -> None:
        while self._synchroniser:
            self.destroy_subscription(self._synchroniser.pop())
        self._pictures.clear()

    def _forget_old_pictures(self, now_s: float) -> None:
        for camera, (when_s, _) in list(self._pictures.items()):
            if now_s - when_s > self._reasoning_state.silence_s:
                del self._pictures[camera]


def cameras(names: str) -> list[str]:
    """The cameras in a comma-separated list.

    Raises:
        Refusal: none of them, too many, or one twice.
    """
    found = [name.strip().strip("/") for name in names.split(",")]
    if not 1 <= len(found) <= MOST_CAMERAS or not all(found) or len(set(found)) < len(found):
        raise Refusal(f"Parameter 'cameras' is '{names}'; one or two names are needed ({','.join(CAMERAS)}).")
    return found


def main() -> int:
    """Runs the node."""
    return run(ReasoningOverlayNode)


if __name__ == "__main__":
    raise SystemExit(main())
