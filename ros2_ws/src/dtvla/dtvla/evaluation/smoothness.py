"""How smoothly an arm moved in an episode, from the gripper's measured positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Smoothness:
    """Figures of one episode; finite differences over control periods.

    Attributes:
        path_m: length of the gripper's way.
        jerk_rms_m_s3, jerk_max_m_s3: third differences of its position; 0 below four positions.
        jump_mean_m_s, jump_max_m_s: by how much its velocity changed where one decision took over from
            another; 0 when none did.
        command_jump_mean_m_s: the same of the commanded velocity, before the simulated arm smooths it.
        held: share of the control periods in which the arm was told to stay.
    """

    path_m: float
    jerk_rms_m_s3: float
    jerk_max_m_s3: float
    jump_mean_m_s: float
    jump_max_m_s: float
    command_jump_mean_m_s: float
    held: float

    @classmethod
    def of(
        cls,
        positions: Sequence[NDArray[np.float64]],
        commands: Sequence[NDArray[np.float64]],
        seams: Sequence[int],
        held: int,
        period_s: float,
    ) -> Smoothness:
        """Measures a motion.

        Args:
            positions: [T + 1, 3] the gripper's, in metres: at the start and after each period.
            commands: [T, 3] commanded translation of each period, in metres.
            seams: periods that are the first of a new decision (the episode's first one is none).
            held: number of periods in which the arm was told to stay.
            period_s: length of a period.
        """
        steps = np.diff(np.reshape(positions, (-1, 3)), axis=0)
        jerk = np.linalg.norm(np.diff(steps, 2, axis=0), axis=1) / period_s**3
        measured, told = (_jumps(each, seams) / period_s for each in (steps, np.reshape(commands, (-1, 3))))
        return cls(
            path_m=float(np.linalg.norm(steps, axis=1).sum()),
            jerk_rms_m_s3=float(np.sqrt(np.mean(jerk**2))) if len(jerk) else 0.0,
            jerk_max_m_s3=float(jerk.max(initial=0.0)),
            jump_mean_m_s=float(measured.mean()) if len(measured) else 0.0,
            jump_max_m_s=float(measured.max(initial=0.0)),
            command_jump_mean_m_s=float(told.mean()) if len(told) else 0.0,
            held=held / max(1, len(steps)),
        )


def _jumps(steps: NDArray[np.float64], seams: Sequence[int]) -> NDArray[np.float64]:
    """Lengths [S] of the change of step [T, 3] at each seam."""
    at = np.array([seam for seam in seams if 0 < seam < len(steps)], np.int64)
    return np.asarray(np.linalg.norm(steps[at] - steps[at - 1], axis=1))
