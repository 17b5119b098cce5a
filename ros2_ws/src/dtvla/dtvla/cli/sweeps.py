"""Commands that set results side by side: `dtvla delay-sweep`, `dtvla compare`, sets of variations."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console
from tyro.conf import Positional, arg

from dtvla.policy.options import BackendName, Decoding, Thinking

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from dtvla.evaluation.compare import Comparison
    from dtvla.evaluation.results import EpisodeResult, EvalOptions
    from dtvla.evaluation.sweeps.sweep import Results, Sweep
    from dtvla.evaluation.sweeps.variation_sweep import VariationRow

OK, FAILED = 0, 1
SUMMARIES = {"delays": "delay.json", "variations": "robustness.json"}

console = Console()


def delay_sweep(
    bundle: Annotated[str | None, arg(aliases=("--policy",))] = None,
    backend: BackendName = "auto",
    suite: str = "embedded",
    tasks: str = "",
    episodes: int = 24,
    seed0: int | None = None,
    delays: str = "0,0.05,0.1,0.2,0.4,0.8",
    ways: str = "all",
    workers: int = 0,
    image_size: int = 128,
    thinking: Thinking = "drafts",
    decoding: Decoding = "hybrid",
    assets: Path | None = None,
    output: Path = Path("runs/delay"),
    resume: Path | None = None,
) -> int:
    """Measure success and smoothness against delay: the world moves on while the policy thinks.

    In process, on simulated time, with the controller's own executor. Leaves delay.json, delay.md,
    delay.png and an evaluation per point.

    Args:
        bundle: Folder of the policy bundle. Default: the one that ships with dtvla.
        backend: What runs it. auto: TensorRT engines that fit this machine, else ONNX Runtime on the CPU.
        suite: Benchmark suite: embedded, libero_spatial, libero_object, libero_goal or libero_10.
        tasks: Tasks of the suite, such as 0-9 or 0,3,5. Default: all.
        episodes: Number of episodes per point, dealt to the tasks in turn.
        seed0: First seed; see dtvla eval.
        delays: Seconds from picture to chunk.
        ways: How chunks are executed: open_loop, receding, ensembled, or the last two with -spline; or all.
        workers: Processes to use. Default: one per processor.
        image_size: Side of the camera images in pixels.
        thinking: See dtvla eval.
        decoding: See dtvla eval.
        assets: Folder or tar archive with LIBERO's assets. Default: DTVLA_ASSETS, or what was fetched.
        output: Where the results go (a folder per run is made in it).
        resume: Folder of an interrupted sweep to go on with; all other options are those it had.
    """
    from dtvla.bringup.demo import fresh_folder
    from dtvla.cli.evaluate import task_numbers, use_assets
    from dtvla.evaluation.results import EvalOptions
    from dtvla.evaluation.sweeps.delay_sweep import WAYS, points
    from dtvla.evaluation.sweeps.sweep import Sweep
    from dtvla.policy.bundle.loading import Bundle
    from dtvla.resources import default_bundle

    use_assets(assets)
    if resume is not None:
        return go_on(resume, workers)
    base = EvalOptions(
        policy=str(Bundle.load(bundle or default_bundle()).path),
        backend=backend,
        suite=suite,
        episodes=episodes,
        seed0=seed0,
        image_size=image_size,
        tasks=task_numbers(tasks),
        thinking=thinking,
        decoding=decoding,
    )
    names = tuple(WAYS) if ways == "all" else tuple(filter(None, ways.replace(" ", "").split(",")))
    sweep = Sweep("delays", points(base, numbers(delays), names))
    return run_and_tell(sweep, workers, fresh_folder(output))


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


def vary(options: EvalOptions, words: str, workers: int, output: Path) -> int:
    """`dtvla eval --vary`: evaluates a policy in varied worlds."""
    from dtvla.bringup.demo import fresh_folder
    from dtvla.evaluation.sweeps.sweep import Sweep
    from dtvla.evaluation.sweeps.variation_sweep import points

    sweep = Sweep("variations", points(options, words))
    return run_and_tell(sweep, workers, fresh_folder(output))


def go_on(folder: Path, workers: int) -> int:
    """Goes on with an interrupted study."""
    from dtvla.evaluation.sweeps.sweep import Sweep

    return run_and_tell(Sweep.begun(folder), workers, folder)


def run_and_tell(sweep: Sweep, workers: int, folder: Path) -> int:
    """Runs a study with a progress bar, writes its summary and shows it."""
    from rich.progress import Progress

    from dtvla.evaluation.sweeps.sweep import run_sweep

    try:
        with Progress(console=console) as progress:
            bar = progress.add_task("", total=sweep.episodes)

            def advance(name: str, result: EpisodeResult) -> None:
                progress.update(bar, advance=1, description=name.replace("_", " "))

            results = run_sweep(folder, sweep, workers or os.cpu_count() or 1, advance)
    except KeyboardInterrupt:
        command = "delay-sweep" if sweep.kind == "delays" else "eval"
        console.print(f"\nGo on with: dtvla {command} --resume {folder}", highlight=False)
        raise
    summarise(sweep, results, folder)
    wrong = {result.error for found in results.values() for result in found if result.error}
    for error in sorted(wrong):
        console.print(error, style="red", markup=False)
    console.print(f"Everything is in {folder}", highlight=False)
    return FAILED if wrong else OK


def summarise(sweep: Sweep, results: Results, folder: Path) -> None:
    """Writes the summary of a study as JSON, table and picture, and shows the table."""
    from rich.markdown import Markdown

    from dtvla.evaluation.results import machine
    from dtvla.evaluation.sweeps import delay_sweep as delays
    from dtvla.evaluation.sweeps import variation_sweep

    if sweep.kind == "delays":
        from dtvla.evaluation.sweeps.delay_plot import draw_delays

        points = delays.summarise(sweep.points, results)
        rows, table = [point.to_json() for point in points], delays.markdown(points)
        shown: RenderableType = Markdown(table)
        draw_delays(folder / "delay.png", points, _title(sweep.points))
    else:
        varied = variation_sweep.summarise(sweep.points, results)
        rows, table = [row.to_json() for row in varied], variation_sweep.markdown(varied)
        shown = variations_table(varied)
    summary = folder / SUMMARIES[sweep.kind]
    summary.write_text(json.dumps({"machine": machine(), "points": rows}, indent=1) + "\n")
    summary.with_suffix(".md").write_text(table + "\n")
    console.print(shown)


def variations_table(rows: Sequence[VariationRow]) -> Table:
    """A study of variations within 80 columns; what each of them is says the table that it writes."""
    from rich import box
    from rich.table import Column, Table

    from dtvla.evaluation.results import OUTCOMES
    from dtvla.evaluation.sweeps.variation_sweep import change

    fixed = (Column(name, justify="right", no_wrap=True) for name in ("solved", "95 %", "points, 95 %"))
    endings = (Column(ending, justify="right", max_width=9) for ending in OUTCOMES[1:])
    caption = "Points: against the suite's own world. What each variation is: robustness.md there."
    look: dict[str, Any] = {"box": box.SIMPLE_HEAD, "padding": (0, 0, 0, 1)}
    view = Table(Column("variation", no_wrap=True), *fixed, *endings, caption=caption, **look)
    for row in rows:
        low, high = row.interval
        view.add_row(
            row.variation,
            f"{row.solved} of {row.episodes}",
            f"{100 * low:.0f}-{100 * high:.0f}",
            change(row).removesuffix(" points"),
            *(str(row.endings[ending]) for ending in OUTCOMES[1:]),
        )
    return view


def _title(points: Mapping[str, EvalOptions]) -> str:
    from dtvla.evaluation.runner import plan

    first = next(iter(points.values()))
    name = Path(first.policy).name
    return f"{name} on suite {first.suite}, {len(plan(first))} episodes per point; bars: 95 % intervals"


def numbers(words: str) -> tuple[float, ...]:
    """`0,0.05` as numbers.

    Raises:
        ValueError: it is no list of numbers.
    """
    try:
        return tuple(dict.fromkeys(float(part) for part in words.split(",")))
    except ValueError:
        raise ValueError(f"--delays takes seconds such as 0,0.05,0.2, not '{words}'.") from None
