"""From the benchmark's actions to motions that an arm can make.

A full action of LIBERO says 0.05 m and 0.5 rad per 50 ms: 1 m/s and 10 rad/s. The simulated arm never moves
like that. Its controller (robosuite OSC_POSE) pulls it with a critically damped spring of stiffness kp =
150 towards a goal that is set anew every period at `measured pose + delta`, so a constant action d per
period leads to the velocity v = d sqrt(kp) / 2 less what is covered within the period: about 5.3 d per
second, a quarter of d / 50 ms. Measured in the embedded suite with constant actions: 0.20 to 0.26 of the
translation, 0.20 to 0.24 of a small rotation, 0.13 to 0.20 of a full one (a test measures it again). An arm
that reaches its target poses must therefore be told a quarter of the deltas, or it moves four times as far
per period as the arm on which the policy was trained. And that quarter of 10 rad/s is just what Franka
allows (2.5 rad/s): the same factor answers both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from dtvla.control.action_chunk import Chunk
from dtvla.errors import InputError

LIBERO_FULL_SCALE_M = 0.05
LIBERO_FULL_SCALE_RAD = 0.5


@dataclass(frozen=True)
class HardwareScale:
    """Factors (0, 1] from the benchmark's deltas to the arm's. The same for all sizes: directions stay.

    Attributes:
        translation: of the metres.
        rotation: of the radians.
    """

    translation: float
    rotation: float

    def __post_init__(self) -> None:
        for name, factor in vars(self).items():
            if not 0 < factor <= 1:
                raise InputError(f"The factor of the {name} is {factor}; it must lie in (0, 1].")


def rotation_scale(
    max_angular_velocity_rad_s: float, period_s: float, full_scale_rad: float = LIBERO_FULL_SCALE_RAD
) -> float:
    """Largest factor (at most 1) with which a full-scale rotation per `period_s` keeps the velocity.

    For LIBERO's 0.5 rad per 50 ms and Franka's 2.5 rad/s: 0.25. Scaling all rotations alike, rather than
    clamping the large ones, keeps the policy's small corrections in proportion to its large ones.
    """
    figures = (max_angular_velocity_rad_s, period_s, full_scale_rad)
    if not all(math.isfinite(figure) and figure > 0 for figure in figures):
        raise InputError(f"Velocity, period and full scale must be finite and above 0, not {figures}.")
    return min(1.0, max_angular_velocity_rad_s * period_s / full_scale_rad)


def hardware_scale(max_angular_velocity_rad_s: float, period_s: float) -> HardwareScale:
    """One factor for translation and rotation, so that both keep their proportion."""
    factor = rotation_scale(max_angular_velocity_rad_s, period_s)
    return HardwareScale(factor, factor)


def rescale(chunk: Chunk, scale: HardwareScale) -> Chunk:
    """The chunk with smaller deltas; the raw actions stay what the policy said."""
    return replace(
        chunk,
        translations=chunk.translations * scale.translation,
        rotations=chunk.rotations * scale.rotation,
    )


def full_scale_velocities(period_s: float) -> tuple[float, float]:
    """What a full action of LIBERO asks for in m/s and rad/s."""
    return LIBERO_FULL_SCALE_M / period_s, LIBERO_FULL_SCALE_RAD / period_s
