"""Measures the graph: decision latency by phase, what ROS adds, lockstep speed, memory, ways of thinking.

python -m tools.benchmarks --thoughts 500 --episodes 60 --larger runs/midsize
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from dtvla.bringup.demo import fresh_folder
from dtvla.bringup.graph import GraphOptions
from dtvla.policy.bundle.loading import Bundle
from dtvla.resources import default_bundle
from tools.benchmarks import graph


@dataclass(frozen=True)
class GraphBench:
    """What to measure, and how often."""

    bundle: Path | None = None
    """Folder of the policy bundle. Default: the one that ships with dtvla."""
    steps: int = 120
    """Control periods per round of the comparison with the bare simulator loop."""
    rounds: int = 3
    """How often graph and bare loop take turns."""
    decisions: int = 100
    """Decisions over which the ROS overhead is measured."""
    thoughts: int = 150
    """Recorded observations over which the ways of thinking are compared; 0 leaves that out."""
    episodes: int = 0
    """Episodes in closed loop for each way of thinking; 0 leaves them out (60 take minutes)."""
    larger: Path | None = None
    """Another bundle with the same tokenizer; it is dictated the same thoughts
    (`python -m tools.benchmarks.midsize` makes one of middle size)."""
    output: Path = Path("runs/bench")
    """Where bench.json goes (a folder per run is made in it)."""


def main(bench: GraphBench) -> None:
    """Measures, prints the tables and writes bench.json."""
    console = Console()
    options = GraphOptions(
        bundle=Bundle.load(bench.bundle or default_bundle()).path.resolve(),
        max_steps=bench.steps,
        autostart=False,
        console=False,
        output=fresh_folder(bench.output),
    )
    report = graph.run(
        options,
        steps=bench.steps,
        rounds=bench.rounds,
        decisions=bench.decisions,
        thoughts=bench.thoughts,
        episodes=bench.episodes,
        larger=bench.larger,
        progress=lambda words: console.print(f"  {words}", markup=False, highlight=False),
    )
    for table in graph.tables(report):
        console.print(table)
    console.print(f"Written to {options.output / 'bench.json'}")


if __name__ == "__main__":
    main(tyro.cli(GraphBench, description=__doc__))
