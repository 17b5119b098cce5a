"""The shapes of a robot model as flat polygons, where the joints put them: to draw it without any viewer."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transforms3d.euler import euler2mat

from dtvla.control.kinematics import Arm

Vector = NDArray[np.float64]
SIDES = 24  # of a cylinder


@dataclass(frozen=True)
class Facet:
    """One flat polygon of a shape.

    Attributes:
        corners: [n, 3] m, in the base frame.
        normal: [3], of length 1, away from the shape.
        colour: RGBA from 0 to 1.
    """

    corners: Vector
    normal: Vector
    colour: tuple[float, ...]


def facets(urdf: str, joints: Mapping[str, float], base: str) -> list[Facet]:
    """All boxes and cylinders that a model shows.

    Args:
        urdf: text of the model.
        joints: positions in rad or m by joint name.
        base: link in whose frame everything is expressed.

    Raises:
        KeyError: a joint without a position.
        ValueError: a shape of another kind.
    """
    model = ET.fromstring(urdf)
    colours = {
        str(each.get("name")): _numbers(each.find("color"), "rgba") for each in model.findall("material")
    }
    found = []
    for link in model.findall("link"):
        if link.find("visual") is None:
            continue
        arm = Arm(urdf, tip=str(link.get("name")), base=base)
        pose = arm.forward(np.array([joints[name] for name in arm.joint_names]))
        for visual in link.findall("visual"):
            origin = visual.find("origin")
            turn = pose.rotation @ euler2mat(*_numbers(origin, "rpy"))
            place = pose.position_m + pose.rotation @ _numbers(origin, "xyz")
            colour = tuple(colours[str(visual.find("material").get("name"))])  # type: ignore[union-attr]
            for polygon in _polygons(visual.find("geometry")):
                corners = polygon @ turn.T + place
                normal = np.cross(corners[1] - corners[0], corners[2] - corners[0])
                normal *= np.sign(normal @ (corners.mean(axis=0) - place)) / np.linalg.norm(normal)
                found.append(Facet(corners, normal, colour))
    return found


def _polygons(geometry: ET.Element | None) -> list[Vector]:
    """The sides of a box or a cylinder around the origin, each [n, 3]."""
    shape = None if geometry is None else next(iter(geometry), None)
    if shape is not None and shape.tag == "box":
        half = _numbers(shape, "size") / 2
        outline = half * np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
        return _prism(outline, half[2])
    if shape is not None and shape.tag == "cylinder":
        angles = np.linspace(0, 2 * np.pi, SIDES, endpoint=False)
        ring = np.stack([np.cos(angles), np.sin(angles), np.zeros(SIDES)], axis=1)
        return _prism(float(shape.get("radius", "nan")) * ring, float(shape.get("length", "nan")) / 2)
    raise ValueError(f"A shape of the robot model is {shape!r}; boxes and cylinders can be drawn.")


def _prism(outline: Vector, half_height: float) -> list[Vector]:
    """A flat outline [n, 3], drawn out to both sides along z."""
    up = np.array([0.0, 0.0, half_height])
    top, bottom = outline + up, outline - up
    ends = np.roll(np.arange(len(outline)), -1)
    sides = [np.array([bottom[i], bottom[j], top[j], top[i]]) for i, j in enumerate(ends)]
    return [top, bottom, *sides]


def _numbers(element: ET.Element | None, name: str) -> Vector:
    text = "0 0 0" if element is None else element.get(name, "0 0 0")
    return np.array([float(value) for value in text.split()])
