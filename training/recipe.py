"""The policy that ships, from nothing, by one command that goes on where it was interrupted.

    python -m training.recipe                 # two and a half hours on two cores

It records the expert (also from wrong ways), trains, lets the learner drive and records what the expert would
have done (DAgger: Ross et al. 2011), trains on, and exports the checkpoint that solved most episodes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from dtvla.sim.suites.embedded import SUITES
from training.common.commands import run_step, torchrun

DETOURS, LEARNER = 200_000, 300_000  # first seeds; the expert's own are 100,000 and up


@dataclass(frozen=True)
class Recipe:
    """How much of everything."""

    out: Path = Path("runs/policy")  # the bundle
    data: Path = Path("data/embedded")
    run: Path = Path("runs/sft/tiny")
    episodes: int = 80  # of each task, by the expert
    detours: int = 60  # of each task, first towards something else
    driven: int = 20  # of each task, by the learner
    half: int = 2000  # steps before the learner drives
    steps: int = 5200
    processes: int = 2  # of recording and training
    precision: Literal["fp32", "bf16"] = "fp32"  # of the training; bf16 needs a CPU that has it (avx512_bf16)


def commands(recipe: Recipe) -> Iterator[tuple[str, list[str]]]:
    """What is done, in words and as arguments for Python."""
    collect = ["-m", "training.collect", "--out", str(recipe.data), "--workers", str(recipe.processes)]
    for suite in SUITES:
        own = [*collect, "--suite", suite]
        yield (
            f"{suite}: ways from a wrong object",
            [*own, "--detours", "--seed0", str(DETOURS), "--episodes", str(recipe.detours), "--every", "2"],
        )
        yield f"{suite}: the expert", [*own, "--episodes", str(recipe.episodes)]
    train = [*torchrun(recipe.processes), "-m", "training.sft", "--config", "tiny", "--threads", "1"]
    train += ["--out", str(recipe.run)]
    train += ["--data.folder", str(recipe.data), "--steps", str(recipe.steps)]
    train += ["--model.precision", recipe.precision]
    learner = recipe.run / "learner"
    if not learner.is_dir():
        yield "the first half of the training", [*train, "--stop-after", str(recipe.half)]
        yield (
            "a bundle of the learner",
            ["-m", "model_export", str(recipe.run / "last"), "--out", str(learner)],
        )
    for suite in SUITES:
        driven = ["--policy", str(learner), "--seed0", str(LEARNER), "--episodes", str(recipe.driven)]
        yield f"{suite}: the learner drives", [*collect, "--suite", suite, *driven, "--every", "5"]
    yield "the second half of the training", train
    release = str(recipe.run / "release")
    hand_on = ["-m", "training.release", str(recipe.run / "best"), release, "--episodes", str(recipe.data)]
    yield "the checkpoint to hand on", hand_on
    yield (
        "the bundle",
        [
            *("-m", "model_export", release, "--out", str(recipe.out)),
            *("--precision", "int8", "--calibrate", str(recipe.data)),
        ],
    )


def main(recipe: Recipe) -> int:
    """Runs the steps; returns the exit code of the first that fails."""
    console = Console(highlight=False)
    for number, (words, arguments) in enumerate(commands(recipe), 1):
        code = run_step(f"{number}. {words}", arguments, console)
        if code != 0:
            return code
    console.print(f"Done: {recipe.out}. Try it: dtvla eval --policy {recipe.out} --episodes 180")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Recipe, description=__doc__)))
