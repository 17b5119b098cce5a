"""The shapes of the robot models as polygons: where the joints put them, and closed all around."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from dtvla.control.kinematics import read_urdf
from dtvla.control.robots import ROBOTS
from dtvla.resources import resource
from tools.figures.robot_shapes import SIDES, facets

BOX = """<robot name="r"><material name="red"><color rgba="1 0 0 1"/></material>
<link name="base"/><link name="tip">
<visual><origin xyz="0 0 1"/><geometry>{shape}</geometry><material name="red"/></visual></link>
<joint name="j" type="revolute"><parent link="base"/><child link="tip"/><axis xyz="1 0 0"/>
<limit lower="-3" upper="3" velocity="1" effort="1"/></joint></robot>"""


def volume(found: list) -> float:
    """Of a closed body, by the divergence theorem over its outward facets."""
    total = 0.0
    for facet in found:
        corners = facet.corners
        spans = [np.cross(a - corners[0], b - corners[0]) for a, b in pairwise(corners)]
        area = np.linalg.norm(sum(spans)) / 2
        total += area * (facet.normal @ corners[0]) / 3
    return total


def test_a_box_turns_with_its_joint_and_keeps_its_volume() -> None:
    found = facets(BOX.format(shape='<box size="0.2 0.3 0.4"/>'), {"j": np.pi / 2}, "base")
    assert len(found) == 6
    middle = np.mean([facet.corners.mean(axis=0) for facet in found], axis=0)
    np.testing.assert_allclose(middle, [0, -1, 0], atol=1e-9)  # z turned about x
    assert volume(found) == pytest.approx(0.2 * 0.3 * 0.4)
    assert found[0].colour == (1, 0, 0, 1)


def test_a_cylinder_has_the_volume_of_its_prism() -> None:
    found = facets(BOX.format(shape='<cylinder radius="0.1" length="0.5"/>'), {"j": 0.4}, "base")
    assert len(found) == SIDES + 2
    assert volume(found) == pytest.approx(SIDES / 2 * np.sin(2 * np.pi / SIDES) * 0.01 * 0.5)


def test_other_shapes_and_joints_without_position_are_refused() -> None:
    with pytest.raises(ValueError, match="boxes and cylinders"):
        facets(BOX.format(shape='<sphere radius="1"/>'), {"j": 0.0}, "base")
    with pytest.raises(KeyError, match="j"):
        facets(BOX.format(shape='<box size="1 1 1"/>'), {}, "base")


@pytest.mark.parametrize("arm", sorted(ROBOTS))
def test_every_robot_model_can_be_drawn_and_hangs_together(arm: str) -> None:
    robot = ROBOTS[arm]
    middle = np.add(robot.min_joint_position_rad, robot.max_joint_position_rad) / 2
    joints = {f"{arm}_joint{n}": value for n, value in enumerate(middle, 1)}
    joints |= {f"{arm}_finger_joint{n}": 0.02 for n in (1, 2)}
    found = facets(read_urdf(resource(f"urdf/{arm}.urdf.xacro")), joints, f"{arm}_link0")
    places = np.concatenate([facet.corners for facet in found])
    assert np.isfinite(places).all()
    assert np.linalg.norm(places - [0, 0, 0.333], axis=1).max() < 1.5
    np.testing.assert_allclose([np.linalg.norm(facet.normal) for facet in found], 1.0)
