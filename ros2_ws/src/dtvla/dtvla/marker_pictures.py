"""Pictures of what the markers and the overlay say, from the messages of a graph that really runs.

    .venv/bin/python -m dtvla.marker_pictures docs/pictures

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

from dtvla import domains
from dtvla.control.kinematics import Arm, read_urdf
from dtvla.graph import GraphOptions, default_bundle
from dtvla.launcher import RunningGraph
from dtvla.nodes.marker_view import Kind
from dtvla.resources import resource

if TYPE_CHECKING:
    from sensor_msgs.msg import Image
    from visualization_msgs.msg import Marker, MarkerArray

Vector = NDArray[np.float64]
ARM_LINKS = tuple(f"panda_link{n}" for n in range(8)) + ("panda_hand", "panda_grip_site")
PATIENCE_S = 120.0
BACKGROUND, GRID, ARM = "#303030", "#4a4a4c", "#d8dade"
DPI = 100


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
    """Plays the first task and returns the moment at which the gripper is about to close, with past paths.

    Args:
        folder: for the logs.
        seed: of the object placement.

    Raises:
        RuntimeError: the graph did not run, or there was no such moment.
    """
    from sensor_msgs.msg import Image, JointState
    from visualization_msgs.msg import MarkerArray

    from dtvla.nodes import qos
    from dtvla.nodes.messages import picture_from

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
        node = graph.supervisor.node
        node.create_subscription(MarkerArray, "reasoning_markers", on_markers, qos.STREAM)
        node.create_subscription(Image, "reasoning/overlay", on_overlay, qos.COMMAND)
        node.create_subscription(
            JointState,
            "joint_states",
            lambda message: joints.update(zip(message.name, message.position, strict=True)),
            qos.SENSOR,
        )
        graph.supervisor.reset_scene("embedded", 0, seed)
        if not graph.supervisor.wait(lambda: sight.overlay is not None, PATIENCE_S):
            raise RuntimeError(f"The graph showed nothing worth a picture within {PATIENCE_S:g} s.")
    return sight


def _worth_seeing(display: Display) -> bool:
    """A thought, a full set of paths, and a gripper that is about to do something."""
    return (
        bool(display.named("thought")) and len(display.named("path")) >= 6 and bool(display.named("gripper"))
    )


def draw_markers(sight: Sight, path: Path) -> None:
    """Draws the markers and the arm as the view of `urdf/dtvla.rviz` shows them, as a PNG."""
    from matplotlib.figure import Figure

    view = yaml.safe_load(resource("urdf/dtvla.rviz").read_text())["Visualization Manager"]["Views"][
        "Current"
    ]
    figure = Figure(figsize=(11, 7), facecolor=BACKGROUND, dpi=DPI)
    axes: Any = figure.add_axes((0.0, 0.0, 1.0, 1.0), projection="3d")
    axes.set_facecolor(BACKGROUND)
    axes.set_axis_off()
    axes.view_init(elev=np.degrees(view["Pitch"]), azim=np.degrees(view["Yaw"]))
    middle = np.array([view["Focal Point"][axis] for axis in "XYZ"])
    for axis, at, half in zip("xyz", middle, (0.9, 1.1, 0.7), strict=True):
        getattr(axes, f"set_{axis}lim")(at - half, at + half)
    axes.set_box_aspect((0.9, 1.1, 0.7), zoom=1.9)
    _draw_floor(axes)
    bones = arm_points(sight.joints)
    axes.plot(*bones.T, color=ARM, linewidth=7, alpha=0.55, solid_capstyle="round", solid_joinstyle="round")
    axes.scatter(*bones.T, color=ARM, s=60, alpha=0.9, depthshade=False)
    figure.canvas.draw()  # fixes the projection, which the letters' size depends on
    for marker in sight.markers:
        _draw(axes, marker)
    figure.savefig(path, dpi=DPI)


def arm_points(joints: dict[str, float]) -> Vector:
    """Where the arm's links are [n, 3], from base to gripper, by the kinematics of the URDF."""
    urdf = read_urdf(resource("urdf/panda.urdf.xacro"))
    points = [np.zeros(3)]
    for link in ARM_LINKS[1:]:
        arm = Arm(urdf, tip=link)
        points.append(arm.forward(np.array([joints[name] for name in arm.joint_names])).position_m)
    return np.array(points)


def _draw_floor(axes: Any) -> None:
    for value in np.arange(-1.0, 1.01, 0.2):
        axes.plot([value, value], [-1, 1], [0, 0], color=GRID, linewidth=0.6)
        axes.plot([-1, 1], [value, value], [0, 0], color=GRID, linewidth=0.6)


def _draw(axes: Any, marker: Marker) -> None:
    kind, colour = Kind(marker.type), _rgba(marker.color)
    points = np.array([[p.x, p.y, p.z] for p in marker.points]).reshape(-1, 3)
    colours = [_rgba(c) for c in marker.colors] or [colour] * len(points)
    place = marker.pose.position
    centre = (place.x, place.y, place.z)
    points_per_m = 72 / DPI * _pixels_per_metre(axes, centre if len(points) == 0 else points[0])
    if kind is Kind.WORDS:
        size = 0.9 * marker.scale.z * points_per_m
        axes.text(*centre, marker.text, color=colour, fontsize=size, ha="center", va="center")
    elif kind is Kind.BALL:
        axes.scatter(*centre, color=[colour], s=(marker.scale.x * points_per_m) ** 2, depthshade=False)
    elif kind is Kind.DOTS:
        axes.scatter(*points.T, color=colours, s=(marker.scale.x * points_per_m) ** 2, depthshade=False)
    else:
        step = 2 if kind is Kind.EDGES else 1
        for index in range(0, len(points) - 1, step):
            pair = points[index : index + 2]
            axes.plot(*pair.T, color=colours[index + 1], linewidth=max(marker.scale.x * points_per_m, 0.8))


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
        print("Say where the pictures go: python -m dtvla.marker_pictures docs/pictures", file=sys.stderr)
        raise SystemExit(2)
    raise SystemExit(main(Path(sys.argv[1])))
