"""The `dtvla` command. Exit status: 0 well, 1 failed, 2 misused, 130 interrupted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.text import Text
from tyro.extras import SubcommandApp

from dtvla.cli.bag import bags
from dtvla.cli.bundle import bundles
from dtvla.cli.evaluate import assets_app, evaluate
from dtvla.cli.gate import gate
from dtvla.cli.security import security_app
from dtvla.cli.sweeps import compare, delay_sweep, report
from dtvla.errors import plain
from dtvla.policy.options import BackendName

RobotName = Literal["simulator", "panda", "fr3"]
OK, FAILED, INTERRUPTED = 0, 1, 130

app = SubcommandApp()
app.command(bundles, name="bundle", help="Policy bundles: verify, sign.")
app.command(bags, name="bag", help="Recordings: repair one that was never closed.")
app.command(security_app, name="security", help="SROS2: write what every node may say and hear.")
app.command(assets_app, name="assets", help="LIBERO's assets: get them, check them, find them.")
console = Console()


@app.command
def up(
    bundle: Path | None = None,
    backend: BackendName = "auto",
    suite: str = "embedded",
    task: int = 0,
    seed: int = 0,
    realtime: bool = False,
    robot: RobotName = "simulator",
    dry_run: bool = True,
    namespace: str = "",
    cameras: str = "",
    arm: str = "",
    instruction: str = "",
    respawn: bool = False,
    once: bool = False,
    max_steps: int = 0,
    record: bool = False,
    markers: bool = False,
    simulator: bool = True,
    show: bool = True,
    only: str = "",
    domain: int | None = None,
    join: bool = False,
    output: Path = Path("runs/up"),
) -> int:
    """Start the graph and keep it running until Ctrl-C: simulator, controller, policy and console.

    Args:
        bundle: Folder of the policy bundle. Default: the one that ships with dtvla.
        backend: What runs it. auto: TensorRT engines that fit this machine, else ONNX Runtime on the CPU.
        suite: Benchmark suite of the simulator.
        task: Index of the task in the suite, from 0.
        seed: Seed of the first episode's object placement; each further episode takes the next one.
        realtime: Let the world move on while the policy thinks. Default: lockstep, the world waits.
        robot: Whose limits hold. simulator: the benchmark's own deltas; panda, fr3: target poses the arm can
            follow (with the simulator: its Panda follows them).
        dry_run: With a robot: show what it would be told (controller/preview_pose), and tell it nothing.
        namespace: Of all nodes and topics, for one of several robots.
        cameras: Topics of the cameras, as in agentview=/camera/color/image_raw,wrist=/wrist/image_raw.
        arm: Topics of the arm's driver, as in target_pose=/cartesian/target_pose,ee_pose=/current_pose.
        instruction: What to do from the start, without a simulator. Default: wait for /instruction or a goal.
        respawn: Start the policy and the display nodes anew when they die or hang; the arm holds meanwhile.
        once: Play one episode, then wait for /reset_scene instead of going on with the next seed.
        max_steps: Control periods per episode (50 ms each); 0 takes the task's own limit.
        record: Write an MCAP bag and one video per episode.
        markers: Publish /reasoning_markers for rviz: the thought and the planned path.
        simulator: Run the simulated robot. Without it, bring your own cameras and robot on the same topics.
        show: Show the thoughts in this terminal.
        only: Nodes that run here, comma-separated, when others run on other machines (libero_bridge_node: the
            simulated robot alone). Default: all.
        domain: ROS domain to use. Default: a free one.
        join: Use --domain even if other ROS programs are in it (for example rviz).
        output: Where logs and recordings go (a folder per run is made in it).
    """
    from dtvla.bringup import domains
    from dtvla.bringup.demo import fresh_folder
    from dtvla.bringup.graph import GraphOptions
    from dtvla.bringup.launcher import RunningGraph
    from dtvla.policy.bundle.loading import Bundle
    from dtvla.resources import default_bundle

    options = GraphOptions(
        bundle=Bundle.load(bundle or default_bundle()).path.resolve(),
        backend=backend,
        suite=suite,
        task=task,
        seed=seed,
        realtime=realtime,
        robot=robot,
        dry_run=dry_run,
        namespace=namespace,
        cameras=cameras,
        arm=arm,
        instruction=instruction,
        respawn=respawn,
        max_steps=max_steps,
        repeat=not once,
        simulator=simulator,
        console=show,
        record=record,
        markers=markers,
        only=only,
        output=fresh_folder(output),
    )
    with domains.reserve(domain, join=join) as reservation:
        console.print(f"Starting on ROS domain {reservation.domain}; logs in {options.output / 'log'}")
        console.print(
            f"To look in: export ROS_DOMAIN_ID={reservation.domain} ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST"
        )
        with RunningGraph(options, reservation.domain, _tell) as graph:
            if only or not (show and simulator):  # else the thoughts say so
                console.print("The graph runs. Ctrl-C ends it.")
            graph.watch()
    return OK


@app.command
def demo(
    bundle: Path | None = None,
    backend: BackendName = "auto",
    suite: str = "embedded",
    seed: int = 0,
    episodes: int | None = None,
    max_steps: int = 0,
    record: bool = True,
    domain: int | None = None,
    join: bool = False,
    output: Path = Path("runs/demo"),
) -> int:
    """Run one episode per task, show the thoughts, and leave a report, videos and a bag.

    The exit status says whether everything ran; whether the policy solved its tasks is in the report.

    Args:
        bundle: Folder of the policy bundle. Default: the one that ships with dtvla.
        backend: What runs it. auto: TensorRT engines that fit this machine, else ONNX Runtime on the CPU.
        suite: Benchmark suite of the simulator.
        seed: Seed of the object placement.
        episodes: Number of episodes, tasks in turn. Default: one per task.
        max_steps: Control periods per episode (50 ms each); 0 takes the task's own limit.
        record: Write an MCAP bag and one video per episode.
        domain: ROS domain to use. Default: a free one.
        join: Use --domain even if other ROS programs are in it.
        output: Where the results go (a folder per run is made in it).
    """
    from dtvla.bringup import demo as main_job
    from dtvla.bringup.graph import GraphOptions
    from dtvla.resources import default_bundle

    options = GraphOptions(
        bundle=(bundle or default_bundle()).resolve(),
        backend=backend,
        suite=suite,
        seed=seed,
        max_steps=max_steps,
        autostart=False,
        record=record,
        output=main_job.fresh_folder(output),
    )
    report = main_job.run(options, domain, console, join=join, episodes=episodes)
    console.print()
    console.print(main_job.table(report))
    solved = sum(episode.success for episode in report.episodes)
    console.print(f"{solved} of {len(report.episodes)} episodes solved. Everything is in {options.output}")
    for problem in report.problems:
        console.print(problem, style="red", markup=False)
    return OK if report.complete else FAILED


app.command(name="eval")(evaluate)
app.command(gate)
app.command(name="delay-sweep")(delay_sweep)
app.command(compare)
app.command(report)


@app.command
def bench() -> int:
    """Moved: `make bench`, or `python -m tools.benchmarks` in a checkout of the repository."""
    raise ValueError(
        "dtvla bench measures what the documents say, and does not travel to a robot any more. In a checkout "
        "of the repository: make bench, or .venv/bin/python -m tools.benchmarks --help."
    )


@app.command
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


def _tell(words: str) -> None:
    console.print(f"  {words}", markup=False, highlight=False)


def main() -> int:
    """Runs the command line; every failure is a sentence on stderr, never a traceback."""
    from dtvla.bringup.launcher import Interrupted

    try:
        return int(
            app.cli(
                prog="dtvla",
                description="A DeepThinkVLA policy on ROS 2: it sees, thinks aloud and moves the arm.",
            )
        )
    except (Interrupted, KeyboardInterrupt):
        console.print("\nInterrupted; every process has ended.")
        return INTERRUPTED
    except (ValueError, RuntimeError, OSError) as error:
        words = Text.assemble(("Error:", "bold red"), f" {plain(error)}")  # no markup, no escapes from a file
        Console(stderr=True).print(words, highlight=False, soft_wrap=True)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
