"""Pictures of what the markers and the overlay say, from the messages of a graph that really runs.

    .venv/bin/python -m tools.figures.markers docs/pictures

plays one episode of the shipped policy, listens as rviz would, and draws `markers.png` (with the view of
`urdf/dtvla.rviz`) and `overlay.png`.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from numpy.typing import NDArray

from dtvla.bringup import domains
from dtvla.bringup.graph import GraphOptions
from dtvla.bringup.launcher import RunningGraph
from dtvla.bringup.rviz_config import CONFIG
from dtvla.control.kinematics import read_urdf
from dtvla.nodes.viewers.marker_view import MOST_EVENTS, Kind
from dtvla.resources import default_bundle, resource
from tools.figures.robot_shapes import Facet, facets

if TYPE_CHECKING:
    from sensor_msgs.msg import Image
    from visualization_msgs.msg import Marker, MarkerArray

Vector = NDArray[np.float64]
PATIENCE_S = 120.0
BACKGROUND, GRID, QUIET = "#303030", "#4a4a4c", "#9a9ca2"
LIGHT = (0.4, 0.3, 0.9)
SIZE_IN, DPI = (11.0, 7.0), 100
NEAR_AT = (0.755, 0.6, 0.235, 0.385)
NEAR = ("path", "rows", "gripper", "gripper words")  # what the view from near shows


class Display:
    """Holds markers as rviz does: by name and number, until they are taken back."""

    def __init__(self) -> None:
        self.markers: dict[tuple[str, int], Marker] = {}

    def take(self, message: MarkerArray) -> None:
        """Does what a message says.

        Raises:
            ValueError: it names a marker twice, which rviz refuses.
        """
        keys = [(marker.ns, marker.id) for marker in message.markers]
        if len(set(keys)) < len(keys):
            raise ValueError("A MarkerArray names a marker twice.")
        for key, marker in zip(keys, message.markers, strict=True):
            if marker.action == marker.DELETEALL:
                self.markers.clear()
            elif marker.action == marker.DELETE:
                self.markers.pop(key, None)
            else:
                self.markers[key] = marker

    def named(self, name: str) -> list[Marker]:
        """The markers of one name, by number."""
        return [self.markers[key] for key in sorted(self.markers) if key[0] == name]


@dataclass
class Sight:
    """One moment of a running graph.

    Attributes:
        markers: what a display shows.
        joints: positions in rad by joint name.
        overlay: RGB uint8 [H, W, 3].
    """

    markers: list[Marker] = field(default_factory=list)
    joints: dict[str, float] = field(default_factory=dict)
    overlay: NDArray[np.uint8] | None = None


def watch(folder: Path, *, seed: int = 0) -> Sight:
    """Plays the first task and returns a moment after the gripper has closed.

    Args:
        folder: for the logs.
        seed: of the object placement.

    Raises:
        RuntimeError: the graph did not run, or there was no such moment.
    """
    from sensor_msgs.msg import Image, JointState
    from visualization_msgs.msg import MarkerArray

    from dtvla.nodes.common import qos
    from dtvla.nodes.common.conversions import picture_from

    display, sight = Display(), Sight()
    joints: dict[str, float] = {}

    def on_markers(message: MarkerArray) -> None:
        display.take(message)
        if not sight.markers and _worth_seeing(display):
            sight.markers, sight.joints = list(display.markers.values()), dict(joints)

    def on_overlay(message: Image) -> None:
        if sight.markers and sight.overlay is None:
            sight.overlay = picture_from(message, "overlay").copy()

    options = GraphOptions(
        bundle=default_bundle(), autostart=False, console=False, markers=True, output=folder
    )
    with domains.reserve() as reservation, RunningGraph(options, reservation.domain) as graph:
        node = graph.client.node
        node.create_subscription(MarkerArray, "reasoning_markers", on_markers, qos.STREAM)
        node.create_subscription(Image, "reasoning/overlay", on_overlay, qos.COMMAND)
        node.create_subscription(
            JointState,
            "joint_states",
            lambda message: joints.update(zip(message.name, message.position, strict=True)),
            qos.SENSOR,
        )
        graph.client.reset_scene("embedded", 0, seed)
        if not graph.client.wait(lambda: sight.overlay is not None, PATIENCE_S):
            raise RuntimeError(f"The graph showed nothing worth a picture within {PATIENCE_S:g} s.")
    return sight


def _worth_seeing(display: Display) -> bool:
    """The gripper closed a few decisions ago, and the arm is on its way with what it holds."""
    closed = any(marker.id >= 3 * MOST_EVENTS for marker in display.named("gripper"))
    return closed and bool(display.named("thought")) and bool(display.named("decision"))


def draw_markers(sight: Sight, path: Path) -> None:
    """Draws the markers and the arm as a PNG: as the view of `urdf/dtvla.rviz` shows them, and from near."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    view = yaml.safe_load(resource(CONFIG).read_text())["Visualization Manager"]["Views"]["Current"]
    angles = {"elev": float(np.degrees(view["Pitch"])), "azim": float(np.degrees(view["Yaw"]))}
    middle = np.array([view["Focal Point"][axis] for axis in "XYZ"])
    shapes = facets(read_urdf(resource("urdf/panda.urdf.xacro")), sight.joints, "panda_link0")
    figure = Figure(figsize=SIZE_IN, facecolor=BACKGROUND, dpi=DPI)
    whole: Any = figure.add_axes((-0.25, -0.5, 1.5, 2.0), projection="3d", computed_zorder=False)
    _look(whole, middle, 0.4 * float(view["Distance"]), angles)
    _draw_scene(whole, shapes, sight.markers)
    near: Any = figure.add_axes(NEAR_AT, projection="3d", computed_zorder=False)
    start = next(marker for marker in sight.markers if marker.ns == "path" and marker.id == 0).points[0]
    _look(near, np.array([start.x, start.y, start.z]), 0.13, angles)
    _draw_scene(near, shapes, [marker for marker in sight.markers if marker.ns in NEAR], clip=True)
    left, bottom, width, height = NEAR_AT
    figure.text(left + 0.008, bottom + height - 0.025, "from near", color=QUIET, fontsize=10)
    figure.add_artist(Rectangle((left, bottom), width, height, fc="none", ec=QUIET, lw=0.8))
    figure.savefig(path, dpi=DPI)


def _look(axes: Any, middle: Vector, half_m: float, angles: dict[str, float]) -> None:
    """Points the view at `middle` [3], with everything up to `half_m` around it in sight."""
    axes.set_facecolor(BACKGROUND)
    axes.set_axis_off()
    axes.view_init(**angles)
    for axis, at in zip("xyz", middle, strict=True):
        getattr(axes, f"set_{axis}lim")(at - half_m, at + half_m)
    axes.set_box_aspect((1, 1, 1))
    axes.apply_aspect()
    axes.M = axes.get_proj()  # the size of letters depends on it


def _draw_scene(axes: Any, shapes: list[Facet], markers: list[Marker], *, clip: bool = False) -> None:
    from mpl_toolkits.mplot3d.art3d import Poly3DCollection

    for value in np.arange(-1.0, 1.01, 0.2):
        axes.plot([value, value], [-1, 1], [0, 0], color=GRID, linewidth=0.6, clip_on=clip, zorder=0)
        axes.plot([-1, 1], [value, value], [0, 0], color=GRID, linewidth=0.6, clip_on=clip, zorder=0)
    light = np.array(LIGHT) / np.linalg.norm(LIGHT)
    colours = [
        (*(np.array(s.colour[:3]) * (0.45 + 0.5 * max(float(s.normal @ light), 0.0))), 1) for s in shapes
    ]
    body = Poly3DCollection([s.corners for s in shapes], facecolors=colours, edgecolors=colours, lw=0.5)
    body.set_zorder(1)
    body.set_clip_on(clip)
    axes.add_collection3d(body)
    for marker in markers:
        _draw(axes, marker)


def _draw(axes: Any, marker: Marker) -> None:
    kind, colour = Kind(marker.type), _rgba(marker.color)
    place = marker.pose.position
    points = np.array([[p.x, p.y, p.z] for p in [*marker.points, place][: len(marker.points) or 1]])
    colours = [_rgba(c) for c in marker.colors] or [colour] * len(points)
    points_per_m = 72 / DPI * _pixels_per_metre(axes, points[0])
    if kind is Kind.WORDS:
        size = 0.85 * marker.scale.z * points_per_m
        looks = {"ha": "center", "va": "center", "zorder": 4, "clip_on": False}
        axes.text(*points[0], marker.text, color=colour, fontsize=size, **looks)
    elif kind in (Kind.BALL, Kind.DOTS):
        size = (marker.scale.x * points_per_m) ** 2
        axes.scatter(*points.T, color=colours, s=size, depthshade=False, linewidths=0, zorder=3)
    else:
        width = max(marker.scale.x * points_per_m, 1.0)
        step = 2 if kind is Kind.EDGES else 1
        for index in range(0, len(points) - 1, step):
            pair = points[index : index + 2]
            looks = {"solid_capstyle": "round", "clip_on": False, "zorder": 2}
            axes.plot(*pair.T, color=colours[index + 1], linewidth=width, **looks)


def _pixels_per_metre(axes: Any, at: Any) -> float:
    """How long a vertical metre is in the picture, at a point."""
    from mpl_toolkits.mplot3d import proj3d

    matrix = axes.get_proj()
    ends = [proj3d.proj_transform(at[0], at[1], at[2] + up, matrix)[:2] for up in (-0.05, 0.05)]
    low, high = axes.transData.transform(ends)
    return float(np.linalg.norm(high - low) / 0.1)


def _rgba(colour: Any) -> tuple[float, float, float, float]:
    return colour.r, colour.g, colour.b, colour.a


def main(folder: Path) -> int:
    """Writes both pictures into `folder`."""
    from PIL import Image as Picture

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as logs:
        sight = watch(Path(logs))
    draw_markers(sight, folder / "markers.png")
    assert sight.overlay is not None
    Picture.fromarray(sight.overlay).save(folder / "overlay.png", optimize=True)
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        print("Say where the pictures go: python -m tools.figures.markers docs/pictures", file=sys.stderr)
        raise SystemExit(2)
    raise SystemExit(main(Path(sys.argv[1])))
