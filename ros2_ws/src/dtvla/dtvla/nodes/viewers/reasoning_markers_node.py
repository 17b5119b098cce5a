"""Draws for rviz: the thought beside the arm, where chunks want to go, and the workspace.

All markers go out together, whenever something changed and at least once a second. Each lives `silence_s`:
a display forgets a node that has died, and the node takes back what is no longer true.
"""

from __future__ import annotations

import time

import numpy as np
from geometry_msgs.msg import Point, PoseStamped
from numpy.typing import NDArray
from rclpy.clock import Clock, ClockType
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from dtvla.control.action_chunk import Chunk
from dtvla.control.limits.cartesian import Limits, check_chunk
from dtvla.nodes.common import qos
from dtvla.nodes.common.conversions import chunk_from, pose_from, to_duration, to_ns
from dtvla.nodes.common.diagnostics import Level
from dtvla.nodes.common.lifecycle_node import GraphNode
from dtvla.nodes.common.parameters import REASONING_MARKERS, Refusal, Settings
from dtvla.nodes.common.process import run
from dtvla.nodes.controller.controller_setup import workspace
from dtvla.nodes.viewers.marker_view import Kind, Sketch, Style, sketches
from dtvla.nodes.viewers.planned_paths import MeasuredTrack, PlannedPaths
from dtvla.nodes.viewers.reasoning_state import ReasoningState
from dtvla.nodes.viewers.reasoning_subscription import ReasoningSubscription
from dtvla_msgs.msg import ActionChunk

HEARTBEAT_S = 1.0


class ReasoningMarkersNode(GraphNode):
    """What policy and controller say, and ee_pose, in; reasoning_markers out."""

    schema = REASONING_MARKERS

    def __init__(self) -> None:
        super().__init__("reasoning_markers_node")

    def configure(self) -> None:
        self._style = style(self.settings)
        self._frame = self.settings.text("base_frame")

    def activate(self) -> None:
        settings = self.settings
        self._reasoning_state = ReasoningState(settings.number("silence_s"))
        self._plans = PlannedPaths(
            settings.integer("past_chunks"),
            settings.number("gripper_half_open_m"),
            settings.number("translation_scale"),
        )
        self._track = MeasuredTrack()
        self._chapter = 0
        self._shown: dict[tuple[str, int], Marker] = {}
        self._sent_s = 0.0
        self._markers = self.live(
            self.create_publisher(MarkerArray, "reasoning_markers", qos.STREAM), self.destroy_publisher
        )
        ReasoningSubscription(self, self._reasoning_state, self._on_chunk)
        pose = self.create_subscription(PoseStamped, "ee_pose", self.guarded(self._on_pose), qos.SENSOR)
        self.live(pose, self.destroy_subscription)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        beat = self.create_timer(1.0 / settings.number("rate_hz"), self.guarded(self._beat), clock=steady)
        self.live(beat, self.destroy_timer)

    def deactivate(self) -> None:
        if self.context.ok():
            self._markers.publish(MarkerArray(markers=[Marker(action=Marker.DELETEALL)]))

    def _on_pose(self, message: PoseStamped) -> None:
        try:
            position = pose_from(message, self._frame).position_m
        except Refusal as refusal:
            self.report.problem("pose", f"The planned path is not drawn. {refusal}")
            return
        self.report.solved("pose")
        self._track.add(to_ns(message.header.stamp) or self.get_clock().now().nanoseconds, position)

    def _on_chunk(self, message: ActionChunk) -> None:
        if self._reasoning_state.chapter != self._chapter:
            self._begin_chapter()
        start = self._track.at(to_ns(message.header.stamp))
        if start is None:
            sentence = "No ee_pose has come: the planned path is not drawn. Start the robot's driver."
            self.report.problem("start", sentence, Level.WARNING)
            return
        self.report.solved("start")
        try:
            chunk = _checked(message, self._frame)
        except Refusal as refusal:
            self.report.problem("chunk", f"Chunk {message.decision_id} is not drawn: {refusal}")
            return
        self.report.solved("chunk")
        self._plans.add(chunk, start)

    def _begin_chapter(self) -> None:
        self._chapter = self._reasoning_state.chapter
        self._plans.clear()

    def _beat(self) -> None:
        """Publishes what there is to see, if it changed or was not said for a while."""
        now_s = time.monotonic()
        self._reasoning_state.look_at_clock(now_s)
        if self._reasoning_state.chapter != self._chapter:
            self._begin_chapter()
        if not self._markers.get_subscription_count():
            return
        wanted = sketches(self._reasoning_state, self._plans, self._style)
        markers = {(sketch.name, sketch.number): self._marker(sketch) for sketch in wanted}
        if markers == self._shown and now_s - self._sent_s < HEARTBEAT_S:
            return
        gone = [Marker(ns=n, id=i, action=Marker.DELETE) for n, i in self._shown.keys() - markers.keys()]
        self._shown, self._sent_s = markers, now_s
        self._markers.publish(MarkerArray(markers=[*gone, *markers.values()]))

    def _marker(self, sketch: Sketch) -> Marker:
        marker = marker_message(sketch, self._frame)
        marker.lifetime = to_duration(self.settings.number("silence_s"))
        return marker


def _checked(message: ActionChunk, frame: str) -> Chunk:
    """The chunk in a message; raises `Refusal` when it makes no sense."""
    chunk = chunk_from(message, frame)
    sentence = check_chunk(chunk, Limits())
    if sentence is not None:
        raise Refusal(sentence)
    return chunk


def style(settings: Settings) -> Style:
    """The sizes and places in the parameters.

    Raises:
        Refusal: a workspace without inside.
    """
    box = workspace(settings)
    return Style(
        board_m=np.array([settings.number(f"board_{axis}_m") for axis in "xyz"]),
        letter_m=settings.number("text_height_m"),
        line_m=settings.number("line_width_m"),
        columns=settings.integer("wrap_characters"),
        rows=settings.integer("thought_lines"),
        box_m=np.array([box.lower, box.upper]),
        past_plans=settings.integer("past_chunks"),
    )


def marker_message(sketch: Sketch, frame: str) -> Marker:
    """A shape as rviz wants it."""
    marker = Marker(ns=sketch.name, id=sketch.number, type=sketch.kind.value, action=Marker.ADD)
    marker.header.frame_id = frame  # a zero stamp and frame_locked: rviz takes the newest transform
    marker.frame_locked = True
    marker.color = _colour(sketch.colour)
    marker.pose.orientation.w = 1.0
    size = marker.scale
    size.x = size.y = size.z = sketch.size_m
    if sketch.kind is Kind.WORDS:
        size.x = size.y = 0.0  # else rviz takes x for the width of a blank
    if sketch.kind in (Kind.WORDS, Kind.BALL):
        marker.pose.position = _point(sketch.points[0])
    else:
        marker.points = [_point(point) for point in sketch.points]
    if sketch.colours is not None:
        marker.colors = [_colour(colour) for colour in sketch.colours]
    marker.text = sketch.text
    return marker


def _colour(colour: NDArray[np.float64] | tuple[float, float, float, float]) -> ColorRGBA:
    r, g, b, a = (float(value) for value in colour)
    return ColorRGBA(r=r, g=g, b=b, a=a)


def _point(position: NDArray[np.float64]) -> Point:
    x, y, z = (float(value) for value in position)
    return Point(x=x, y=y, z=z)


def main() -> int:
    """Runs the node."""
    return run(ReasoningMarkersNode)


if __name__ == "__main__":
    raise SystemExit(main())
