"""Draws for rviz: the thought above the gripper, and the path the newest chunk plans."""

from __future__ import annotations

import textwrap

import numpy as np
from geometry_msgs.msg import Point, PoseStamped
from numpy.typing import NDArray
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from dtvla.nodes import qos
from dtvla.nodes.base import GraphNode
from dtvla.nodes.parameters import REASONING_MARKERS
from dtvla.nodes.process import run
from dtvla_msgs.msg import ActionChunk, Reasoning

TEXT_COLOUR = ColorRGBA(r=1.0, g=1.0, b=1.0, a=1.0)
PATH_COLOUR = ColorRGBA(r=0.1, g=0.8, b=1.0, a=0.9)


def planned_path(start: NDArray[np.float64], translations: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where the gripper will go: [rows + 1, 3] m, from `start` [3] by the chunk's translations [rows, 3]."""
    return np.vstack([start, start + np.cumsum(translations, axis=0)])


class ReasoningMarkersNode(GraphNode):
    """policy/reasoning, policy/action_chunk and ee_pose in, reasoning_markers out."""

    schema = REASONING_MARKERS

    def __init__(self) -> None:
        super().__init__("reasoning_markers_node")
        self._position: NDArray[np.float64] | None = None

    def configure(self) -> None:
        self._frame = self.settings.text("base_frame")

    def activate(self) -> None:
        publisher = self.create_publisher(MarkerArray, "reasoning_markers", 10)
        self._markers = self.live(publisher, self.destroy_publisher)
        for kind, topic, callback, quality in (
            (Reasoning, "policy/reasoning", self._on_reasoning, qos.STREAM),
            (ActionChunk, "policy/action_chunk", self._on_chunk, qos.COMMAND),
            (PoseStamped, "ee_pose", self._on_pose, qos.SENSOR),
        ):
            self.live(
                self.create_subscription(kind, topic, self.guarded(callback), quality),
                self.destroy_subscription,
            )

    def _on_pose(self, message: PoseStamped) -> None:
        position = message.pose.position
        self._position = np.array([position.x, position.y, position.z])

    def _on_reasoning(self, message: Reasoning) -> None:
        if self._position is None:
            return
        marker = self._marker("thought", Marker.TEXT_VIEW_FACING, TEXT_COLOUR)
        marker.text = textwrap.fill(message.text, self.settings.integer("wrap_characters"))
        marker.scale.z = self.settings.number("text_height_m")
        above = np.array([0.0, 0.0, self.settings.number("text_offset_m")])
        marker.pose.position = _point(self._position + above)
        self._markers.publish(MarkerArray(markers=[marker]))

    def _on_chunk(self, message: ActionChunk) -> None:
        if self._position is None:
            return
        translations = np.asarray(message.translations, np.float64).reshape(-1, 3)[: message.execute_steps]
        marker = self._marker("path", Marker.LINE_STRIP, PATH_COLOUR)
        marker.points = [_point(position) for position in planned_path(self._position, translations)]
        marker.scale.x = self.settings.number("line_width_m")
        self._markers.publish(MarkerArray(markers=[marker]))

    def _marker(self, name: str, kind: int, colour: ColorRGBA) -> Marker:
        marker = Marker(ns=name, id=0, type=kind, action=Marker.ADD, color=colour, frame_locked=True)
        marker.header.frame_id = self._frame  # a zero stamp: rviz takes the newest transform
        marker.pose.orientation.w = 1.0
        return marker


def _point(position: NDArray[np.float64]) -> Point:
    x, y, z = (float(value) for value in position)
    return Point(x=x, y=y, z=z)


def main() -> int:
    """Runs the node."""
    return run(ReasoningMarkersNode)


if __name__ == "__main__":
    raise SystemExit(main())
