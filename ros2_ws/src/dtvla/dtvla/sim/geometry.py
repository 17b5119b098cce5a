"""Sizes of things in a MuJoCo scene, from their collision shapes."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

CORNERS = np.array(list(product((-1.0, 1.0), repeat=3)))  # [8, 3]


def collision_boxes(sim: Any, body: int) -> NDArray[np.float64]:
    """The corners [G, 8, 3] (metres, world frame) of the boxes around each collision shape of a body and of
    all bodies that hang on it.
    """
    model, data = sim.model._model, sim.data._data
    boxes = []
    for geom in range(model.ngeom):
        parent = model.geom_bodyid[geom]
        while parent not in (0, body):
            parent = model.body_parentid[parent]
        if parent != body or not (model.geom_contype[geom] or model.geom_conaffinity[geom]):
            continue
        middle, half = model.geom_aabb[geom].reshape(2, 3)
        turn = data.geom_xmat[geom].reshape(3, 3)
        boxes.append(data.geom_xpos[geom] + (middle + CORNERS * half) @ turn.T)
    return np.array(boxes).reshape(-1, 8, 3)


def bounds(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """The lowest and the highest corner [2, 3] of boxes [G, 8, 3].

    Raises:
        ValueError: there is no box.
    """
    if not boxes.size:
        raise ValueError("There is no collision shape to measure.")
    corners = boxes.reshape(-1, 3)
    return np.stack([corners.min(0), corners.max(0)])
