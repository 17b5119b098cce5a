"""`make soak MINUTES=20`: the whole graph in real time, and what it uses. Writes soak.md and a plot.

Per process and five seconds: resident memory, threads, open files, sockets; beside that /dev/shm and every
decision's latency. Episodes follow each other on one task; every few minutes the task changes, since a
new scene is another thing than a reset of the same one. The second scene of a process takes about 100 MB for
good, those after it nothing more: all tasks are visited within the warm-up, and each change after that must
cost nothing.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from dtvla.bringup import domains
from dtvla.bringup.shared_memory import SHM, stem_of
from tests.faults.harness import Harness
from tests.faults.report import machine

ROOT = Path(__file__).resolve().parents[2]
SAMPLE_S = 5.0
WARM_UP = 0.2  # share of the time that does not count
TASK_S = 300.0
TASKS = 3
PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 1e6
FLAT_MB_PER_HOUR = 30.0  # a slope that is certainly above this is growth
DRIFT = 0.2  # of the latency's median
US = "soak (monitor)"


@dataclass(frozen=True)
class Use:
    """What one process uses at one moment."""

    rss_mb: float
    threads: int
    files: int
    sockets: int


@dataclass
class Series:
    """Everything that was measured, by time since the start (s)."""

    times: list[float] = field(default_factory=list)
    uses: dict[str, list[Use]] = field(default_factory=dict)
    shared: list[int] = field(default_factory=list)
    latencies: list[tuple[float, float]] = field(default_factory=list)  # time, s
    tasks: list[float] = field(default_factory=list)  # when the task changed
    episodes: int = 0
    starts: int = 0

    def steady(self) -> tuple[float, float]:
        """The time that counts: behind the warm-up."""
        return WARM_UP * self.times[-1], self.times[-1]

    def minutes(self, name: str, what: str) -> tuple[list[float], list[float]]:
        """Time (min) and mean of a figure, for each minute that counts."""
        begin, _ = self.steady()
        found: dict[int, list[float]] = {}
        for at, use in zip(self.times, self.uses[name], strict=True):
            if at >= begin:
                found.setdefault(int(at // 60), []).append(float(getattr(use, what)))
        return [minute + 0.5 for minute in found], [statistics.fmean(values) for values in found.values()]


def use_of(pid: int) -> Use | None:
    """What a process uses now; None when it is gone."""
    folder = Path(f"/proc/{pid}")
    try:
        rss = int((folder / "statm").read_text().split()[1]) * PAGE_MB
        status = (folder / "status").read_text()
        links = [os.readlink(link) for link in (folder / "fd").iterdir()]
    except OSError:
        return None
    threads = int(status.split("Threads:")[1].split()[0])
    return Use(rss, threads, len(links), sum(link.startswith("socket:") for link in links))


def slope(times: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Least squares: slope per unit of time, and half of its 95 % interval (infinite below four points)."""
    if len(times) < 4:
        return 0.0, float("inf")
    from scipy.stats import t

    x, y = np.asarray(times), np.asarray(values)
    centred = x - x.mean()
    gradient = float(centred @ y / (centred @ centred))
    rest = y - y.mean() - gradient * centred
    spread = float(np.sqrt(rest @ rest / (len(x) - 2) / (centred @ centred)))
    return gradient, float(t.ppf(0.975, len(x) - 2)) * spread


def growth_between(series: Series, name: str) -> list[float]:
    """Growth of a process's memory (MB per hour) within each stretch on one task, by least squares."""
    marks = [*series.tasks, series.times[-1] + 1.0]
    begin, found = series.steady()[0], []
    for first, last in pairwise(marks):
        inside = [
            (at / 3600, use.rss_mb)
            for at, use in zip(series.times, series.uses[name], strict=True)
            if max(first + 30.0, begin) <= at < last
        ]
        if len(inside) >= 12:
            found.append(slope(*zip(*inside, strict=True))[0])
    return found


def measure(minutes: float, folder: Path, console: Console) -> Series:
    """Runs the graph and looks at it."""
    series = Series()
    with domains.reserve() as reservation:
        columns = [TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()]
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task("starting the graph", total=minutes * 60)
            with Harness(folder, reservation.domain) as harness:
                _watch(
                    harness,
                    series,
                    minutes * 60,
                    lambda done, words: progress.update(bar, completed=done, description=words),
                )
    return series


def _watch(harness: Harness, series: Series, length_s: float, tell: object) -> None:
    start_s, client = time.monotonic(), harness.client
    next_s, next_task_s, task, counted = 0.0, 0.0, -1, 0
    episode, seed = None, 30_000
    while (at := time.monotonic() - start_s) < length_s:
        if at >= next_task_s:
            task, seed = task + 1, seed + 1000
            client.reset_scene("embedded", task % TASKS, seed)
            series.tasks.append(at)
            warming = len(series.tasks) < TASKS
            next_task_s += WARM_UP * length_s / TASKS if warming else max(TASK_S, length_s / 12)
        harness.spin(0.2)
        latencies = client.latencies_s
        series.latencies += [(at, latency) for latency in latencies[counted:]]
        counted = len(latencies)
        state = client.state
        if state is not None and (state.task, state.episode) != episode:
            episode = (state.task, state.episode)
            series.episodes += 1
        if at >= next_s:
            next_s += SAMPLE_S
            _sample(harness, series, at)
            tell(at, f"{series.episodes} episodes, {counted} decisions")  # type: ignore[operator]
        if harness.dead():
            raise RuntimeError(f"{', '.join(harness.dead())} died; logs are in {harness.folder}.")
    series.starts = harness.monitor.record.starts


def _sample(harness: Harness, series: Series, at: float) -> None:
    pids = {name: process.pid for name, process in harness.processes.items()} | {US: os.getpid()}
    series.times.append(at)
    for name, pid in pids.items():
        use = use_of(pid)
        if use is not None:
            series.uses.setdefault(name, []).append(use)
    series.shared.append(sum(stem_of(path.name) is not None for path in SHM.iterdir()))


def judge(series: Series) -> tuple[list[list[str]], list[str]]:
    """Rows of the table, and sentences about what is not as it should be."""
    rows, faults = [], []
    for name in series.uses:
        times, memory = series.minutes(name, "rss_mb")
        gradient, half = (60 * figure for figure in slope(times, memory))
        counts = []
        for what in ("threads", "files", "sockets"):
            values = series.minutes(name, what)[1]
            first, last = round(values[0]), round(values[-1])
            counts.append(f"{first}" if first == last else f"{first} → {last}")
            if values[-1] > values[0] + 0.5 and values[-1] >= max(values) - 0.5 and name != US:
                faults.append(
                    f"{name} has more {what} at the end ({last}) than behind the warm-up ({first})."
                )
        within = growth_between(series, name)
        middle = statistics.median(within) if within else float("nan")
        rows.append(
            [
                name,
                f"{memory[0]:.0f} → {memory[-1]:.0f}",
                f"{gradient:+.1f} ± {half:.1f}",
                f"{middle:+.1f}",
                *counts,
            ]
        )
        if gradient - half > FLAT_MB_PER_HOUR and name != US:
            faults.append(
                f"{name} grows by {gradient:.0f} ± {half:.0f} MB per hour ({middle:+.0f} MB per hour "
                f"on one task, "
                "without the changes of task)."
            )
    return rows, faults


def latency_minutes(series: Series) -> tuple[list[float], list[float], list[float]]:
    """Time (min), median and 99th percentile (ms) of the decisions of each minute."""
    found: dict[int, list[float]] = {}
    for at, latency in series.latencies:
        found.setdefault(int(at // 60), []).append(1000 * latency)
    keys = sorted(found)
    return (
        [key + 0.5 for key in keys],
        [float(np.percentile(found[key], 50)) for key in keys],
        [float(np.percentile(found[key], 99)) for key in keys],
    )


def write(series: Series, results: Path, pictures: Path, command: str) -> list[str]:
    """Writes the page and the plot; returns what is not as it should be."""
    about = machine()
    rows, faults = judge(series)
    minutes, medians, tails = latency_minutes(series)
    counted = [index for index, minute in enumerate(minutes) if minute * 60 >= series.steady()[0]]
    gradient, half = slope([minutes[i] for i in counted], [medians[i] for i in counted])
    span = minutes[-1] - minutes[counted[0]] if counted else 0.0
    level = statistics.median(medians[i] for i in counted) if counted else float("nan")
    if (gradient - half) * span > DRIFT * level:
        faults.append(f"Latency drifts by {gradient:+.2f} ± {half:.2f} ms per minute.")
    shm = series.shared[len(series.shared) // 5 :]
    lines = [
        "# Soak",
        "",
        f"Written by `{command}` on {about['date']}: {series.times[-1] / 60:.0f} minutes in real time, "
        f"{series.episodes} episodes, {len(series.tasks) - 1} changes of task, "
        f"{len(series.latencies)} decisions, "
        f"{series.starts} start of the controller.",
        f"{about['cpu']}, {about['cores']} cores, {about['system']}; load average at the end "
        f"{about['load']}.",
        "",
        f"What counts is the time behind a warm-up of {100 * WARM_UP:.0f} %. Slopes are least "
        f"squares over the means "
        "of minutes, with their 95 % interval.",
        "",
        "![memory, latency, threads and files](../pictures/soak.png)",
        "",
        "| process | memory, MB | growth, MB per hour | on one task, MB per hour | threads | open "
        "files | sockets |",
        "|---|---|---|---|---|---|---|",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        'Growth counts everything; "on one task" is the median of the stretches between two changes of task '
        "(without their first 30 s): what resets of the same scene cost.",
        "",
        f"- Files of Fast DDS in /dev/shm: {shm[0]} → {shm[-1]} (of the whole machine; other graphs "
        f"count too).",
        f"- Latency of a decision: median {level:.0f} ms, slope {gradient:+.2f} ± {half:.2f} ms per "
        f"minute; 99 % below "
        f"{max(tails[i] for i in counted):.0f} ms in every minute."
        if counted
        else "",
        "",
        "**Not as it should be:** " + " ".join(faults)
        if faults
        else "**Flat**: no growth beyond "
        f"{FLAT_MB_PER_HOUR:g} MB per hour, no leaked threads, files or sockets, no drift of latency.",
    ]
    results.mkdir(parents=True, exist_ok=True)
    pictures.mkdir(parents=True, exist_ok=True)
    (results / "soak.md").write_text("\n".join(lines) + "\n")
    plot(series, pictures / "soak.png")
    return faults


def plot(series: Series, file: Path) -> None:
    """Memory, latency, threads and files over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 9), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True)
    at = np.asarray(series.times) / 60
    for name, uses in series.uses.items():
        axes[0].plot(at, [use.rss_mb for use in uses], label=name)
        axes[2].plot(at, [use.threads + use.files for use in uses], label=name)
    minutes, medians, tails = latency_minutes(series)
    axes[1].plot(minutes, medians, "o-", label="median")
    axes[1].plot(minutes, tails, ".--", label="99 %")
    for axis, title in zip(
        axes,
        ("resident memory, MB", "latency of decisions per minute, ms", "threads and open files"),
        strict=True,
    ):
        for index, mark in enumerate(series.tasks):
            axis.axvline(mark / 60, color="0.8", zorder=0, label="change of task" if index == 0 else None)
        axis.axvspan(0, series.steady()[0] / 60, color="0.95", zorder=-1)
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    axes[-1].set_xlabel("minutes (grey: warm-up)")
    figure.savefig(file, dpi=110)


def main(
    minutes: float = 20.0,
    results: Path = ROOT / "docs/results",
    pictures: Path = ROOT / "docs/pictures",
    output: Path | None = None,
) -> int:
    """Runs the whole graph in real time and watches what it uses. Exit status 1: a leak.

    Args:
        minutes: How long. Slopes need 20; a few minutes only show that it runs.
        results: Folder for soak.md.
        pictures: Folder for soak.png.
        output: Folder for logs and recordings. Default: a temporary one.
    """
    console = Console()
    folder = output or Path(tempfile.mkdtemp(prefix="dtvla_soak_"))
    series = measure(minutes, folder, console)
    faults = write(series, results, pictures, f"make soak MINUTES={minutes:g}")
    for sentence in faults:
        console.print(sentence, style="bold red", highlight=False)
    console.print(f"Written: {results / 'soak.md'}, {pictures / 'soak.png'}. Logs: {folder}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
