"""The commands that run the graph, `dtvla up` and `dtvla demo`, and `dtvla doctor`, which says why not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from dtvla.cli.common import FAILED, FLAT, OK, ReservedDomain, console, graph_option, tell
from dtvla.control.options import RobotName
from dtvla.policy.options import BackendName


@dataclass(frozen=True)
class Up(ReservedDomain):
    """Options of `dtvla up`."""

    bundle: Annotated[Path | None, graph_option("bundle")] = None
    backend: Annotated[BackendName, graph_option("backend")] = "auto"
    suite: Annotated[str, graph_option("suite")] = "embedded"
    task: Annotated[int, graph_option("task")] = 0
    seed: Annotated[int, graph_option("seed")] = 0
    realtime: Annotated[bool, graph_option("realtime")] = False
    robot: Annotated[RobotName, graph_option("robot")] = "simulator"
    dry_run: Annotated[bool, graph_option("dry_run")] = True
    namespace: Annotated[str, graph_option("namespace")] = ""
    cameras: Annotated[str, graph_option("cameras")] = ""
    arm: Annotated[str, graph_option("arm")] = ""
    instruction: Annotated[str, graph_option("instruction")] = ""
    respawn: Annotated[bool, graph_option("respawn")] = False
    once: bool = False
    """Play one episode, then wait for /reset_scene instead of going on with the next seed."""
    max_steps: Annotated[int, graph_option("max_steps")] = 0
    record: Annotated[bool, graph_option("record")] = False
    markers: Annotated[bool, graph_option("markers")] = False
    simulator: Annotated[bool, graph_option("simulator")] = True
    show: Annotated[bool, graph_option("console")] = True
    only: Annotated[str, graph_option("only")] = ""
    output: Path = Path("runs/up")
    """Where logs and recordings go (a folder per run is made in it)."""


def up(options: Annotated[Up, FLAT]) -> int:
    """Start the graph and keep it running until Ctrl-C: simulator, controller, policy and console."""
    from dtvla.bringup import domains
    from dtvla.bringup.demo import fresh_folder
    from dtvla.bringup.graph import GraphOptions
    from dtvla.bringup.launcher import RunningGraph
    from dtvla.policy.bundle.loading import Bundle
    from dtvla.resources import default_bundle

    graph = GraphOptions(
        bundle=Bundle.load(options.bundle or default_bundle()).path.resolve(),
        backend=options.backend,
        suite=options.suite,
        task=options.task,
        seed=options.seed,
        realtime=options.realtime,
        robot=options.robot,
        dry_run=options.dry_run,
        namespace=options.namespace,
        cameras=options.cameras,
        arm=options.arm,
        instruction=options.instruction,
        respawn=options.respawn,
        max_steps=options.max_steps,
        repeat=not options.once,
        simulator=options.simulator,
        console=options.show,
        record=options.record,
        markers=options.markers,
        only=options.only,
        output=fresh_folder(options.output),
    )
    with domains.reserve(options.domain, join=options.join) as reservation:
        console.print(f"Starting on ROS domain {reservation.domain}; logs in {graph.output / 'log'}")
        console.print(
            f"To look in: export ROS_DOMAIN_ID={reservation.domain} ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST"
        )
        with RunningGraph(graph, reservation.domain, tell) as running:
            if options.only or not (options.show and options.simulator):  # else the thoughts say so
                console.print("The graph runs. Ctrl-C ends it.")
            running.watch()
    return OK


@dataclass(frozen=True)
class Demo(ReservedDomain):
    """Options of `dtvla demo`."""

    bundle: Annotated[Path | None, graph_option("bundle")] = None
    backend: Annotated[BackendName, graph_option("backend")] = "auto"
    suite: Annotated[str, graph_option("suite")] = "embedded"
    seed: int = 0
    """Seed of the object placement."""
    episodes: int | None = None
    """Number of episodes, tasks in turn. Default: one per task."""
    max_steps: Annotated[int, graph_option("max_steps")] = 0
    record: Annotated[bool, graph_option("record")] = True
    output: Path = Path("runs/demo")
    """Where the results go (a folder per run is made in it)."""


def demo(options: Annotated[Demo, FLAT]) -> int:
    """Run one episode per task, show the thoughts, and leave a report, videos and a bag.

    The exit status says whether everything ran; whether the policy solved its tasks is in the report.
    """
    from dtvla.bringup import demo as main_job
    from dtvla.bringup.graph import GraphOptions
    from dtvla.resources import default_bundle

    graph = GraphOptions(
        bundle=(options.bundle or default_bundle()).resolve(),
        backend=options.backend,
        suite=options.suite,
        seed=options.seed,
        max_steps=options.max_steps,
        autostart=False,
        record=options.record,
        output=main_job.fresh_folder(options.output),
    )
    report = main_job.run(graph, options.domain, console, join=options.join, episodes=options.episodes)
    console.print()
    console.print(main_job.table(report))
    solved = sum(episode.success for episode in report.episodes)
    console.print(f"{solved} of {len(report.episodes)} episodes solved. Everything is in {graph.output}")
    for problem in report.problems:
        console.print(problem, style="red", markup=False)
    return OK if report.complete else FAILED


def doctor(bundle: Path | None = None) -> int:
    """Look for what would keep the graph from running, and say what to do about it.

    Args:
        bundle: Folder of the policy bundle to verify. Default: the one that ships with dtvla.
    """
    from rich.table import Table

    from dtvla.bringup.doctor import examine

    view = Table(show_header=False, box=None)
    with console.status("Examining this machine (about half a minute) ..."):
        findings = examine(bundle)
    for finding in findings:
        mark = "[green]well[/]" if finding.well else "[bold red]ill [/]"
        view.add_row(mark, finding.name, finding.words)
    console.print(view)
    return OK if all(finding.well for finding in findings) else FAILED
