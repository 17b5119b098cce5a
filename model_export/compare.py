"""Bundles of one policy in several precisions side by side: size, speed, and how far they decide apart.

    python -m model_export.compare BUNDLE SMALLER ... --episodes data/embedded

The first bundle is what the others are compared with. Every bundle decides on every recorded picture, in
turn. The actions are compared twice: as decided, and given the first one's thought, which leaves what the
numbers alone change.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table
from tyro.conf import Positional

from dtvla.policy.policy import Policy
from model_export.bundle import size_mb
from model_export.quantise.calibration import recorded_looks


@dataclass(frozen=True)
class Compare:
    """What to compare."""

    bundles: Positional[tuple[Path, ...]]  # the first one is what the others are compared with
    episodes: Path  # folder of `python -m training.collect`; not the one that was calibrated on
    looks: int = 120  # pictures, spread evenly over the episodes
    threads: int = 1  # of one operator
    out: Path | None = None  # write the figures there as JSON


@dataclass(frozen=True)
class Difference:
    """One bundle against the first. Action values are the policy's own, in [-1, 1]."""

    bundle: str
    precision: str
    size_mb: float
    decision_p50_ms: float
    same_thoughts: float  # share of pictures with word for word the same thought
    action_difference: float  # mean absolute difference of action values, each with its own thought
    action_difference_same_thought: float  # with the first bundle's thought
    action_values_alike: float  # share of action values within one bin (2/255) of the first's, same thought


def compare(config: Compare) -> list[Difference]:
    """Decides with every bundle on every picture."""
    policies = [Policy.load(bundle, threads=config.threads) for bundle in config.bundles]
    seconds: list[list[float]] = [[] for _ in policies]
    same: list[list[bool]] = [[] for _ in policies]
    own: list[list[float]] = [[] for _ in policies]
    given: list[list[np.ndarray]] = [[] for _ in policies]
    looks = list(recorded_looks(config.episodes, config.looks))
    for images, instruction in track(looks, "deciding"):
        first = policies[0].decide(images, instruction)
        fixed = policies[0].act(images, instruction, first.thought_ids)
        for i, policy in enumerate(policies):
            policy.reset()
            decision = policy.decide(images, instruction)
            seconds[i].append(decision.timings["total"])
            same[i].append(np.array_equal(decision.thought_ids, first.thought_ids))
            own[i].append(float(np.abs(decision.raw_actions - first.raw_actions).mean()))
            again = policy.act(images, instruction, first.thought_ids)
            given[i].append(np.abs(again.raw_actions - fixed.raw_actions))
    bins = policies[0].bundle.spec.layout.bins
    return [
        Difference(
            bundle=bundle.name,
            precision=policy.bundle.spec.precision,
            size_mb=round(size_mb(bundle), 1),
            decision_p50_ms=round(1e3 * float(np.median(seconds[i])), 2),
            same_thoughts=round(float(np.mean(same[i])), 3),
            action_difference=round(float(np.mean(own[i])), 4),
            action_difference_same_thought=round(float(np.mean(given[i])), 4),
            action_values_alike=round(float(np.mean(np.array(given[i]) <= 2.5 / bins)), 3),
        )
        for i, (bundle, policy) in enumerate(zip(config.bundles, policies, strict=True))
    ]


def main(config: Compare) -> None:
    """Prints the table."""
    found = compare(config)
    heads = (
        "bundle",
        "precision",
        "size",
        "decision p50",
        "same thought",
        "action difference",
        "same thought given",
        "within a bin",
    )
    table = Table(*heads)
    for row in found:
        table.add_row(
            row.bundle,
            row.precision,
            f"{row.size_mb:.1f} MB",
            f"{row.decision_p50_ms:.1f} ms",
            f"{row.same_thoughts:.0%}",
            f"{row.action_difference:.4f}",
            f"{row.action_difference_same_thought:.4f}",
            f"{row.action_values_alike:.0%}",
        )
    Console().print(table)
    if config.out is not None:
        config.out.write_text(json.dumps([asdict(row) for row in found], indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Compare, description=__doc__))
