"""The embedded suites: LIBERO's own tabletop problem with nothing but the robosuite wheel's assets.

`embedded`: three tasks share one scene (a green block, a blue cylinder, a can and a basket).
`embedded_tray`: four tasks share another (a red block, a yellow cylinder, a white box, a basket and a tray).
Which object stands in which of three places, and which receptacle in which of two, is drawn by the seed, so
only the instruction tells the policy what to pick, and where to put it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtvla.sim.bootstrap import cache_folder, robosuite_assets, write_atomically

BASKET, TRAY = "emb_basket", "emb_tray"
RECEPTACLES = {BASKET: "basket", TRAY: "tray"}  # what instructions and thoughts call them
# (x_min, y_min, x_max, y_max) in metres on the table: places far enough apart for the open gripper.
PLACES = ((-0.20, -0.24, -0.12, -0.14), (0.00, -0.28, 0.08, -0.18), (-0.10, -0.06, 0.02, 0.02))
BASKET_PLACE = (-0.03, 0.22, 0.03, 0.28)
RECEPTACLE_PLACES = ((-0.15, 0.23, -0.13, 0.25), (0.07, 0.23, 0.09, 0.25))  # where there are two of them


@dataclass(frozen=True)
class EmbeddedTask:
    """One pick-and-place task of a suite."""

    name: str
    category: str  # object category in the BDDL file; its instance is `<category>_1`
    noun: str  # what the instruction and the thought call it
    grasp_height_m: float  # grasp point above the object's origin
    width_m: float  # extent between the fingers
    into: str = BASKET  # category of the receptacle

    @property
    def target(self) -> str:
        return f"{self.category}_1"

    @property
    def language(self) -> str:
        preposition = "on" if self.into == TRAY else "in"
        return f"Pick up the {self.noun} and place it {preposition} the {RECEPTACLES[self.into]}"


@dataclass(frozen=True)
class EmbeddedSuite:
    """Tasks that share a scene.

    Attributes:
        tasks: in the order of their indices.
        receptacles: the categories of what things are put into, each with its place on the table.
    """

    tasks: tuple[EmbeddedTask, ...]
    receptacles: tuple[tuple[str, tuple[float, ...]], ...]

    @property
    def things(self) -> tuple[EmbeddedTask, ...]:
        """A task for each object that can be picked up; what it is and how it is grasped stands there."""
        return tuple({task.category: task for task in reversed(self.tasks)}.values())[::-1]


_RED = ("emb_red_block", "red block", 0.005, 0.040)
_YELLOW = ("emb_yellow_cylinder", "yellow cylinder", 0.008, 0.040)
_WHITE = ("emb_white_box", "white box", 0.0, 0.036)
SUITES = {
    "embedded": EmbeddedSuite(
        (
            EmbeddedTask("green_block", "emb_green_block", "green block", 0.0, 0.044),
            EmbeddedTask("blue_cylinder", "emb_blue_cylinder", "blue cylinder", 0.005, 0.048),
            EmbeddedTask("can", "emb_can", "can", 0.01, 0.050),
        ),
        ((BASKET, BASKET_PLACE),),
    ),
    "embedded_tray": EmbeddedSuite(
        (
            EmbeddedTask("red_block_basket", *_RED),
            EmbeddedTask("red_block_tray", *_RED, into=TRAY),
            EmbeddedTask("yellow_cylinder_tray", *_YELLOW, into=TRAY),
            EmbeddedTask("white_box_basket", *_WHITE),
        ),
        tuple(zip((BASKET, TRAY), RECEPTACLE_PLACES, strict=True)),
    ),
}
TASKS = SUITES["embedded"].tasks
THINGS = tuple(thing for suite in SUITES.values() for thing in suite.things)

_HULL = 'rgba="0 0 0 0" solimp="0.998 0.998 0.001" solref="0.001 1"'
_SHOWN = 'group="1" contype="0" conaffinity="0" mass="0"'


def _site(name: str, position: str) -> str:
    return f'<site rgba="0 0 0 0" size="0.005" pos="{position}" name="{name}"/>'


def _tub_xml(
    name: str, rgba: str, half_width: float, half_height: float, reach: float = 0.0, wall: float = 0.005
) -> str:
    """A square tub, open above; what lies lower than `2 * reach` (at least its walls) counts as inside."""
    w, h, t = half_width, half_height, wall
    r = max(h, reach)
    boxes: list[tuple[float, ...]] = [(0, 0, t, w, w, t)]
    boxes += [(s * w, 0, h, t, w, h) for s in (1, -1)] + [(0, s * w, h, w, t, h) for s in (1, -1)]
    geoms = ""
    for x, y, z, a, b, c in boxes:
        shape = f'type="box" pos="{x:g} {y:g} {z:g}" size="{a:g} {b:g} {c:g}"'
        geoms += f'<geom {shape} group="0" density="400" friction="0.95 0.3 0.1" {_HULL}/>'
        geoms += f'<geom {shape} rgba="{rgba}" {_SHOWN}/>'
    region = (
        f'<site name="contain_region" type="box" pos="0 0 {r:g}" quat="1 0 0 0" '
        f'size="{w - 0.012:g} {w - 0.012:g} {r:g}" rgba="0 0 0 0" group="0"/>'
    )
    ends = _site("bottom_site", "0 0 0") + _site("top_site", f"0 0 {2 * h:g}")
    ends += _site("horizontal_radius_site", f"{w + t:g} {w + t:g} 0")
    return _object_xml(name, region + geoms, ends)


def _solid_xml(name: str, kind: str, size: tuple[float, ...], rgba: str, half_height: float) -> str:
    shape = f'type="{kind}" size="{" ".join(f"{s:g}" for s in size)}"'
    geoms = f'<geom {shape} group="0" density="250" friction="1.5 0.3 0.1" condim="4" {_HULL}/>'
    geoms += f'<geom {shape} rgba="{rgba}" {_SHOWN}/>'
    r = 0.7 * max(size[:2] if kind == "box" else size[:1])
    ends = _site("bottom_site", f"0 0 {-half_height:g}") + _site("top_site", f"0 0 {half_height:g}")
    return _object_xml(name, geoms, ends + _site("horizontal_radius_site", f"{r:g} {r:g} 0"))


def _object_xml(name: str, body: str, sites: str) -> str:
    return (
        f'<mujoco model="{name}"><worldbody><body><body name="object">{body}</body>{sites}</body>'
        "</worldbody></mujoco>"
    )


def _arena_xml(robosuite_assets: Path) -> str:
    """robosuite's table arena with a wooden table, absolute texture paths and LIBERO's wall name."""
    textures = robosuite_assets / "textures"
    text = (robosuite_assets / "arenas" / "table_arena.xml").read_text()
    text = text.replace("tex-light-gray-plaster", "tex-wall").replace("../textures/", f"{textures}/")
    return text.replace(f"{textures}/ceramic.png", f"{textures}/light-wood.png")


def _bddl(task: EmbeddedTask, suite: EmbeddedSuite) -> str:
    def rectangle(values: tuple[float, ...]) -> str:
        return f"(:target main_table) (:ranges (({' '.join(f'{v:g}' for v in values)})))"

    objects = [thing.category for thing in suite.things]
    receptacles = [name for name, _ in suite.receptacles]
    rooms = [f"{RECEPTACLES[name]}_place" for name in receptacles]
    standing = "\n".join(
        f"    ({room} {rectangle(place)})" for room, (_, place) in zip(rooms, suite.receptacles, strict=True)
    )
    containing = "\n".join(f"    (contain_region (:target {name}_1))" for name in receptacles)
    regions = "\n".join(f"    (place_{i} {rectangle(place)})" for i, place in enumerate(PLACES))
    init = [f"(On {name}_1 main_table_place_{i})" for i, name in enumerate(objects)]
    init += [f"(On {name}_1 main_table_{room})" for name, room in zip(receptacles, rooms, strict=True)]
    there = [f"{name}_1 - {name}" for name in (*objects, *receptacles)]
    return f"""(define (problem LIBERO_Tabletop_Manipulation)
  (:domain robosuite)
  (:language {task.language})
  (:regions
{standing}
{regions}
{containing})
  (:fixtures main_table - table)
  (:objects {" ".join(there)})
  (:obj_of_interest {task.target} {task.into}_1)
  (:init {" ".join(init)})
  (:goal (And (In {task.target} {task.into}_1_contain_region))))
"""


def scene_files() -> dict[str, str]:
    """All generated files of the suite, by name relative to the asset folder."""
    assets = robosuite_assets()
    files = {
        "scenes/emb_table.xml": _arena_xml(assets),
        "emb_basket.xml": _tub_xml("emb_basket", "0.72 0.53 0.30 1", 0.085, 0.045),
        "emb_tray.xml": _tub_xml("emb_tray", "0.25 0.27 0.32 1", 0.08, 0.012, reach=0.045),
        "emb_green_block.xml": _solid_xml(
            "greenblock", "box", (0.022, 0.022, 0.022), "0.1 0.6 0.15 1", 0.022
        ),
        "emb_blue_cylinder.xml": _solid_xml("bluecylinder", "cylinder", (0.024, 0.03), "0.1 0.2 0.8 1", 0.03),
        "emb_red_block.xml": _solid_xml("redblock", "box", (0.02, 0.02, 0.03), "0.8 0.1 0.1 1", 0.03),
        "emb_yellow_cylinder.xml": _solid_xml(
            "yellowcylinder", "cylinder", (0.02, 0.035), "0.9 0.75 0.1 1", 0.035
        ),
        "emb_white_box.xml": _solid_xml("whitebox", "box", (0.03, 0.018, 0.022), "0.9 0.9 0.9 1", 0.022),
    }
    return files | {
        f"{task.name}.bddl": _bddl(task, suite) for suite in SUITES.values() for task in suite.tasks
    }


def write_scenes() -> Path:
    """Writes the suite's files into a folder named by their content; returns the folder."""
    files = scene_files()
    digest = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:12]
    folder = cache_folder() / f"scenes-{digest}"
    (folder / "scenes").mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        write_atomically(folder / name, text)
    return folder


def register_objects(folder: Path) -> None:
    """Makes the suite's categories known to LIBERO's object registry (once per process)."""
    from libero.libero.envs.base_object import OBJECTS_DICT, register_object
    from robosuite.models.objects import MujocoXMLObject

    can = robosuite_assets() / "objects" / "can.xml"
    sources = {"EmbCan": (can, True)}
    own = {name for name in (*RECEPTACLES, *(thing.category for thing in THINGS)) if name != "emb_can"}
    for name in sorted("".join(part.capitalize() for part in category.split("_")) for category in own):
        snake = re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower()
        sources[name] = (folder / f"{snake}.xml", False)

    def make(class_name: str, path: Path, duplicate: bool) -> type:
        category = re.sub(r"(?<!^)([A-Z])", r" \1", class_name).lower()

        def initialise(self: Any, name: str | None = None, obj_name: str | None = None) -> None:
            MujocoXMLObject.__init__(
                self,
                str(path),
                name=name,
                joints=[{"type": "free", "damping": "0.0005"}],
                obj_type="all",
                duplicate_collision_geoms=duplicate,
            )
            self.category_name = category.replace(" ", "_")
            self.rotation = (0.0, 0.0)
            self.rotation_axis = "z"
            self.object_properties = {"vis_site_names": {}}

        return type(class_name, (MujocoXMLObject,), {"__init__": initialise})

    for class_name, (path, duplicate) in sources.items():
        if re.sub(r"(?<!^)([A-Z])", r"_\1", class_name).lower() not in OBJECTS_DICT:
            register_object(make(class_name, path, duplicate))
