"""Success and smoothness against delay, for every way to execute chunks: points and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from dtvla.control.options import ChunkMode, ChunkSeam
from dtvla.errors import InputError
from dtvla.evaluation.results import EpisodeResult, EvalOptions
from dtvla.evaluation.statistics import wilson
from dtvla.sim.env import CONTROL_PERIOD_S

DELAYS_S = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)
COMPLETION = "completion_s"
# What is measured of each episode: the name, and what a person calls it.
FIGURES: Mapping[str, str] = {
    COMPLETION: "time to solve (s)",
    "jerk_rms_m_s3": "jerk, RMS (m/s³)",
    "jerk_max_m_s3": "jerk, largest (m/s³)",
    "jump_mean_m_s": "velocity jump between chunks (m/s)",
    "path_m": "path (m)",
    "held": "told to stay (share of the time)",
}


@dataclass(frozen=True)
class ExecutionVariant:
    """One way to execute chunks, as the controller node's `chunk_mode` and `chunk_seam`."""

    mode: ChunkMode
    seam: ChunkSeam


WAYS: Mapping[str, ExecutionVariant] = {
    "open_loop": ExecutionVariant("open_loop", "cut"),
    "receding": ExecutionVariant("receding", "cut"),
    "receding-spline": ExecutionVariant("receding", "spline"),
    "ensembled": ExecutionVariant("ensembled", "cut"),
    "ensembled-spline": ExecutionVariant("ensembled", "spline"),
}


def points(
    base: EvalOptions, delays_s: Sequence[float] = DELAYS_S, ways: Sequence[str] = tuple(WAYS)
) -> dict[str, EvalOptions]:
    """The evaluations of a sweep by name, such as `receding_200ms`.

    Args:
        base: what they have in common.
        delays_s: seconds from picture to chunk.
        ways: names of `WAYS`.

    Raises:
        InputError: no such way, or an impossible delay.
    """
    unknown = [name for name in ways if name not in WAYS]
    if unknown:
        raise InputError(
            f"There is no way '{unknown[0]}' to execute chunks; there are {', '.join(WAYS)}, or all."
        )
    return {
        f"{name}_{1000 * delay_s:g}ms": replace(
            base, delay=delay_s, chunk_mode=WAYS[name].mode, chunk_seam=WAYS[name].seam
        )
        for delay_s in delays_s
        for name in ways
    }


@dataclass(frozen=True)
class MeanFigure:
    """A mean over episodes with its 95 % interval (Student's t); NaN where there is none."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> MeanFigure:
        """Of any number of values."""
        from scipy.stats import t

        if not len(values):
            return cls(np.nan, np.nan, np.nan)
        mean, count = float(np.mean(values)), len(values)
        if count == 1:
            return cls(mean, np.nan, np.nan)
        half = float(t.ppf(0.975, count - 1) * np.std(values, ddof=1) / np.sqrt(count))
        return cls(mean, mean - half, mean + half)


@dataclass(frozen=True)
class DelayPoint:
    """What came of one way with one delay.

    Attributes:
        way: of `WAYS`.
        delay_s: from picture to chunk.
        episodes, solved: their numbers.
        interval: 95 % interval of the success rate (Wilson).
        figures: by the names of `FIGURES`; the time to solve is of the solved episodes, the rest of all.
    """

    way: str
    delay_s: float
    episodes: int
    solved: int
    interval: tuple[float, float]
    figures: Mapping[str, MeanFigure]

    def to_json(self) -> dict[str, Any]:
        """The point for programs."""
        return asdict(self)


def summarise(
    evaluations: Mapping[str, EvalOptions], results: Mapping[str, list[EpisodeResult]]
) -> list[DelayPoint]:
    """The figures of a sweep, evaluations without any episode left out.

    Args:
        evaluations: options by name.
        results: episodes by the same names; errors do not count.
    """
    found = []
    for name, options in evaluations.items():
        ran = [result for result in results.get(name, []) if not result.error]
        if not ran or options.delay is None or options.delay == "measured":
            continue
        way = ExecutionVariant(options.chunk_mode, options.chunk_seam)
        solved = [result for result in ran if result.success]
        values = {key: [result.motion[key] for result in ran] for key in FIGURES if key != COMPLETION}
        values[COMPLETION] = [result.steps * CONTROL_PERIOD_S for result in solved]
        found.append(
            DelayPoint(
                way=next(key for key, each in WAYS.items() if each == way),
                delay_s=options.delay,
                episodes=len(ran),
                solved=len(solved),
                interval=wilson(len(solved), len(ran)),
                figures={key: MeanFigure.of(values[key]) for key in FIGURES},
            )
        )
    return sorted(found, key=lambda point: (list(WAYS).index(point.way), point.delay_s))


def markdown(found: Sequence[DelayPoint]) -> str:
    """The figures as a table for a document."""
    lines = [
        "| way | delay (ms) | solved | 95 % interval | " + " | ".join(FIGURES.values()) + " |",
        "|---|---|---|---|" + "---|" * len(FIGURES),
    ]
    for point in found:
        low, high = point.interval
        cells = [point.way, f"{1000 * point.delay_s:g}", f"{point.solved} of {point.episodes}"]
        cells += [f"{100 * low:.0f} to {100 * high:.0f} %", *(_cell(point.figures[key]) for key in FIGURES)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(figure: MeanFigure) -> str:
    if np.isnan(figure.mean):
        return "–"
    if np.isnan(figure.low):
        return f"{figure.mean:.3g}"
    return f"{figure.mean:.3g} ± {figure.high - figure.mean:.2g}"
