"""Measures the graph: latency of a decision by phase, what ROS adds to it, speed in lockstep, memory.

The bare loop it is compared with does the same work in one process: the same scene, both cameras
rendered in every step, the same policy deciding at the same steps. Both run in turn, on the same
machine, in the same minutes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from dtvla.bringup import domains
from dtvla.bringup.graph import GraphOptions
from dtvla.bringup.launcher import RunningGraph
from dtvla.policy.stopwatch import TIMINGS
from tools.benchmarks import thinking
from tools.benchmarks.thinking import IMAGE_PX, percentiles

if TYPE_CHECKING:
    from dtvla.nodes.lifecycle.graph_client import GraphClient

TASK = 0
LARGER_LOOKS = 30  # a larger policy takes seconds per look
ANSWER_TIMEOUT_S = 120.0
TARGETS = {
    "overhead_p99_ms": ("ROS overhead p99", "below", 15.0, "ms"),
    "lockstep_share": ("Lockstep speed / bare loop", "at least", 0.8, ""),
    "policy_node_mb": ("Memory of policy_node", "below", 500.0, "MB"),
    "controller_node_mb": ("Memory of controller_node", "below", 150.0, "MB"),
    "libero_bridge_node_mb": ("Memory of libero_bridge_node", "below", 1500.0, "MB"),
    "drafts_of_masked": (
        "Decision with drafts / without a thought",
        "below",
        thinking.MOST_OF_MASKED,
        "x",
    ),
}


@dataclass
class BenchReport:
    """What was measured. Latencies are [p50, p99] in ms, memory is resident in MB (10^6 bytes)."""

    bundle: str
    machine: str = field(default_factory=lambda: f"{platform.platform()}, {os.cpu_count()} processors")
    load_before: tuple[float, float, float] = field(default_factory=os.getloadavg)
    decisions: int = 0
    phases_ms: dict[str, tuple[float, float]] = field(default_factory=dict)
    overhead_ms: tuple[float, float] = (0.0, 0.0)
    lockstep_steps_per_s: float = 0.0
    bare_steps_per_s: float = 0.0
    memory_mb: dict[str, float] = field(default_factory=dict)
    thoughts: list[thinking.ThoughtReport] = field(default_factory=list)  # the first is of `bundle`
    by_length_ms: dict[str, list[float]] = field(default_factory=dict)  # at `thinking.LENGTHS`

    def figures(self) -> dict[str, float]:
        """The figures that have a target, by its key."""
        memory = {f"{name}_mb": value for name, value in self.memory_mb.items()}
        share = self.lockstep_steps_per_s / self.bare_steps_per_s if self.bare_steps_per_s else 0.0
        own = {"drafts_of_masked": self.thoughts[0].of_masked} if self.thoughts else {}
        return {"overhead_p99_ms": self.overhead_ms[1], "lockstep_share": share, **memory, **own}

    def missed(self) -> list[str]:
        """Keys of the targets that were not reached."""
        figures = self.figures()
        return [
            key
            for key, (_, sense, limit, _) in TARGETS.items()
            if key in figures
            if (figures[key] >= limit if sense == "below" else figures[key] < limit)
        ]


def run(
    options: GraphOptions,
    *,
    steps: int,
    rounds: int,
    decisions: int,
    thoughts: int,
    episodes: int,
    larger: Path | None,
    progress: Callable[[str], None],
) -> BenchReport:
    """Runs both benchmarks and writes `bench.json` into `options.output`.

    Args:
        options: the graph; console and recorder stay out.
        steps: control periods per round of the lockstep comparison.
        rounds: how often graph and bare loop take turns.
        decisions: decisions for the overhead.
        thoughts: decisions for the cost of thinking; 0 leaves it out.
        episodes: episodes in closed loop for each way of thinking; 0 leaves them out.
        larger: a bundle with the same tokenizer that the recorded thoughts are dictated to as well.
        progress: told in words what is being measured.
    """
    report = BenchReport(options.bundle.name)
    with domains.reserve() as reservation:
        _measure_lockstep(report, options, reservation.domain, steps, rounds, progress)
        progress(f"ROS overhead over {decisions} decisions")
        _measure_overhead(report, options, reservation.domain, decisions)
    if thoughts:
        looks = thinking.record(options.bundle, options.suite, thoughts, progress)
        progress(f"ways of thinking over {len(looks)} looks")
        report.thoughts.append(thinking.measure(options.bundle, looks))
        if episodes:
            progress(f"{episodes} episodes in closed loop for every way of thinking (minutes)")
            solved = thinking.closed_loop(options.bundle, options.suite, episodes)
            for mode, counts in solved.items():
                report.thoughts[0].modes[mode].solved = counts
        if larger is not None:
            progress(f"ways of thinking with {larger.name}")
            report.thoughts.append(thinking.measure(larger, looks[:LARGER_LOOKS], scripted=True))
        bundle = larger or options.bundle
        progress(f"latency against the length of a thought with {bundle.name}")
        report.by_length_ms = thinking.by_length(
            bundle, looks[0], report.thoughts[0].modes["drafts"].accepted
        )
        thinking.plot(report.by_length_ms, options.output / "latency.png", bundle.name)
    content = {**asdict(report), "figures": report.figures(), "missed": report.missed()}
    (options.output / "bench.json").write_text(json.dumps(content, indent=2) + "\n")
    return report


def tables(report: BenchReport) -> list[Table]:
    """The report for people."""
    latency = Table(title=f"Latency of a decision ({report.decisions} decisions)")
    for name in ("phase", "p50", "p99"):
        latency.add_column(name, justify="left" if name == "phase" else "right")
    for phase, (median, worst) in report.phases_ms.items():
        latency.add_row(phase, f"{median:.1f} ms", f"{worst:.1f} ms")
    latency.add_row("ROS overhead", f"{report.overhead_ms[0]:.1f} ms", f"{report.overhead_ms[1]:.1f} ms")
    speed = (
        f"Lockstep {report.lockstep_steps_per_s:.1f} steps/s, bare loop {report.bare_steps_per_s:.1f} steps/s"
    )
    targets = Table(title=speed)
    for name in ("measure", "value", "target", ""):
        targets.add_column(name, justify="right" if name == "value" else "left")
    figures, missed = report.figures(), report.missed()
    for key, (name, sense, limit, unit) in TARGETS.items():
        if key not in figures:
            continue
        mark = "[red]missed[/]" if key in missed else "[green]met[/]"
        targets.add_row(name, f"{figures[key]:.3g} {unit}", f"{sense} {limit:g} {unit}", mark)
    return [latency, *map(thinking.table, report.thoughts), targets]


def resident_mb(pid: int) -> float:
    """Resident memory of a process in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"Process {pid} has no resident memory; has it ended?")


def _measure_lockstep(
    report: BenchReport,
    options: GraphOptions,
    domain: int,
    steps: int,
    rounds: int,
    progress: Callable[[str], None],
) -> None:
    context = multiprocessing.get_context("spawn")  # a renderer does not survive a fork
    here, there = context.Pipe()
    arguments = (there, str(options.bundle), options.suite, steps)
    bare = context.Process(target=_bare_worker, args=arguments, daemon=True)
    bare.start()
    graph_s = bare_s = 0.0
    try:
        with RunningGraph(options, domain, progress) as graph:
            phases = _listen_to_phases(graph.client)
            for number in range(rounds):
                seed = options.seed + number
                progress(f"lockstep against bare loop, round {number + 1} of {rounds}")
                graph_s += _graph_round(graph.client, options.suite, seed, steps)
                here.send(seed)
                while not here.poll(0.1):
                    graph.check()
                    if not bare.is_alive():
                        raise RuntimeError("The bare loop's process died. `dtvla doctor` may know why.")
                bare_s += here.recv()
            report.memory_mb = {c.spec.name: round(resident_mb(c.process.pid), 1) for c in graph.children}
    finally:
        bare.kill()
        bare.join()
    report.decisions = len(phases["total"])
    report.phases_ms = {name: percentiles(values) for name, values in phases.items() if values}
    report.lockstep_steps_per_s = round(rounds * steps / graph_s, 2)
    report.bare_steps_per_s = round(rounds * steps / bare_s, 2)


def _graph_round(client: GraphClient, suite: str, seed: int, steps: int) -> float:
    """One episode of `steps` steps through the graph; returns its seconds, the reset not counted."""
    episode = client.reset_scene(suite, TASK, seed).episode
    started = time.monotonic()
    done = client.wait(
        lambda: client.state is not None and client.state.episode == episode and client.state.done,
        ANSWER_TIMEOUT_S + steps,
    )
    if not done:
        raise RuntimeError(
            f"The episode did not end. Reports: {[r.message for r in client.reports.values()]}"
        )
    assert client.state is not None
    return (time.monotonic() - started) * steps / max(int(client.state.step), 1)


def _bare_worker(pipe: Connection, bundle: str, suite: str, steps: int) -> None:
    """Answers every seed with the seconds of `steps` steps in one process, without ROS."""
    from dtvla.policy.policy import Policy
    from dtvla.sim.env import SimEnv

    policy = Policy.load(bundle)
    every = policy.bundle.spec.execute_steps
    env = SimEnv(suite, TASK, image_size=IMAGE_PX)
    while True:
        observation = env.reset(pipe.recv())
        policy.reset()
        started = time.monotonic()
        for step in range(steps):
            if step % every == 0:
                chunk = policy.decide(observation.images, env.info.language).raw_actions
            observation = env.step(chunk[step % every])
        pipe.send(time.monotonic() - started)


def _listen_to_phases(client: GraphClient) -> dict[str, list[float]]:
    """Lists of phase latencies in ms that grow with every decision the policy node reports."""
    from diagnostic_msgs.msg import DiagnosticArray

    phases: dict[str, list[float]] = {phase: [] for phase in TIMINGS}
    seen: set[str] = set()

    def take(message: DiagnosticArray) -> None:
        values = {item.key: item.value for status in message.status for item in status.values}
        decision = values.get("decision_id")
        if message.status[0].name != "policy_node" or decision is None or decision in seen:
            return
        seen.add(decision)
        for phase in TIMINGS:
            phases[phase].append(float(values[f"{phase}_ms"]))

    client.node.create_subscription(DiagnosticArray, "/diagnostics", take, 100)
    return phases


def _measure_overhead(report: BenchReport, options: GraphOptions, domain: int, decisions: int) -> None:
    """From handing two images to ROS until the chunk is back in another process, minus the inference."""
    from sensor_msgs.msg import Image
    from std_msgs.msg import String

    from dtvla.nodes.common import qos
    from dtvla.nodes.common.conversions import image_message, to_time
    from dtvla.policy.bundle.loading import Bundle
    from dtvla_msgs.msg import ActionChunk

    alone = GraphOptions(
        bundle=options.bundle, simulator=False, console=False, output=options.output / "overhead"
    )
    overheads: list[float] = []
    with RunningGraph(alone, domain) as graph:
        client, node = graph.client, graph.client.node
        chunks: list[tuple[float, ActionChunk]] = []
        node.create_subscription(
            ActionChunk, "/policy/action_chunk", lambda m: chunks.append((time.monotonic(), m)), qos.COMMAND
        )
        cameras = [camera.name for camera in Bundle.load(options.bundle).spec.cameras]
        outputs = [node.create_publisher(Image, f"/{name}/image_raw", qos.SENSOR) for name in cameras]
        words = node.create_publisher(String, "/instruction", qos.LATCHED)
        words.publish(String(data="Pick up the can and place it in the basket"))
        client.wait(lambda: all(p.get_subscription_count() for p in (*outputs, words)), ANSWER_TIMEOUT_S)
        picture = np.random.default_rng(0).integers(0, 256, (IMAGE_PX, IMAGE_PX, 3), np.uint8)
        stamp_ns = time.time_ns()
        while len(overheads) < decisions + 1:
            stamp_ns += 1_000_000_000  # every look is a second later: a decision is due at once
            chunks.clear()
            started = time.monotonic()
            for output in outputs:
                output.publish(image_message(picture, to_time(stamp_ns), "camera"))
            if client.wait(lambda: bool(chunks), 5.0):  # an image may be lost: then the next look
                received, chunk = chunks[0]
                inference = chunk.inference_time.sec + chunk.inference_time.nanosec / 1e9
                overheads.append(1000 * (received - started - inference))
    report.overhead_ms = percentiles(overheads[1:])
