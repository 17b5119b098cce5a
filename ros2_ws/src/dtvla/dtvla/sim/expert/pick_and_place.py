"""Reads LIBERO's goals as jobs for the expert: what to grasp where, how high to carry, when to let go.

Everything comes from the collision shapes as they stand when the episode begins, so no object needs a
table of its own. What the expert cannot do is said in a sentence: it has no hands for drawers and knobs.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from dtvla.errors import InputError
from dtvla.sim.env import Observation, SimEnv
from dtvla.sim.expert.scripted_expert import PickAndPlacePlan
from dtvla.sim.geometry import bounds

WIDEST_M = 0.070  # of what the gripper takes around its middle; it opens by 80 mm
DEEPEST_M = 0.028  # how far below a thing's top the fingers close; deeper, the hand would touch it
RIM_M = (0.008, 0.022)  # a wide, open thing is taken by its rim: so far inside its edge, so far below
CLEAR_M = 0.03  # between what is carried and what is passed over
ABOVE_WALLS_M = 0.05  # the gripper above the walls of a container when it lets go
SET_DOWN_M = 0.010  # from here the object falls
PADS_M = 0.010  # half the height of the fingers' pads
# Steps for which the fingers close at least. A thin rim is reached late; thick things need no more than the
# expert's own, and cartons squeezed for longer stuck to the opened fingers (9 of 10 milk cartons).
SQUEEZE_RIM, SQUEEZE = 12, 3
PATIENCE = 25  # steps; 5 cm take about 12
# The open gripper below and above the grasp point: (half across the fingers, half along them, low, high).
HAND = ((0.065, 0.014, -0.010, 0.045), (0.105, 0.035, 0.055, 0.16))


class CannotPlan(InputError):
    """The expert cannot do what a task asks for; the message says why."""


@dataclass(frozen=True)
class Grasp:
    """Where the fingers close: metres, base frame; `width` is what stands between them there."""

    point: NDArray[np.float64]  # [3]
    yaw: float  # 0: the fingers close along y; a quarter turn: along x
    width: float
    rim: bool


def pick_and_place_plans(env: SimEnv, obs: Observation) -> list[tuple[tuple[str, ...], PickAndPlacePlan]]:
    """The task's goals, each with its job, in the order of the goal.

    Args:
        env: the environment, just reset.
        obs: its first observation.

    Raises:
        NoJob: the goal asks for more than picking and placing, or for a thing that cannot be grasped.
    """
    found = []
    for goal in env.goals:
        if goal[0] not in ("on", "in") or goal[1] not in obs.objects:
            raise CannotPlan(f"The expert only picks and places; it cannot '{' '.join(goal)}'.")
        found.append((goal, _job(env, obs, goal)))
    return found


def _job(env: SimEnv, obs: Observation, goal: tuple[str, ...]) -> PickAndPlacePlan:
    kind, target, place = goal
    places = obs.regions | obs.objects
    shapes, others = env.shapes(target), _others(env, obs, target)
    grasp = best_grasp(shapes, others)
    offset = grasp.point - obs.objects[target]
    below = grasp.point[2] - bounds(shapes)[0, 2]  # from the object's lowest point to the gripper
    container = env.shapes(env.part_of(place))
    surface = _surface(container, places[place])
    if kind == "in" and surface > places[place][2] + CLEAR_M:
        raise CannotPlan(
            f"The expert puts things in from above, and '{place}' is covered; it opens no drawers."
        )
    drop_z = surface + below + SET_DOWN_M
    if kind == "in" and len(container):
        drop_z = max(drop_z, bounds(container)[1, 2] + ABOVE_WALLS_M)
    way = np.stack([obs.objects[target], grasp.point, places[place], places[place] + offset])[:, :2]
    carry_z = max(_highest(others, way) + below + CLEAR_M, drop_z + 0.02, grasp.point[2] + 0.05)
    return PickAndPlacePlan(
        target,
        noun=target.rsplit("_", 1)[0].replace("_", " "),
        place=place,
        grasp=(float(offset[0]), float(offset[1]), float(offset[2])),
        opening=(0.002, 0.035) if grasp.rim else (0.4 * grasp.width, grasp.width + 0.010),
        slack=0.10 if grasp.rim else 0.07,  # it may turn between the fingers
        carry=float(carry_z - places[place][2]),
        drop=float(drop_z - places[place][2]),
        yaw=grasp.yaw,
        aim=True,
        squeeze=SQUEEZE_RIM if grasp.rim else SQUEEZE,
        patience=PATIENCE,
    )


def best_grasp(shapes: NDArray[np.float64], others: NDArray[np.float64]) -> Grasp:
    """The least crowded way to take an object from above.

    Args:
        shapes: its collision boxes [G, 8, 3], metres, base frame.
        others: those of everything else.

    Raises:
        NoJob: it is too wide for the gripper and too flat to be taken by its rim.
    """
    found = [*_around_the_middle(shapes), *_by_the_rim(shapes)]
    if not found:
        raise CannotPlan("The object is wider than the gripper opens, and too flat to be taken by its rim.")
    return min(found, key=lambda grasp: crowding(grasp, others))  # the first of equals: no turn, no rim


def _around_the_middle(shapes: NDArray[np.float64]) -> list[Grasp]:
    lowest, highest = bounds(shapes)
    z = max((lowest[2] + highest[2]) / 2, highest[2] - DEEPEST_M)
    z = max(z, lowest[2] + PADS_M / 2)
    slab = _between(shapes, z - PADS_M, z + PADS_M)
    low, high = bounds(slab)
    middle = np.array([*(low + high)[:2] / 2, z])
    sizes = ((0.0, high[1] - low[1]), (np.pi / 2, high[0] - low[0]))
    return [Grasp(middle, yaw, float(size), False) for yaw, size in sizes if size < WIDEST_M]


def _by_the_rim(shapes: NDArray[np.float64]) -> list[Grasp]:
    low, high = bounds(shapes)
    inside, below = RIM_M
    if high[2] - low[2] < below + PADS_M:
        return []
    middle = (low + high) / 2
    grasps = []
    for (axis, yaw), side in product(((1, 0.0), (0, np.pi / 2)), (1.0, -1.0)):
        if high[axis] - low[axis] < WIDEST_M:
            continue
        point = np.array([middle[0], middle[1], high[2] - below])
        point[axis] += side * ((high - low)[axis] / 2 - inside)
        grasps.append(Grasp(point, yaw, 2 * inside, True))
    return grasps


def crowding(grasp: Grasp, others: NDArray[np.float64]) -> float:
    """The volume (whole cubic centimetres) that the open hand and other things would share at a grasp."""
    total = 0.0
    for across, along, low, high in HAND:
        x, y = (along, across) if grasp.yaw == 0 else (across, along)
        lowest, highest = grasp.point + np.array([[-x, -y, low], [x, y, high]])
        shared = np.minimum(others.max(1), highest) - np.maximum(others.min(1), lowest)
        total += float(np.prod(np.clip(shared, 0, None), axis=1).sum())
    return round(1e6 * total)


def _others(env: SimEnv, obs: Observation, target: str) -> NDArray[np.float64]:
    """The boxes [G, 8, 3] of everything that stands around but the target."""
    names = sorted({*obs.objects, *obs.regions} - {target})
    return np.concatenate([env.shapes(name) for name in names])


def _between(shapes: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """The boxes that reach into a range of heights."""
    inside: NDArray[np.float64] = shapes[(shapes[:, :, 2].min(1) < high) & (shapes[:, :, 2].max(1) > low)]
    return inside


def _surface(shapes: NDArray[np.float64], point: NDArray[np.float64]) -> float:
    """The height of the highest box at a point [3] of the plane; the point's own where there is none."""
    xy = point[:2]
    inside = (shapes[:, :, :2].min(1) <= xy).all(1) & (shapes[:, :, :2].max(1) >= xy).all(1)
    return float(shapes[inside][:, :, 2].max()) if inside.any() else float(point[2])


def _highest(shapes: NDArray[np.float64], way: NDArray[np.float64]) -> float:
    """The top of the highest box near the way [P, 2] (its surrounding rectangle, 8 cm wider)."""
    low, high = way.min(0) - 0.08, way.max(0) + 0.08
    near = (shapes[:, :, :2].max(1) > low).all(1) & (shapes[:, :, :2].min(1) < high).all(1)
    return float(shapes[near][:, :, 2].max()) if near.any() else -np.inf
