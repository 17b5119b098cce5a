"""The command `dtvla eval`: success in closed loop, in process, through the ROS graph or on a cluster."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from dtvla.cli import sweeps
from dtvla.cli.common import FAILED, FLAT, OK, PolicyChoice, console, task_numbers, use_assets
from dtvla.control.options import ChunkMode, ChunkSeam
from dtvla.errors import InputError
from dtvla.policy.options import Decoding, Thinking

if TYPE_CHECKING:
    from rich.table import Table

    from dtvla.evaluation.results import EpisodeResult, EvalOptions, Through
    from dtvla.evaluation.runner import Runner


@dataclass(frozen=True)
class Evaluate(PolicyChoice):
    """Options of `dtvla eval`."""

    bundle: Annotated[str | None, arg(aliases=("--policy",))] = None
    """Folder of the policy bundle; or expert (knows the state), random, or replay:FILE (the episodes.jsonl
    of an evaluation). Default: the bundle that ships with dtvla."""
    workers: int = 0
    """Processes to use; with --ros graphs, with --ray simulators. Default: one per processor."""
    suite: str = "embedded"
    """Benchmark suite: embedded, embedded_tray, libero_spatial, libero_object, libero_goal or libero_10."""
    tasks: str = ""
    """Tasks of the suite, such as 0-9 or 0,3,5. Default: all."""
    episodes: int = 60
    """Number of episodes, dealt to the tasks in turn."""
    trials: int | None = None
    """Episodes per task, instead of --episodes. The benchmark's protocol has 50."""
    seed0: int | None = None
    """First seed. Default: 10000 (the shipped policy has not seen those from there on); in LIBERO's suites
    0, and the seed is the number of the task's fixed initial state."""
    image_size: int = 128
    """Side of the camera images in pixels; the reference renders 256 in LIBERO's suites."""
    thinking: Thinking = "drafts"
    """plain writes each thought token by token; drafts tries the last thought first (faster, the same
    words); lagging acts on the thought about the image before."""
    decoding: Decoding | Literal["swapped"] = "hybrid"
    """The variants that the paper compares: hybrid thinks, then acts in one parallel pass; autoregressive
    acts value by value; masked and random act on an empty or a random thought; none leaves the thinking
    prompt out as well; swapped acts on a thought about another task."""
    delay: str = ""
    """Seconds from picture to chunk (0 to 1), or measured: the world moves on meanwhile, and chunks are
    executed by the controller's own executor. Default: the world waits."""
    chunk_mode: ChunkMode = "open_loop"
    """How chunks are executed, with a delay; as the controller node's parameter."""
    chunk_seam: ChunkSeam = "cut"
    """The passage from one chunk to the next, in receding and ensembled."""
    variation: str = ""
    """What differs from the suite's own world, with a strength of 0 to 3: camera:2, fov, light, background,
    noise, blur, jpeg, occlusion, instruction or robot."""
    vary: str = ""
    """Several variations, each in a folder of its own, compared with the suite's own world:
    camera:1,light:3, or all, or all:3."""
    max_steps: int | None = None
    """Control periods of an episode (50 ms each); 115 asks for haste. Default: the suite's limit."""
    in_process: bool = False
    """Simulator and policy in one process, without ROS: the default, and the fastest."""
    ros: bool = False
    """Through the real ROS graph in lockstep, as many graphs as workers; the same results."""
    ray: str = ""
    """Through Ray: the address of a cluster, or local to start one here; the same results."""
    servers: int = 1
    """Policy servers on the cluster; each decides for its simulators in batches."""
    watched: bool = False
    """Render every picture, also those that nobody looks at (to measure speed with scripts)."""
    output: Path = Path("runs/eval")
    """Where the results go (a folder per run is made in it)."""
    resume: Path | None = None
    """Folder of an interrupted evaluation to go on with; all other options are those it had."""

    @property
    def through(self) -> Through:
        """What runs the episodes.

        Raises:
            InputError: more than one thing is asked for.
        """
        if self.in_process + self.ros + bool(self.ray) > 1:
            raise InputError("Give one of --in-process, --ros and --ray: the results are the same.")
        return "ros" if self.ros else "ray" if self.ray else "process"

    def options(self) -> EvalOptions:
        """What is to be evaluated: as asked for, or as the evaluation that is resumed was begun."""
        from dtvla.evaluation.results import EvalOptions, begun_options
        from dtvla.policy.bundle.loading import Bundle
        from dtvla.resources import default_bundle

        if self.resume is not None:
            options = begun_options(self.resume)
        else:
            options = EvalOptions(
                policy=self.bundle or default_bundle(),
                backend=self.backend,
                suite=self.suite,
                episodes=self.episodes,
                seed0=self.seed0,
                image_size=self.image_size,
                tasks=task_numbers(self.tasks),
                trials=self.trials,
                thinking=self.thinking,
                decoding=self.decoding,
                delay=delay_s(self.delay),
                chunk_mode=self.chunk_mode,
                chunk_seam=self.chunk_seam,
                variation=self.variation,
                max_steps=self.max_steps,
            )
        if not options.scripted:
            options = replace(options, policy=str(Bundle.load(options.policy).path))
        return replace(options, through=self.through, watched=self.watched)


def evaluate(asked: Annotated[Evaluate, FLAT]) -> int:
    """Measure success in closed loop by the benchmark's protocol: in process, through ROS or on a cluster."""
    from dtvla.bringup import graph_evaluation
    from dtvla.bringup.demo import fresh_folder
    from dtvla.evaluation import ray_cluster
    from dtvla.evaluation.runner import plan
    from dtvla.evaluation.sweeps.sweep import SWEEP

    use_assets(asked.assets)
    if asked.resume is not None and (asked.resume / SWEEP).is_file():
        return sweeps.go_on(asked.resume, asked.processes)
    options = asked.options()
    if asked.vary:
        if options.through != "process":
            raise InputError("--vary compares evaluations in process; give each --variation alone.")
        return sweeps.vary(options, asked.vary, asked.processes, asked.output)
    if options.through == "ros":
        graph_evaluation.check(options)
    if options.through == "ray":
        ray_cluster.check(options)
    planned = len(plan(options))  # a wrong option is told before a folder is made
    folder = asked.resume or fresh_folder(asked.output)
    workers = max(1, min(asked.processes, planned))
    results = evaluate_into(folder, options, workers, _runner(options, folder, asked.ray, asked.servers))
    return FAILED if any(result.error for result in results) else OK


def _runner(options: EvalOptions, folder: Path, address: str, servers: int) -> Runner:
    """What runs the episodes."""
    from dtvla.bringup import graph_evaluation
    from dtvla.evaluation import ray_cluster
    from dtvla.evaluation.runner import in_processes

    if options.through == "ros":
        return graph_evaluation.runner(folder)
    return ray_cluster.runner(address, servers) if options.through == "ray" else in_processes


def evaluate_into(folder: Path, options: EvalOptions, workers: int, runner: Runner) -> list[EpisodeResult]:
    """Runs what is left of an evaluation in a folder, with a bar, and says how it went."""
    from rich.progress import Progress

    from dtvla.evaluation.report.report import write_report
    from dtvla.evaluation.results import SUMMARY, Journal, write_results
    from dtvla.evaluation.runner import evaluate as run
    from dtvla.evaluation.runner import plan

    options, total = replace(options, workers=workers), len(plan(options))
    journal = Journal(folder, options)
    solved = sum(result.success for result in journal.finished)
    try:
        with Progress(console=console) as progress:
            bar = progress.add_task(f"{solved} solved", total=total, completed=len(journal.finished))

            def advance(result: EpisodeResult) -> None:
                nonlocal solved
                journal.add(result)
                solved += result.success
                progress.update(bar, advance=1, description=f"{solved} solved")

            results = run(options, advance, journal.finished, runner)
    except KeyboardInterrupt:
        console.print(f"\nGo on with: dtvla eval --resume {folder}", highlight=False)
        raise
    write_results(folder / SUMMARY, options, results)
    for table in success_tables(results):
        console.print(table)
    wrong = Counter((result.task_name, result.error) for result in results if result.error)
    for (name, error), times in wrong.items():
        console.print(f"{name}, {times} episodes: {error}", style="red", markup=False)
    console.print(f"All episodes with their thoughts: {write_report(folder)}", highlight=False)
    console.print(f"Videos for it: dtvla report {folder}", highlight=False)
    return results


def success_tables(results: list[EpisodeResult]) -> list[Table]:
    """Success by task and in all with 95 % intervals, and how the failures ended."""
    from rich import box
    from rich.table import Column, Table

    from dtvla.evaluation.results import OUTCOMES, mean_agreement
    from dtvla.evaluation.statistics import wilson

    ran = [result for result in results if not result.error]
    thinks = any(result.phase_stated > 0 for result in ran)  # LIBERO's policies say it in other words
    agrees = thinks and all(result.agreement for result in ran)  # not in records of earlier versions
    said = [*(["near"] if thinks else []), *(["target", "side", "phase"] if agrees else [])]
    numbers = (Column(name, justify="right", no_wrap=True) for name in ("solved", "rate", "95 %", *said))
    look: dict[str, Any] = {"box": box.SIMPLE_HEAD, "padding": (0, 0, 0, 1)}  # fits into 80 columns
    view = Table(Column("task", overflow="fold"), *numbers, **look)
    if said:
        view.caption = "Thoughts: near is the share that places its object within 3 cm"
        view.caption += ", then with the right words." if agrees else "."
    endings = Table(
        Column("task", overflow="fold"),
        *(Column(ending, justify="right", max_width=16) for ending in OUTCOMES[1:]),
        title="How the failures ended",
        **look,
    )
    names = sorted({result.task_name for result in ran})
    for name, group in [*((n, [r for r in ran if r.task_name == n]) for n in names), ("all", ran)]:
        if group:
            hits = sum(result.success for result in group)
            low, high = wilson(hits, len(group))
            counts = [f"{hits} of {len(group)}", f"{hits / len(group):.0%}", f"{100 * low:.0f} to {high:.0%}"]
            if thinks:
                counts.append(f"{sum(result.target_within_3cm for result in group) / len(group):.0%}")
            if agrees:
                counts += [f"{share:.0%}" for share in mean_agreement(group).values()]
            last = name == (names or ["all"])[-1]
            view.add_row(name, *counts, end_section=last)
            failed = (str(sum(result.outcome == ending for result in group)) for ending in OUTCOMES[1:])
            endings.add_row(name, *failed, end_section=last)
    return [view] if all(result.success for result in ran) else [view, endings]


def delay_s(words: str) -> float | Literal["measured"] | None:
    """`--delay` as an option: seconds, `measured`, or None for nothing."""
    if words in ("", "measured"):
        return "measured" if words else None
    try:
        return float(words)
    except ValueError:
        raise InputError(f"--delay takes seconds such as 0.2, or measured, not '{words}'.") from None
