"""The commands around the simulator: `dtvla eval` and `dtvla assets`."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.console import Console
from tyro.conf import arg
from tyro.extras import SubcommandApp

from dtvla.control.options import ChunkMode, ChunkSeam
from dtvla.policy.options import BackendName, Decoding, Thinking

if TYPE_CHECKING:
    from rich.table import Table

    from dtvla.evaluation.results import EpisodeResult, EvalOptions
    from dtvla.evaluation.runner import Runner
    from dtvla.sim.assets import Assets

OK, FAILED = 0, 1
MOST_TASKS = 1000  # as the bridge's parameter `task`

assets_app = SubcommandApp()
console = Console()


def evaluate(
    bundle: Annotated[str | None, arg(aliases=("--policy",))] = None,
    backend: BackendName = "auto",
    suite: str = "embedded",
    tasks: str = "",
    episodes: int = 60,
    trials: int | None = None,
    seed0: int | None = None,
    workers: int = 0,
    image_size: int = 128,
    thinking: Thinking = "drafts",
    decoding: Decoding | Literal["swapped"] = "hybrid",
    delay: str = "",
    chunk_mode: ChunkMode = "open_loop",
    chunk_seam: ChunkSeam = "cut",
    variation: str = "",
    vary: str = "",
    max_steps: int | None = None,
    in_process: bool = False,
    ros: bool = False,
    ray: str = "",
    servers: int = 1,
    watched: bool = False,
    assets: Path | None = None,
    output: Path = Path("runs/eval"),
    resume: Path | None = None,
) -> int:
    """Measure success in closed loop by the benchmark's protocol: in process, through ROS or on a cluster.

    Args:
        bundle: Folder of the policy bundle; or expert (knows the state), random, or replay:FILE (the
            episodes.jsonl of an evaluation). Default: the bundle that ships with dtvla.
        backend: What runs it. auto: TensorRT engines that fit this machine, else ONNX Runtime on the CPU.
        suite: Benchmark suite: embedded, embedded_tray, libero_spatial, libero_object, libero_goal or
            libero_10.
        tasks: Tasks of the suite, such as 0-9 or 0,3,5. Default: all.
        episodes: Number of episodes, dealt to the tasks in turn.
        trials: Episodes per task, instead of --episodes. The benchmark's protocol has 50.
        seed0: First seed. Default: 10000 (the shipped policy has not seen those from there on); in LIBERO's
            suites 0, and the seed is the number of the task's fixed initial state.
        workers: Processes to use; with --ros graphs, with --ray simulators. Default: one per processor.
        image_size: Side of the camera images in pixels; the reference renders 256 in LIBERO's suites.
        thinking: plain writes each thought token by token; drafts tries the last thought first (faster, the
            same words); lagging acts on the thought about the image before.
        decoding: The variants that the paper compares: hybrid thinks, then acts in one parallel pass;
            autoregressive acts value by value; masked and random act on an empty or a random thought;
            none leaves the thinking prompt out as well; swapped acts on a thought about another task.
        delay: Seconds from picture to chunk (0 to 1), or measured: the world moves on meanwhile, and chunks
            are executed by the controller's own executor. Default: the world waits.
        chunk_mode: How chunks are executed, with a delay; as the controller node's parameter.
        chunk_seam: The passage from one chunk to the next, in receding and ensembled.
        variation: What differs from the suite's own world, with a strength of 0 to 3: camera:2, fov, light,
            background, noise, blur, jpeg, occlusion, instruction or robot.
        vary: Several variations, each in a folder of its own, compared with the suite's own world:
            camera:1,light:3, or all, or all:3.
        max_steps: Control periods of an episode (50 ms each); 115 asks for haste. Default: the suite's limit.
        in_process: Simulator and policy in one process, without ROS: the default, and the fastest.
        ros: Through the real ROS graph in lockstep, as many graphs as workers; the same results.
        ray: Through Ray: the address of a cluster, or local to start one here; the same results.
        servers: Policy servers on the cluster; each decides for its simulators in batches.
        watched: Render every picture, also those that nobody looks at (to measure speed with scripts).
        assets: Folder or tar archive with LIBERO's assets. Default: DTVLA_ASSETS, or what was fetched.
        output: Where the results go (a folder per run is made in it).
        resume: Folder of an interrupted evaluation to go on with; all other options are those it had.
    """
    from dtvla.bringup import graph_evaluation
    from dtvla.bringup.demo import fresh_folder
    from dtvla.cli import sweeps
    from dtvla.evaluation import ray_cluster
    from dtvla.evaluation.results import EvalOptions, Through, begun_options
    from dtvla.evaluation.runner import plan
    from dtvla.evaluation.sweeps.sweep import SWEEP
    from dtvla.policy.bundle.loading import Bundle
    from dtvla.resources import default_bundle

    use_assets(assets)
    if resume is not None and (resume / SWEEP).is_file():
        return sweeps.go_on(resume, workers)
    if resume is not None:
        options = begun_options(resume)
    else:
        options = EvalOptions(
            policy=bundle or default_bundle(),
            backend=backend,
            suite=suite,
            episodes=episodes,
            seed0=seed0,
            image_size=image_size,
            tasks=task_numbers(tasks),
            trials=trials,
            thinking=thinking,
            decoding=decoding,
            delay=delay_s(delay),
            chunk_mode=chunk_mode,
            chunk_seam=chunk_seam,
            variation=variation,
            max_steps=max_steps,
        )
    if not options.scripted:
        options = replace(options, policy=str(Bundle.load(options.policy).path))
    through: Through = "ros" if ros else "ray" if ray else "process"
    if in_process + ros + bool(ray) > 1:
        raise ValueError("Give one of --in-process, --ros and --ray: the results are the same.")
    options = replace(options, through=through, watched=watched)
    if vary:
        if through != "process":
            raise ValueError("--vary compares evaluations in process; give each --variation alone.")
        return sweeps.vary(options, vary, workers, output)
    if through == "ros":
        graph_evaluation.check(options)
    if through == "ray":
        ray_cluster.check(options)
    planned = len(plan(options))  # a wrong option is told before a folder is made
    folder = resume or fresh_folder(output)
    crew = max(1, min(workers or os.cpu_count() or 1, planned))
    results = evaluate_into(folder, options, crew, _runner(options, folder, ray, servers))
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


@assets_app.command
def fetch(assets: Path | None = None) -> int:
    """Get LIBERO's assets and use them from now on. The embedded suite needs none.

    Args:
        assets: Folder or tar archive that holds them. Default: the hub, where hf-libero looks for them.
    """
    from rich.progress import Progress

    from dtvla.sim.assets import install

    with Progress(console=console) as progress:
        bar = progress.add_task("from the hub" if assets is None else f"from {assets.name}", total=1.0)
        got = install(assets, lambda share: progress.update(bar, completed=share))
    _describe(got)
    return OK


@assets_app.command(name="check")
def check_assets(assets: Path | None = None) -> int:
    """Say which assets are in use, and build one scene of each LIBERO suite with them (half a minute).

    Args:
        assets: Folder or tar archive to look at. Default: DTVLA_ASSETS, or what was fetched.
    """
    from dtvla.sim.assets import describe
    from dtvla.sim.env import SUITES, SimEnv
    from dtvla.sim.suites import embedded

    use_assets(assets)
    _describe(describe())
    for suite in SUITES:
        if suite not in embedded.SUITES:
            with console.status(f"Building a scene of {suite} ..."):
                env = SimEnv(suite, 0, render=False)
                env.reset(0)
                env.close()
                del env
            console.print(f"  [green]well[/]  {suite}: task 0 builds and settles")
    return OK


@assets_app.command
def path(assets: Path | None = None) -> int:
    """Print the folder that LIBERO's assets are read from.

    Args:
        assets: Folder or tar archive to look at. Default: DTVLA_ASSETS, or what was fetched.
    """
    from dtvla.sim.assets import find

    use_assets(assets)
    print(find())
    return OK


def use_assets(assets: Path | None) -> None:
    """Names the assets for this process and all that it starts."""
    from dtvla.sim.assets import VARIABLE

    if assets is not None:
        os.environ[VARIABLE] = str(assets.expanduser().resolve())


def _describe(assets: Assets) -> None:
    console.print(assets.label, highlight=False, markup=False)
    console.print(f"  folder  {assets.folder}", highlight=False, markup=False)
    console.print(f"  files   {assets.files}, SHA-256 {assets.digest}", highlight=False, soft_wrap=True)


def delay_s(words: str) -> float | Literal["measured"] | None:
    """`--delay` as an option: seconds, `measured`, or None for nothing."""
    if words in ("", "measured"):
        return "measured" if words else None
    try:
        return float(words)
    except ValueError:
        raise ValueError(f"--delay takes seconds such as 0.2, or measured, not '{words}'.") from None


def task_numbers(words: str) -> tuple[int, ...]:
    """`0-3,7` as numbers."""
    found: list[int] = []
    for part in filter(None, words.replace(" ", "").split(",")):
        first, _, last = part.partition("-")
        if not first.isdigit() or (last and not last.isdigit()) or part.endswith("-"):
            raise ValueError(f"--tasks takes numbers and ranges such as 0-9 or 0,3,5, not '{words}'.")
        if int(last or first) > MOST_TASKS:
            raise ValueError(f"--tasks '{words}' is beyond any suite; numbers up to {MOST_TASKS} are taken.")
        found += range(int(first), int(last or first) + 1)
    return tuple(dict.fromkeys(found))
