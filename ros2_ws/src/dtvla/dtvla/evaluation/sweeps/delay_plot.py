"""The picture of a delay sweep: one panel per figure, one line per way to execute chunks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dtvla.evaluation.sweeps.delay_sweep import COMPLETION, FIGURES, WAYS, DelayPoint

# Colours that are told apart without red and green (Okabe and Ito).
LOOKS = {
    "open_loop": ("#000000", "o", "-"),
    "receding": ("#0072B2", "s", "-"),
    "receding-spline": ("#56B4E9", "s", "--"),
    "ensembled": ("#D55E00", "^", "-"),
    "ensembled-spline": ("#E69F00", "^", "--"),
}
PANELS = (None, COMPLETION, "held", "jerk_rms_m_s3", "jump_mean_m_s", "path_m")  # None: success
ASIDE = 0.06  # lines stand beside each other, so that all bars are seen


def draw_delays(path: Path, points: Sequence[DelayPoint], title: str) -> None:
    """Draws a sweep and saves it as `path`; bars are 95 % intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.6), layout="constrained")
    delays = sorted({point.delay_s for point in points})
    ways = [way for way in WAYS if any(point.way == way for point in points)]
    for panel, key in zip(figure.subplots(2, 3).flat, PANELS, strict=True):
        for number, way in enumerate(ways):
            own = [point for point in points if point.way == way]
            aside = ASIDE * (number - (len(ways) - 1) / 2)
            _line(panel, [delays.index(point.delay_s) + aside for point in own], own, key)
        panel.set_title("success" if key is None else FIGURES[key], fontsize=10)
        panel.set_xticks(range(len(delays)), [f"{1000 * delay:g}" for delay in delays])
        panel.grid(axis="y", color="0.9")
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_ylim(bottom=0)
        if key is None:
            panel.set_ylim(-0.02, 1.02)
            panel.set_yticks([0, 0.25, 0.5, 0.75, 1.0], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    for panel in figure.axes[3:]:
        panel.set_xlabel("from picture to chunk (ms)")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(ways), frameon=False)
    figure.suptitle(title, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def _line(panel: Any, places: list[float], points: list[DelayPoint], key: str | None) -> None:
    values, bars = [], []
    for point in points:
        if key is None:
            value, (low, high) = point.solved / point.episodes, point.interval
        else:
            value, low, high = vars(point.figures[key]).values()
        values.append(value)
        bars.append((max(0.0, value - low), max(0.0, high - value)))
    colour, marker, style = LOOKS[points[0].way]
    panel.errorbar(
        places,
        values,
        yerr=list(zip(*bars, strict=True)),
        color=colour,
        marker=marker,
        linestyle=style,
        markersize=5,
        linewidth=1.3,
        elinewidth=0.8,
        capsize=2,
        label=points[0].way.replace("-", ", ").replace("_", " "),
    )
