"""Hybrid attention against its baselines, by the same rows and steps, and what a thought is worth.

    python -m training.ablation --data data/embedded --steps 2000 --out runs/ablation
    python -m training.ablation ... --also rl=runs/rl/tiny/best      # other policies beside them

Trains what is not trained yet, plays what is not played yet, and writes `ablation.json`, `ablation.md` and
`ablation.png`. The same command goes on after an interruption.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from dtvla.evaluation.results import (
    SUMMARY,
    EpisodeResult,
    EvalOptions,
    Journal,
    machine,
    mean_agreement,
    write_results,
)
from dtvla.evaluation.runner import evaluate
from dtvla.evaluation.statistics import wilson
from training.common.commands import run_step, torchrun

# How the policies differ in their training, and how each decides first of all.
TRAINED: dict[str, tuple[list[str], list[str]]] = {
    "hybrid": ([], ["hybrid", "masked", "random", "swapped"]),
    "one by one": (["--actions", "one_by_one"], ["autoregressive"]),
    "no thought": (["--data.thought-dropout", "1.0"], ["none"]),
}
OTHERS = ["hybrid", "masked", "random", "swapped"]
SAID = {
    "hybrid": "its own thought",
    "masked": "an empty thought",
    "random": "random words",
    "swapped": "a thought about another task",
    "autoregressive": "its own thought, actions one by one",
    "none": "no thought, as trained",
}


@dataclass(frozen=True)
class Ablation:
    """What is compared."""

    data: Path = Path("data/embedded")  # what all of them learn from
    out: Path = Path("runs/ablation")
    config: str = "tiny"  # of `training.sft`; what differs is set on top
    steps: int = 2000
    processes: int = 2
    precision: str = "fp32"  # of the training, for all of them
    suites: tuple[str, ...] = ("embedded", "embedded_tray")
    episodes: int = 84  # of each suite and way to decide
    variation: str = ""  # of the world that they are played in
    also: tuple[str, ...] = ()  # NAME=CHECKPOINT: policies that decide as hybrid ones


@dataclass(frozen=True)
class AblationRow:
    """One policy that decided in one way, over all suites."""

    policy: str
    decoding: str
    solved: int
    episodes: int
    interval_95: tuple[float, float]
    by_suite: dict[str, str]
    thoughts_right: dict[str, float]


def train(config: Ablation, console: Console) -> None:
    """Trains the policies that are compared, one after the other.

    Raises:
        RuntimeError: a training failed.
    """
    for name, (changes, _) in TRAINED.items():
        train = [*torchrun(config.processes), "-m", "training.sft", "--threads", "1"]
        train += [
            "--config",
            config.config,
            "--out",
            str(_folder(config, name)),
            "--steps",
            str(config.steps),
        ]
        train += ["--data.folder", str(config.data), "--model.precision", config.precision]
        _run([*train, "--closed-loop.every", "0", *changes], name, console)


def bundles(config: Ablation, console: Console) -> Iterator[tuple[str, Path, list[str]]]:
    """Name, bundle and ways to decide of every policy; exports what is not exported yet.

    Raises:
        RuntimeError: an export failed.
    """
    found = [(name, _folder(config, name) / "last", ways) for name, (_, ways) in TRAINED.items()]
    found += [(name, Path(checkpoint), OTHERS) for name, checkpoint in map(_named, config.also)]
    for name, checkpoint, ways in found:
        bundle = config.out / "bundles" / name.replace(" ", "_")
        if not bundle.is_dir():
            _run(["-m", "model_export", str(checkpoint), "--out", str(bundle)], f"{name}: export", console)
        yield name, bundle, ways


def play(config: Ablation, name: str, bundle: Path, decoding: Any, console: Console) -> AblationRow:
    """The episodes of one policy and way to decide; those that were played before are read."""
    results: list[EpisodeResult] = []
    by_suite = {}
    for suite in config.suites:
        options = EvalOptions(
            str(bundle),
            suite=suite,
            episodes=config.episodes,
            decoding=decoding,
            variation=config.variation,
            workers=os.cpu_count() or 1,
        )
        folder = config.out / "episodes" / f"{bundle.name}-{decoding}-{suite}{config.variation}"
        journal = Journal(folder, options)
        with console.status(f"{name}, {SAID[decoding]}: {suite}"):
            own = evaluate(options, journal.add, journal.finished)
        write_results(folder / SUMMARY, options, own)
        own = [result for result in own if not result.error]
        by_suite[suite] = f"{sum(r.success for r in own)} of {len(own)}"
        results += own
    solved = sum(result.success for result in results)
    interval = wilson(solved, len(results))
    return AblationRow(name, decoding, solved, len(results), interval, by_suite, mean_agreement(results))


def table(rows: list[AblationRow], suites: tuple[str, ...]) -> str:
    """The rows as Markdown."""
    lines = ["| policy | decides with | solved | 95 % interval | " + " | ".join(suites) + " |"]
    lines.append("|---" * (4 + len(suites)) + "|")
    for row in rows:
        low, high = (100 * edge for edge in row.interval_95)
        by_suite = " | ".join(row.by_suite[suite] for suite in suites)
        share = f"{row.solved} of {row.episodes} ({100 * row.solved / row.episodes:.0f} %)"
        lines.append(
            f"| {row.policy} | {SAID[row.decoding]} | {share} | {low:.0f} to {high:.0f} % | {by_suite} |"
        )
    return "\n".join(lines) + "\n"


def draw(path: Path, rows: list[AblationRow], title: str) -> None:
    """Success with intervals as bars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.6 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    places = range(len(rows), 0, -1)
    shares = [row.solved / row.episodes for row in rows]
    edges = [
        [max(0.0, share - row.interval_95[0]) for share, row in zip(shares, rows, strict=True)],
        [max(0.0, row.interval_95[1] - share) for share, row in zip(shares, rows, strict=True)],
    ]
    colours = {"hybrid": "#0072B2", "autoregressive": "#D55E00", "none": "#E69F00"}
    axes.barh(places, shares, xerr=edges, color=[colours.get(r.decoding, "0.7") for r in rows], capsize=3)
    axes.set_yticks(list(places), [f"{row.policy}: {SAID[row.decoding]}" for row in rows])
    axes.set_xlim(0, 1.02)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=10)
    figure.savefig(path, dpi=110)


def main(config: Ablation) -> int:
    """Trains, plays, writes; returns the exit code."""
    console = Console(highlight=False)
    rows: list[AblationRow] = []
    try:
        train(config, console)
        for name, bundle, ways in bundles(config, console):
            for decoding in ways:
                rows.append(play(config, name, bundle, decoding, console))
                console.print(table(rows[-1:], config.suites).splitlines()[-1])
    except (RuntimeError, ValueError) as error:
        Console(stderr=True, highlight=False).print(f"[red]error:[/red] {error}")
        return 1
    said = {"options": json.loads(json.dumps(asdict(config), default=str)), "machine": machine()}
    found = said | {"rows": [asdict(row) for row in rows]}
    (config.out / "ablation.json").write_text(json.dumps(found, indent=1) + "\n")
    (config.out / "ablation.md").write_text(table(rows, config.suites))
    world = f" in the world {config.variation}" if config.variation else ""
    draw(config.out / "ablation.png", rows, f"Solved, {rows[0].episodes} unseen episodes each{world}")
    console.print(f"Table, figures and picture: {config.out}")
    return 0


def _folder(config: Ablation, name: str) -> Path:
    return config.out / name.replace(" ", "_")


def _named(text: str) -> tuple[str, str]:
    name, _, checkpoint = text.partition("=")
    if not checkpoint:
        raise ValueError(f"'{text}' is not of the form NAME=CHECKPOINT.")
    return name, checkpoint


def _run(arguments: list[str], what: str, console: Console) -> None:
    if run_step(what, arguments, console) != 0:
        raise RuntimeError(f"{what} did not end well.")


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Ablation, description=__doc__)))
