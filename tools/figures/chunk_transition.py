"""A picture of what the seam between two chunks does to the arm.

python -c "from tools.figures.chunk_transition import draw_seam; draw_seam('docs/pictures/seam.png')"
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dtvla.control.action_chunk import NS_PER_S, Chunk
from dtvla.control.chunk_executor import ChunkExecutor, ExecutionMode
from dtvla.control.limits.cartesian import Limits
from dtvla.control.limits.motion import MotionLimiter, MotionLimits, Pose, Twist
from dtvla.control.limits.velocity_profile import RateLimits
from dtvla.control.stopping import StoppingLimits
from dtvla.control.temporal_ensembling import Blending, Transition

PERIOD_NS = 50_000_000
TICK_NS = 2_000_000
LINEAR = RateLimits(0.5, 2.5, 100.0)
ANGULAR = RateLimits(1.0, 5.0, 200.0)
CAPTURES = (0, 4, 8)  # rows at which pictures are taken
LATE_BY_ROWS = 3  # from picture to chunk
STOPS_AFTER_ROWS = 18  # behind the horizon of the last chunk: nothing new comes
DURATION_ROWS = 24

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """One way to execute the same chunks."""

    label: str
    mode: ExecutionMode
    seam: Transition
    limited: bool


CASES = (
    Case("cut", ExecutionMode.RECEDING, Transition.CUT, False),
    Case("ensembled", ExecutionMode.ENSEMBLED, Transition.CUT, False),
    Case("spline", ExecutionMode.RECEDING, Transition.SPLINE, False),
    Case("cut + limiter", ExecutionMode.RECEDING, Transition.CUT, True),
)


def _chunk(number: int, capture_row: int) -> Chunk:
    """A policy that follows one sine, with an opinion of its own in every decision."""
    opinion = np.random.default_rng(number).normal(0.0, 0.0015)
    rows = np.arange(10)
    translations = np.zeros((10, 3))
    translations[:, 0] = 0.008 * np.sin(2 * np.pi * (rows + capture_row + 3) / 24.0) + opinion
    stamp_ns = capture_row * PERIOD_NS
    return Chunk(
        number, stamp_ns, PERIOD_NS, 5, translations, np.zeros((10, 3)), np.full(10, 0.08), np.zeros((10, 7))
    )


def seam_motion(case: Case) -> tuple[Vector, Vector]:
    """Times [n] in s and positions [n] in m along x of an arm that executes the chunks as the case says."""
    executor = ChunkExecutor(
        case.mode,
        Limits(),
        lockstep=False,
        max_age_s=10.0,
        blend=Blending(ensemble_rate=0.7, seam=case.seam),
        stopping=None if case.label == "cut" else StoppingLimits(LINEAR, ANGULAR),
        tick_ns=TICK_NS,
    )
    limiter = MotionLimiter(MotionLimits(LINEAR, ANGULAR), Pose(np.zeros(3), np.eye(3)))
    ticks_per_row = PERIOD_NS // TICK_NS
    arrivals = {row + (LATE_BY_ROWS if row else 0): (n, row) for n, row in enumerate(CAPTURES, 1)}
    positions = [0.0]
    for tick in range(DURATION_ROWS * ticks_per_row):
        if tick % ticks_per_row == 0 and tick // ticks_per_row in arrivals:
            executor.offer(_chunk(*arrivals[tick // ticks_per_row]), tick * TICK_NS)
        command = executor.step(tick * TICK_NS)
        assert command is not None  # only lockstep leaves ticks unanswered
        velocity = command.translation * (NS_PER_S / PERIOD_NS)
        step_m = float(velocity[0]) * TICK_NS / NS_PER_S
        if case.limited:
            request = None if command.hold else Twist(velocity, np.zeros(3))
            step_m = float(limiter.limit(request, TICK_NS / NS_PER_S)[0].translation_m[0])
        positions.append(positions[-1] + step_m)
    return np.arange(len(positions)) * TICK_NS / NS_PER_S, np.array(positions)


def draw_seam(path: str | Path) -> None:
    """Draws position, velocity and acceleration of all cases, one column each, and saves them as `path`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7), layout="constrained")
    axes = figure.subplots(3, len(CASES), sharex=True, sharey="row")
    dt_s = TICK_NS / NS_PER_S
    for column, case in enumerate(CASES):
        times, positions = seam_motion(case)
        velocity, acceleration = np.diff(positions) / dt_s, np.diff(positions, 2) / dt_s**2
        curves = (
            ("position (mm)", times, 1e3 * positions),
            ("velocity (m/s)", times[1:], velocity),
            ("acceleration (m/s²)", times[2:], np.clip(acceleration, -8.0, 8.0)),
        )
        for row, (name, x, y) in enumerate(curves):
            panel = axes[row, column]
            panel.plot(x, y, color="tab:blue", linewidth=1.2)
            for capture in CAPTURES[1:]:
                arrival_s = (capture + LATE_BY_ROWS) * PERIOD_NS / NS_PER_S
                panel.axvline(arrival_s, color="0.6", linewidth=0.8, linestyle=":")
            panel.axvline(
                STOPS_AFTER_ROWS * PERIOD_NS / NS_PER_S, color="tab:red", linewidth=0.8, linestyle=":"
            )
            if column == 0:
                panel.set_ylabel(name)
        peak = np.abs(acceleration).max()
        axes[0, column].set_title(case.label)
        axes[2, column].axhspan(-LINEAR.acceleration, LINEAR.acceleration, color="tab:green", alpha=0.12)
        note = {"transform": axes[2, column].transAxes, "bbox": {"facecolor": "white", "edgecolor": "none"}}
        axes[2, column].text(0.03, 0.05, f"peak {peak:.1f} m/s²", **note)
        axes[2, column].set_xlabel("time (s)")
    figure.suptitle(
        "Overlapping chunks. Dotted grey: one arrives, 150 ms after its picture; red: the last one is over."
        f"\nGreen: the acceleration limit, {LINEAR.acceleration:g} m/s² "
        "(the axis ends at 8 m/s²)",
        fontsize=10,
    )
    figure.savefig(path, dpi=90)
