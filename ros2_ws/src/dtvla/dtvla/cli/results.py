"""The commands that look at results: `dtvla compare` and `dtvla report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from dtvla.cli.common import FAILED, OK, console

if TYPE_CHECKING:
    from rich.table import Table

    from dtvla.evaluation.compare import Comparison


def compare(
    a: Positional[Annotated[Path, arg(metavar="A")]],
    b: Positional[Annotated[Path, arg(metavar="B")]],
    fail_if_worse: bool = False,
    alpha: float = 0.05,
    output: Path | None = None,
) -> int:
    """Compare two evaluations of the same episodes, pair by pair (McNemar's exact test).

    The exit status is 1 when they cannot be compared, and with --fail-if-worse when B is worse.

    Args:
        a: Folder of an evaluation, or its episodes.jsonl or results.json.
        b: The other one.
        fail_if_worse: Exit status 1 when B solves fewer with a p-value below --alpha.
        alpha: What counts as more than chance.
        output: File for the comparison as JSON.
    """
    from dtvla.evaluation import compare as comparing
    from dtvla.evaluation.record import EvaluationRecord

    found = comparing.compare(EvaluationRecord.load(a), EvaluationRecord.load(b))
    for warning in found.warnings:
        console.print(f"Mind: {warning}", style="yellow", highlight=False, markup=False)
    for table in comparison_tables(found):
        console.print(table)
    console.print(verdict(found, alpha), highlight=False, markup=False)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(found.to_json() + "\n")
    return FAILED if fail_if_worse and found.worse(alpha) else OK


def report(folder: Positional[Path], videos: int = 6) -> int:
    """Write an evaluation's report with videos: one HTML file, nothing from a network.

    Videos are made of the recorded actions (some 20 s each): failures first, then one success per task.

    Args:
        folder: Folder of an evaluation, or of a sweep or set of variations (a report each, without videos).
        videos: Number of episodes to film.
    """
    from rich.progress import track

    from dtvla.evaluation.record import EvaluationRecord
    from dtvla.evaluation.report import episode_replay
    from dtvla.evaluation.report.report import write_report
    from dtvla.evaluation.sweeps.sweep import SWEEP, Sweep

    if (folder / SWEEP).is_file():
        for name in Sweep.begun(folder).points:
            console.print(str(write_report(folder / name)), highlight=False)
        return OK
    evaluation = EvaluationRecord.load(folder)
    chosen = episode_replay.choose(evaluation.results, videos)
    missing = [result for result in chosen if not episode_replay.file_of(folder, result).is_file()]
    others = []
    if missing:
        made = episode_replay.replay_episodes(evaluation.options, missing, folder)
        for replay in track(made, "Filming", len(missing), console=console, transient=True):
            others += [] if replay.same else [(replay.task, replay.seed)]
    console.print(str(write_report(folder, others)), highlight=False)
    return OK


def verdict(found: Comparison, alpha: float) -> str:
    """The comparison in a sentence."""
    counts = found.counts
    low, high = (100 * bound for bound in counts.interval)
    change = f"{100 * counts.difference:+.1f} points (95 % interval {low:+.1f} to {high:+.1f})"
    if not found.changed:
        judged = "no episode changed"
    elif counts.p_value >= alpha:
        judged = "chance alone explains that"
    else:
        judged = f"B is {'better' if counts.difference > 0 else 'worse'}"
    return f"B against A: {change}, p = {counts.p_value:.3g}: {judged}."


def comparison_tables(found: Comparison) -> list[Table]:
    """Success by task in both, and the episodes that changed."""
    from rich.table import Column, Table

    title = f"A: {found.a.path} ({found.a.head['policy']})   B: {found.b.path} ({found.b.head['policy']})"
    view = Table(Column("task", overflow="fold"), "A", "B", "only A", "only B", "p", title=title)
    rows = [*found.by_task.items(), ("all", found.counts)]
    for name, counts in rows:
        solved = (counts.both + counts.only_a, counts.both + counts.only_b)
        cells = [f"{wins} of {counts.total}" for wins in solved]
        changed = (str(counts.only_a), str(counts.only_b), f"{counts.p_value:.2g}")
        view.add_row(name, *cells, *changed, end_section=name == rows[-2][0])
    if not found.changed:
        return [view]
    changes = Table(Column("task", overflow="fold"), "seed", "A", "B", title="Episodes that changed")
    for pair in found.changed:
        changes.add_row(pair.task_name, str(pair.seed), pair.a.outcome, pair.b.outcome)
    return [view, changes]
