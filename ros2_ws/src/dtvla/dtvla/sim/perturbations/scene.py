"""Changes of a scene: cameras, light and surfaces in MuJoCo's model, and the arm's first pose."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transforms3d.axangles import axangle2mat
from transforms3d.quaternions import mat2quat, quat2mat

AZIMUTH_DEG, ELEVATION_DEG, DISTANCE = 6.0, 3.0, 0.06  # of the camera in front, at strength 1
FIELD_OF_VIEW = 0.10
INTENSITY, TINT, LIGHT_DEG, LIGHT_M = 0.35, 0.15, 10.0, 0.3
SURFACE_TINT = 0.25
SWAPPED_FROM = 2.0  # strength from which on the table has another surface
JOINT_RAD = 0.05
FRONT = "agentview"
FIELDS = (
    "cam_pos",
    "cam_quat",
    "cam_fovy",
    "light_pos",
    "light_dir",
    "light_ambient",
    "light_diffuse",
    "light_specular",
    "mat_rgba",
    "geom_matid",
)
HEADLIGHT = ("ambient", "diffuse", "specular")
Rng = np.random.Generator


class PerturbedScene:
    """A scene whose looks can be changed and restored.

    Args:
        env: robosuite's environment.
    """

    def __init__(self, env: Any) -> None:
        self.env = env
        self.model: Any = env.sim.model._model
        self._fields = {name: np.array(getattr(self.model, name)) for name in FIELDS}
        self._headlight = {name: np.array(getattr(self.model.vis.headlight, name)) for name in HEADLIGHT}

    def restore(self) -> None:
        """Everything as it was at first, but for the arm."""
        for name, values in self._fields.items():
            getattr(self.model, name)[:] = values
        for name, values in self._headlight.items():
            getattr(self.model.vis.headlight, name)[:] = values

    def surroundings(self) -> list[int]:
        """The geometries of floor, walls and table that are seen."""
        import mujoco

        found = []
        for geom in range(self.model.ngeom):
            body = self.model.geom_bodyid[geom]
            name = mujoco.mj_id2name(self.model, mujoco.mjtObj.mjOBJ_BODY, body) or ""
            still = self.model.body_weldid[body] == 0 and self.model.geom_matid[geom] >= 0
            if still and (body == 0 or name == "floor" or "table" in name):
                found.append(geom)
        return found


def camera(scene: PerturbedScene, strength: float, rng: Rng) -> None:
    """The camera in front goes round the point of the table that it looks at, and nearer or farther."""
    model = scene.model
    index = scene.env.sim.model.camera_name2id(FRONT)
    position, axes = np.array(model.cam_pos[index]), quat2mat(model.cam_quat[index])
    ahead = -axes[:, 2]
    table_z = float(scene.env.robots[0].base_pos[2])
    centre = position + ahead * (table_z - position[2]) / ahead[2]
    azimuth, elevation = (
        math.radians(most) * strength * _signed(rng) for most in (AZIMUTH_DEG, ELEVATION_DEG)
    )
    turn = axangle2mat((0.0, 0.0, 1.0), azimuth) @ axangle2mat(axes[:, 0], elevation)
    model.cam_pos[index] = centre + turn @ (position - centre) * (1.0 + DISTANCE * strength * _signed(rng))
    model.cam_quat[index] = mat2quat(turn @ axes)


def fov(scene: PerturbedScene, strength: float, rng: Rng) -> None:
    """All cameras see more, or all see less."""
    scene.model.cam_fovy[:] *= 1.0 + FIELD_OF_VIEW * strength * _signed(rng)


def light(scene: PerturbedScene, strength: float, rng: Rng) -> None:
    """Brighter or darker, tinted, and from elsewhere."""
    model = scene.model
    gain = math.exp(INTENSITY * strength * _signed(rng)) * (1.0 - TINT * strength * rng.uniform(size=3))
    for name in ("light_ambient", "light_diffuse", "light_specular"):
        getattr(model, name)[:] *= gain
    for name in HEADLIGHT:
        getattr(model.vis.headlight, name)[:] *= gain
    turn = axangle2mat(rng.normal(size=3), math.radians(LIGHT_DEG) * strength * _signed(rng))
    model.light_dir[:] = model.light_dir @ turn.T
    model.light_pos[:] += LIGHT_M * strength * rng.uniform(-1, 1, 3)


def background(scene: PerturbedScene, strength: float, rng: Rng) -> None:
    """Floor, walls and table in other colours; the table with the surface of another part, too."""
    model, geoms = scene.model, scene.surroundings()
    materials = sorted({int(model.geom_matid[geom]) for geom in geoms})
    for material in materials:
        model.mat_rgba[material, :3] *= 1.0 - SURFACE_TINT * strength * rng.uniform(size=3)
    if strength >= SWAPPED_FROM and len(materials) > 1:
        shift = int(rng.integers(1, len(materials)))
        others = {own: materials[(i + shift) % len(materials)] for i, own in enumerate(materials)}
        for geom in geoms:
            model.geom_matid[geom] = others[int(model.geom_matid[geom])]


def robot(scene: PerturbedScene, strength: float, rng: Rng) -> None:
    """The arm starts in another pose."""
    sim, arm = scene.env.sim, scene.env.robots[0]
    offset: NDArray[np.float64] = rng.uniform(-JOINT_RAD, JOINT_RAD, len(arm._ref_joint_pos_indexes))
    sim.data.qpos[arm._ref_joint_pos_indexes] += strength * offset
    sim.forward()
    arm.controller.update(force=True)
    arm.controller.reset_goal()


def _signed(rng: Rng) -> float:
    """-1 to -0.5 or 0.5 to 1: every draw makes a difference."""
    return float(rng.choice((-1.0, 1.0)) * rng.uniform(0.5, 1.0))


CHANGES: Mapping[str, Callable[[PerturbedScene, float, Rng], None]] = {
    "camera": camera,
    "fov": fov,
    "light": light,
    "background": background,
    "robot": robot,
}
