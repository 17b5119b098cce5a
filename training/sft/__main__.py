"""Supervised fine-tuning: think, then act.

    python -m training.sft --config tiny
    torchrun --nproc-per-node 2 -m training.sft --config tiny --threads 1      # the same steps on two cores
    torchrun --nproc-per-node 8 -m training.sft --config deepthinkvla-2.9b     # FSDP2 over eight GPUs

Run the same command again to go on after an interruption, whatever interrupted it. TensorBoard: `tensorboard
--logdir runs/sft`. `python -m model_export runs/sft/tiny/best` makes a bundle of the result.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from dataclasses import asdict

from rich.console import Console
from torch.utils.tensorboard import SummaryWriter

from training.common import parallel
from training.common.run_checkpoints import TrainingError
from training.common.settings import parse
from training.datasets.errors import DatasetError
from training.model.hf_checkpoint import CheckpointError
from training.sft.closed_loop import best_share, score
from training.sft.estimate import estimate, table
from training.sft.settings import Sft
from training.sft.trainer import Trainer


def run(config: Sft) -> Trainer:
    """Trains until `steps`, or `stop_after`; goes on where the last checkpoint in `out` stands.

    Raises:
        CheckpointError, DatasetError, TrainingError, ValueError: in plain sentences.
    """
    first = os.environ.get("RANK", "0") == "0"
    console = Console(quiet=not first, highlight=False)
    trainer = Trainer(config)
    if trainer.resume():
        console.print(f"Going on at step {trainer.step} of {trainer.checkpoints.last()}.")
    console.print(f"Learning from {trainer.source.description}.")
    _tell_needs(trainer, console)
    with contextlib.closing(_writer(trainer)) if first else contextlib.nullcontext() as writer:
        _loop(trainer, writer, console)
    for sentence in trainer.source.skipped:
        console.print(f"[yellow]Left out:[/] {sentence}")
    return trainer


def _writer(trainer: Trainer) -> SummaryWriter:
    """Of TensorBoard; what an interrupted run wrote behind its last checkpoint is taken back."""
    return SummaryWriter(str(trainer.config.out), purge_step=trainer.step + 1)


def _tell_needs(trainer: Trainer, console: Console) -> None:
    world = trainer.share.world
    needs = estimate(trainer.config, trainer.model, trainer.longest(), world)
    console.print(table(needs, trainer.config, world))


def _loop(trainer: Trainer, writer: SummaryWriter | None, console: Console) -> None:
    config = trainer.config
    last = min(config.steps, config.stop_after or config.steps)
    best = best_share(trainer.checkpoints.best())
    began, first = time.monotonic(), trainer.step
    while trainer.step < last:
        figures = trainer.advance()
        step = trainer.step
        if writer is not None and step % config.log_every == 0:
            rate = (step - first) * config.batch / (time.monotonic() - began)
            for key, value in (asdict(figures) | {"samples_per_s": rate}).items():
                writer.add_scalar(f"train/{key}", value, step)
            left = (config.steps - step) * config.batch / rate / 60
            console.print(
                f"step {step}/{config.steps}  loss {figures.loss:.3f}  thought {figures.thought:.3f} "
                f"({figures.thought_accuracy:.3f})  action {figures.action:.3f}  {rate:.1f} samples/s  "
                f"{left:.0f} min left"
            )
        if step % config.save_every == 0 or step == last:
            best = max(best, _keep(trainer, writer, console, best))


def _keep(trainer: Trainer, writer: SummaryWriter | None, console: Console, best: float) -> float:
    """Writes a checkpoint, looks at held-out rows, and now and then plays; returns the share solved."""
    config, step = trainer.config, trainer.step
    checkpoint = trainer.save()
    found = {f"held_out/{key}": value for key, value in trainer.validate().items()}
    solved = -1.0
    due = config.closed_loop.every and step % config.closed_loop.every == 0
    if due or (config.closed_loop.every and step == config.steps):
        if writer is not None:
            result = score(checkpoint, config.closed_loop, config.decoding)
            solved = result.share
            found |= {"closed_loop/solved": solved, "closed_loop/thoughts_within_3cm": result.near}
            console.print(f"  closed loop: {result.solved} of {result.episodes} ({result.errors} errors)")
        parallel.wait()
    if writer is not None:
        for key, value in found.items():
            writer.add_scalar(key, value, step)
        said = "  ".join(f"{key.removeprefix('held_out/')} {value:.3f}" for key, value in found.items())
        console.print(f"  {checkpoint.name}: {said}")
        if not config.closed_loop.every or solved >= max(best, 0.0):
            trainer.checkpoints.mark_best(checkpoint)
    return solved


def main() -> int:
    """The command; returns its exit code."""
    config = parse(Sft, __doc__ or "")
    try:
        run(config)
    except (CheckpointError, DatasetError, TrainingError, ValueError) as error:
        Console(stderr=True, highlight=False).print(f"[red]error:[/] {error}")
        return 1
    except KeyboardInterrupt:
        Console(stderr=True).print("Stopped. The same command goes on from the last checkpoint.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
