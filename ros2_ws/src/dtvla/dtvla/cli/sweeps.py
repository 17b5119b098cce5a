"""Several evaluations side by side: `dtvla delay-sweep`, and the variations of `dtvla eval --vary`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from dtvla.cli.common import FAILED, FLAT, OK, PolicyChoice, console, task_numbers, use_assets
from dtvla.errors import InputError
from dtvla.policy.options import Decoding, Thinking

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from dtvla.evaluation.results import EpisodeResult, EvalOptions
    from dtvla.evaluation.sweeps.sweep import Results, Sweep
    from dtvla.evaluation.sweeps.variation_sweep import VariationRow

SUMMARIES = {"delays": "delay.json", "variations": "robustness.json"}


@dataclass(frozen=True)
class DelaySweep(PolicyChoice):
    """Options of `dtvla delay-sweep`."""

    suite: str = "embedded"
    """Benchmark suite: embedded, libero_spatial, libero_object, libero_goal or libero_10."""
    tasks: str = ""
    """Tasks of the suite, such as 0-9 or 0,3,5. Default: all."""
    episodes: int = 24
    """Number of episodes per point, dealt to the tasks in turn."""
    seed0: int | None = None
    """First seed; see dtvla eval."""
    delays: str = "0,0.05,0.1,0.2,0.4,0.8"
    """Seconds from picture to chunk."""
    ways: str = "all"
    """How chunks are executed: open_loop, receding, ensembled, or the last two with -spline; or all."""
    image_size: int = 128
    """Side of the camera images in pixels."""
    thinking: Thinking = "drafts"
    """See dtvla eval."""
    decoding: Decoding = "hybrid"
    """See dtvla eval."""
    output: Path = Path("runs/delay")
    """Where the results go (a folder per run is made in it)."""
    resume: Path | None = None
    """Folder of an interrupted sweep to go on with; all other options are those it had."""


def delay_sweep(asked: Annotated[DelaySweep, FLAT]) -> int:
    """Measure success and smoothness against delay: the world moves on while the policy thinks.

    In process, on simulated time, with the controller's own executor. Leaves delay.json, delay.md,
    delay.png and an evaluation per point.
    """
    from dtvla.bringup.demo import fresh_folder
    from dtvla.evaluation.results import EvalOptions
    from dtvla.evaluation.sweeps.delay_sweep import WAYS, points
    from dtvla.evaluation.sweeps.sweep import Sweep
    from dtvla.policy.bundle.loading import Bundle
    from dtvla.resources import default_bundle

    use_assets(asked.assets)
    if asked.resume is not None:
        return go_on(asked.resume, asked.processes)
    base = EvalOptions(
        policy=str(Bundle.load(asked.bundle or default_bundle()).path),
        backend=asked.backend,
        suite=asked.suite,
        episodes=asked.episodes,
        seed0=asked.seed0,
        image_size=asked.image_size,
        tasks=task_numbers(asked.tasks),
        thinking=asked.thinking,
        decoding=asked.decoding,
    )
    ways = tuple(WAYS) if asked.ways == "all" else tuple(filter(None, asked.ways.replace(" ", "").split(",")))
    sweep = Sweep("delays", points(base, numbers(asked.delays), ways))
    return run_and_tell(sweep, asked.processes, fresh_folder(asked.output))


def vary(options: EvalOptions, words: str, workers: int, output: Path) -> int:
    """`dtvla eval --vary`: evaluates a policy in varied worlds."""
    from dtvla.bringup.demo import fresh_folder
    from dtvla.evaluation.sweeps.sweep import Sweep
    from dtvla.evaluation.sweeps.variation_sweep import points

    sweep = Sweep("variations", points(options, words))
    return run_and_tell(sweep, workers, fresh_folder(output))


def go_on(folder: Path, workers: int) -> int:
    """Goes on with an interrupted sweep."""
    from dtvla.evaluation.sweeps.sweep import Sweep

    return run_and_tell(Sweep.begun(folder), workers, folder)


def run_and_tell(sweep: Sweep, workers: int, folder: Path) -> int:
    """Runs a sweep with a progress bar, writes its summary and shows it."""
    from rich.progress import Progress

    from dtvla.evaluation.sweeps.sweep import run_sweep

    try:
        with Progress(console=console) as progress:
            bar = progress.add_task("", total=sweep.episodes)

            def advance(name: str, result: EpisodeResult) -> None:
                progress.update(bar, advance=1, description=name.replace("_", " "))

            results = run_sweep(folder, sweep, workers, advance)
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
    """Writes the summary of a sweep as JSON, table and picture, and shows the table."""
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
    """The variations of a sweep within 80 columns; what each of them is says the table that it writes."""
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
        InputError: it is no list of numbers.
    """
    try:
        return tuple(dict.fromkeys(float(part) for part in words.split(",")))
    except ValueError:
        raise InputError(f"--delays takes seconds such as 0,0.05,0.2, not '{words}'.") from None
