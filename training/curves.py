"""Learning curves of runs as one picture, from what they wrote for TensorBoard.

    python -m training.curves runs/sft/tiny --out curve.png
    python -m training.curves runs/rl/seed1 runs/rl/seed2 --out curve.png      # one line per run

Shows the panels below whose figures the runs have.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

# What a panel shows: its title, and the tags that it takes (drawn with their last word).
PANELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("loss per token", ("train/thought", "train/action", "held_out/thought_loss", "held_out/action_loss")),
    ("held out: thought tokens right", ("held_out/thought_accuracy",)),
    ("held out: error of actions, normalised", ("held_out/action_l1",)),
    ("closed loop", ("closed_loop/solved", "closed_loop/thoughts_within_3cm")),
    ("success of drawn rollouts", ("rl/success",)),
    ("success of greedy episodes, unseen seeds", ("evaluation/success",)),
    ("groups kept", ("rl/kept_share",)),
    ("entropy per token", ("rl/thought_entropy", "rl/action_entropy")),
    ("KL per token", ("rl/kl_to_rollout", "rl/kl_to_reference")),
    ("share of tokens clipped", ("rl/clip_share", "rl/dual_clip_share")),
    ("words of a thought", ("rl/thought_length",)),
    ("well-formed thoughts", ("rl/format_share",)),
)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7")  # Okabe and Ito
STYLES = ("-", "--", ":", "-.")
Curve = tuple[list[int], list[float]]  # steps and values


@dataclass(frozen=True)
class Curves:
    """Which runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]]  # folders with TensorBoard's files
    out: Path = Path("curves.png")


def read(run: Path) -> dict[str, Curve]:
    """The scalars of a run, by tag; of a step that was written twice the later one.

    Raises:
        ValueError: there are none.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    found: dict[str, Curve] = {}
    for tag in events.Tags()["scalars"]:
        last = {event.step: event.value for event in events.Scalars(tag)}
        found[tag] = (sorted(last), [last[step] for step in sorted(last)])
    if not found:
        raise ValueError(f"{run} holds no scalars of TensorBoard. Give the folder of a run (its --out).")
    return found


def draw(curves: dict[str, dict[str, Curve]], path: Path) -> None:
    """Draws runs, by name, and saves the picture.

    Args:
        curves: of each run, by tag.
        path: of the picture.
    """
    from matplotlib.figure import Figure

    panels = [
        (title, tags) for title, tags in PANELS if any(tag in own for own in curves.values() for tag in tags)
    ]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis, (title, tags) in zip(axes, panels, strict=False):
        for style, (name, own) in zip(STYLES * len(curves), curves.items(), strict=False):
            for colour, tag in zip(COLOURS, tags, strict=False):
                if tag in own:
                    label = " ".join(tag.split("/")).replace("_", " ") if len(tags) > 1 else name
                    label += f", {name}" if len(tags) > 1 and len(curves) > 1 else ""
                    few = "o" if len(own[tag][0]) < 30 else None
                    axis.plot(
                        *own[tag], style, color=colour, label=label, marker=few, markersize=3, linewidth=1.2
                    )
        axis.set_title(title, fontsize=10)
        if title.startswith("loss"):
            axis.set_yscale("log")
        axis.grid(color="0.92")
        axis.spines[["top", "right"]].set_visible(False)
        if len(tags) > 1 or len(curves) > 1:
            axis.legend(fontsize=7, frameon=False)
    for axis in list(figure.axes)[len(panels) :]:
        axis.set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main(config: Curves) -> int:
    """The command; returns its exit code."""
    try:
        draw({run.name: read(run) for run in config.runs}, config.out)
    except ValueError as error:
        Console(stderr=True, highlight=False).print(f"[red]error:[/red] {error}")
        return 1
    Console(highlight=False).print(f"{config.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Curves, description=__doc__)))
