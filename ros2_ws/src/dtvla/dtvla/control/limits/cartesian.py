"""Limits as pure functions: every number that comes from outside passes through here.

A check returns None, or one plain sentence that says what was wrong and what follows from it.
Figures of the Panda arm: libfranka `rate_limiting.h` and its data sheet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtvla.control.action_chunk import NS_PER_S, Chunk

MAX_HORIZON = 1000


@dataclass(frozen=True)
class Limits:
    """What the controller lets through.

    The defaults are LIBERO's own full scale, so that a benchmark runs unchanged; on an arm the
    parameters of the controller node are set lower (libfranka allows the Panda 1.7 m/s, 2.5 rad/s).

    Attributes:
        max_linear_velocity_m_s: length of a translation divided by the period.
        max_angular_velocity_rad_s: angle of a rotation divided by the period.
        min_gripper_opening_m, max_gripper_opening_m: range of the gripper.
        refuse_factor: a chunk that asks for more than this multiple of a velocity limit is refused as
            nonsense instead of being clamped.
    """

    max_linear_velocity_m_s: float = 1.8
    max_angular_velocity_rad_s: float = 18.0
    min_gripper_opening_m: float = 0.0
    max_gripper_opening_m: float = 0.08
    refuse_factor: float = 4.0


def clamp_length(vector: NDArray[np.float64], longest: float) -> NDArray[np.float64]:
    """`vector` [3], shortened to `longest` with its direction kept; unchanged when it is short enough."""
    length = float(np.linalg.norm(vector))
    if length <= longest:
        return vector
    return np.asarray(vector * (longest / length))


def clamp_gripper(opening_m: float, limits: Limits) -> float:
    """`opening_m` moved into the gripper's range."""
    return min(max(opening_m, limits.min_gripper_opening_m), limits.max_gripper_opening_m)


def check_layout(
    *,
    horizon: int,
    execute_steps: int,
    period_s: float,
    sizes: dict[str, int],
) -> str | None:
    """Checks the counts of a chunk before its arrays are given their shapes.

    Args:
        horizon: rows the chunk says it has.
        execute_steps: rows it says are to be executed.
        period_s: time between two rows.
        sizes: lengths of the flat arrays by name (translations, rotations, gripper_openings, raw_actions).
    """
    if not 1 <= horizon <= MAX_HORIZON:
        return f"The chunk says it has {horizon} rows; 1 to {MAX_HORIZON} are possible."
    if not 1 <= execute_steps <= horizon:
        return f"The chunk wants {execute_steps} of its {horizon} rows executed; 1 to {horizon} are possible."
    if not (math.isfinite(period_s) and 0.001 <= period_s <= 10.0):
        return f"The chunk's control period is {period_s} s; 0.001 to 10 s are possible."
    wanted = {"translations": 3, "rotations": 3, "gripper_openings": 1, "raw_actions": 7}
    for name, width in wanted.items():
        if sizes[name] != horizon * width:
            return f"The chunk's {name} hold {sizes[name]} numbers; {horizon} rows need {horizon * width}."
    return None


def check_chunk(chunk: Chunk, limits: Limits) -> str | None:
    """Checks the numbers of a chunk: finite, and not absurdly far outside the limits."""
    arrays = {
        "translations": chunk.translations,
        "rotations": chunk.rotations,
        "gripper_openings": chunk.gripper_openings,
        "raw_actions": chunk.raw_actions,
    }
    for name, array in arrays.items():
        bad = np.argwhere(~np.isfinite(array))
        if len(bad):
            row = int(bad[0][0])
            return f"The chunk's {name} hold a value in row {row} that is not a finite number."
    seconds = chunk.period_ns / NS_PER_S
    for name, array, limit, unit in (
        ("translation", chunk.translations, limits.max_linear_velocity_m_s, "m"),
        ("rotation", chunk.rotations, limits.max_angular_velocity_rad_s, "rad"),
    ):
        lengths = np.linalg.norm(array, axis=1)
        row = int(lengths.argmax())
        most = limit * seconds * limits.refuse_factor
        if lengths[row] > most:
            return (
                f"Row {row} of the chunk asks for a {name} of {lengths[row]:.3g} {unit} in one period; "
                f"more than {most:.3g} {unit} is taken for nonsense."
            )
    return None


def check_age(stamp_ns: int, now_ns: int, max_age_s: float) -> str | None:
    """Checks that a stamp is neither older than `max_age_s` nor from the future by more than that."""
    age_s = (now_ns - stamp_ns) / NS_PER_S
    if age_s > max_age_s:
        return f"The chunk's image is {age_s:.2f} s old; the limit is {max_age_s:g} s."
    if age_s < -max_age_s:
        return f"The chunk's image lies {-age_s:.2f} s in the future; check that all nodes use one clock."
    return None
