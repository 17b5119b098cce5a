"""The main job in one command: one episode per task of a suite, as real processes over DDS.

Leaves a folder with `report.json`, one MP4 per episode and one MCAP bag. Whether the policy solved
its tasks is in the report; `run` fails only when something did not run.
"""

from __future__ import annotations

import json
import platform
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from dtvla.bringup import domains
from dtvla.bringup.graph import GraphOptions
from dtvla.bringup.launcher import RunningGraph
from dtvla.policy.bundle.loading import Bundle
from dtvla.sim.env import list_tasks

if TYPE_CHECKING:
    from dtvla.nodes.lifecycle.graph_client import GraphClient
    from dtvla_msgs.msg import TaskState

LAST_LOOK_S = 0.5  # the console shows the last outcome


@dataclass(frozen=True)
class DemoEpisode:
    """How one episode went. Latencies are those of whole decisions, in ms."""

    task: str
    instruction: str
    seed: int
    success: bool
    steps: int
    decisions: int
    latency_p50_ms: float
    latency_p99_ms: float
    wall_s: float
    video: str | None = None


@dataclass
class DemoReport:
    """What `report.json` holds."""

    bundle: str
    bundle_fingerprint: str
    suite: str
    machine: str = field(default_factory=lambda: f"{platform.machine()}, {platform.platform()}")
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    complete: bool = False
    problems: list[str] = field(default_factory=list)
    episodes: list[DemoEpisode] = field(default_factory=list)


def fresh_folder(root: Path) -> Path:
    """A new folder below `root`, named by the time of day."""
    folder = root / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def run(
    options: GraphOptions,
    domain: int | None,
    console: Console,
    *,
    join: bool = False,
    episodes: int | None = None,
) -> DemoReport:
    """Runs the episodes and writes everything into `options.output`.

    Args:
        options: the graph; its suite, seed, bundle and output are used, its task is not.
        domain: ROS domain, or None for a free one.
        console: where progress and problems are told.
        join: share `domain` with others.
        episodes: how many; None takes one per task. Tasks come round robin, seeds count up per round.

    Raises:
        BundleError, DomainBusy, ResourceMissing: before anything is started.
        ChildDied, BringUpError, EpisodeBroken: something did not run.
        Interrupted: Ctrl-C.
    """

    def tell(words: str) -> None:
        console.print(f"  {words}", markup=False, highlight=False)

    bundle = Bundle.load(options.bundle)
    report = DemoReport(str(options.bundle), bundle.fingerprint, options.suite)
    tasks = list_tasks(options.suite)
    try:
        with domains.reserve(domain, join=join) as reservation:
            console.print(
                f"Starting the graph on ROS domain {reservation.domain}; logs in {options.output / 'log'}"
            )
            with RunningGraph(options, reservation.domain, tell) as graph:
                for number in range(episodes or len(tasks)):
                    task, seed = number % len(tasks), options.seed + number // len(tasks)
                    report.episodes.append(_episode(graph, options.suite, task, seed))
                graph.client.wait(lambda: False, LAST_LOOK_S)
        if options.record:
            _find_files(report, options)
        report.complete = not report.problems
    except Exception as error:
        report.problems.append(str(error) or "It was interrupted.")
        raise
    finally:
        _write(report, options.output)
    return report


def table(report: DemoReport) -> Table:
    """The report for people."""
    view = Table(title=f"Suite {report.suite}, lockstep (p50, p99: latency of a decision, one per decision)")
    for name, side in (("task", "left"), ("seed", "right"), ("result", "left"), ("steps", "right")):
        view.add_column(name, justify=side, no_wrap=True)  # type: ignore[arg-type]
    for name in ("decisions", "p50", "p99", "time"):
        view.add_column(name, justify="right")
    for episode in report.episodes:
        view.add_row(
            episode.task,
            str(episode.seed),
            "[green]solved[/]" if episode.success else "[red]not solved[/]",
            str(episode.steps),
            str(episode.decisions),
            f"{episode.latency_p50_ms:.0f} ms",
            f"{episode.latency_p99_ms:.0f} ms",
            f"{episode.wall_s:.1f} s",
        )
    return view


def _episode(graph: RunningGraph, suite: str, task: int, seed: int) -> DemoEpisode:
    """Runs one episode to its end."""
    client = graph.client
    started = time.monotonic()
    client.latencies_s.clear()
    number = client.reset_scene(suite, task, seed).episode
    state = client.await_episode(lambda: _ended(client, number))
    latencies_ms = 1000 * np.array(client.latencies_s or [0.0])
    return DemoEpisode(
        task=state.task_name,
        instruction=state.instruction,
        seed=seed,
        success=state.success,
        steps=state.step,
        decisions=len(client.latencies_s),
        latency_p50_ms=round(float(np.percentile(latencies_ms, 50)), 1),
        latency_p99_ms=round(float(np.percentile(latencies_ms, 99)), 1),
        wall_s=round(time.monotonic() - started, 2),
    )


def _ended(client: GraphClient, episode: int) -> TaskState | None:
    """The last state of an episode that is over."""
    state = client.state
    return state if state is not None and state.episode == episode and state.done else None


def _find_files(report: DemoReport, options: GraphOptions) -> None:
    """Names each episode's video in the report, and says what is missing."""
    videos = sorted(options.output.glob("episode_*.mp4"))
    for index, episode in enumerate(report.episodes):
        own = [video for video in videos if video.name.startswith(f"episode_{index + 1:02d}_")]
        if own and own[0].stat().st_size:
            report.episodes[index] = replace(episode, video=own[0].name)
        else:
            report.problems.append(f"Episode {index + 1} ({episode.task}) left no video.")
    if not any((options.output / "bag").glob("*.mcap")):
        report.problems.append("There is no MCAP bag.")


def _write(report: DemoReport, folder: Path) -> None:
    text = json.dumps({**asdict(report), "successes": sum(e.success for e in report.episodes)}, indent=2)
    (folder / "report.json").write_text(text + "\n")
