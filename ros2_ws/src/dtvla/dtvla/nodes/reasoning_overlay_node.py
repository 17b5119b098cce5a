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

from dtvla.nodes import qos
from dtvla.nodes.base import GraphNode
from dtvla.nodes.ear import Ear
from dtvla.nodes.messages import image_message, picture_from
from dtvla.nodes.parameters import REASONING_OVERLAY, Refusal
from dtvla.nodes.process import run
from dtvla.nodes.said import Said
from dtvla.sim.video import Caption, Painter
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
        self._said = Said(self.settings.number("silence_s"))
        self._task: TaskState | None = None
        self._eyes: list[Subscription] = []
        self._pictures: dict[str, tuple[float, NDArray[np.uint8]]] = {}  # when received, and what
        self._stamp = Time()
        self._painted: tuple[object, ...] = ()
        self._sent_s = 0.0
        self._overlay = self.live(
            self.create_publisher(Image, "reasoning/overlay", qos.COMMAND), self.destroy_publisher
        )
        Ear(self, self._said)
        task = self.create_subscription(TaskState, "task_state", self.guarded(self._on_task), qos.LATCHED)
        self.live(task, self.destroy_subscription)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        period_s = 1.0 / self.settings.number("rate_hz")
        self.live(self.create_timer(period_s, self.guarded(self._beat), clock=steady), self.destroy_timer)

    def deactivate(self) -> None:
        self._shut_eyes()

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
        self._said.look_at_clock(now_s)
        if not self._overlay.get_subscription_count():
            self._shut_eyes()
            return
        self._open_eyes()
        self._forget_old_pictures(now_s)
        caption = self._caption()
        scene = (caption, *sorted((name, when_s) for name, (when_s, _) in self._pictures.items()))
        if scene == self._painted and now_s - self._sent_s < HEARTBEAT_S:
            return
        self._painted, self._sent_s = scene, now_s
        pictures = {name: picture for name, (_, picture) in self._pictures.items()}
        self._overlay.publish(image_message(self._painter.frame(pictures, caption), self._stamp, ""))

    def _caption(self) -> Caption:
        said, task = self._said, self._task
        state, complaint = said.controller
        progress = complaint or state or "no controller"
        if task is not None and not complaint:
            progress += f", step {task.step} of {task.max_steps}"
        about = ", ".join(words for words in (said.decision_line, said.thought_line) if words)
        return Caption(
            instruction=said.instruction or "No instruction yet",
            thought=said.thought,
            decision=about,
            progress=progress,
            outcome=task.success if task is not None and task.done else None,
            kept_from=said.kept_from,
        )

    def _open_eyes(self) -> None:
        if self._eyes:
            return
        for camera in self._cameras:
            callback = self.guarded(partial(self._on_image, camera))
            self._eyes.append(self.create_subscription(Image, f"{camera}/image_raw", callback, qos.SENSOR))

    def _shut_eyes(self) -> None:
        while self._eyes:
            self.destroy_subscription(self._eyes.pop())
        self._pictures.clear()

    def _forget_old_pictures(self, now_s: float) -> None:
        for camera, (when_s, _) in list(self._pictures.items()):
            if now_s - when_s > self._said.silence_s:
                del self._pictures[camera]


def cameras(names: str) -> list[str]:
    """The cameras in a comma-separated list.

    Raises:
        Refusal: none of them, too many, or one twice.
    """
    found = [name.strip().strip("/") for name in names.split(",")]
    if not 1 <= len(found) <= MOST_CAMERAS or not all(found) or len(set(found)) < len(found):
        raise Refusal(f"Parameter 'cameras' is '{names}'; one or two names are needed (agentview,wrist).")
    return found


def main() -> int:
    """Runs the node."""
    return run(ReasoningOverlayNode)


if __name__ == "__main__":
    raise SystemExit(main())
