"""A checkpoint to hand on: the weights in half precision, without the trainer's state.

    python -m training.release runs/sft/tiny/best my_checkpoint --episodes data/embedded

`training.recipe` exports its bundle from what this writes, so that a run that goes on from it (`python -m
training.rl --checkpoint ...`) begins with the policy that was measured.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console
from torch import Tensor

from model_export.errors import ExportError
from model_export.typical_thoughts import with_typical
from training.model.hf_checkpoint import CheckpointError, load_policy, save_policy


@dataclass(frozen=True)
class Release:
    """What is written where."""

    checkpoint: tyro.conf.Positional[str]  # folder of a checkpoint, or a hub id owner/name
    out: tyro.conf.Positional[Path]  # folder to write; weights that are there are replaced
    episodes: Path | None = None  # of `python -m training.collect`: its typical thoughts are taken from them


def halved(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights as float16.

    Raises:
        CheckpointError: a weight is too large for it.
    """
    small = {name: tensor.to(torch.float16) for name, tensor in weights.items()}
    for name, tensor in small.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"The tensor {name} holds numbers that float16 cannot hold.")
    return small


def release(config: Release) -> None:
    """Writes the checkpoint.

    Raises:
        CheckpointError: it cannot be read, or not be written in half precision.
        ExportError: there are no episodes.
    """
    policy = load_policy(config.checkpoint)
    spec = with_typical(policy.spec, policy.tokenizer, config.episodes)
    save_policy(config.out, policy.model.config, halved(policy.model.state_dict()), spec, policy.tokenizer)


def main(config: Release) -> int:
    """The command; returns its exit code."""
    try:
        release(config)
    except (CheckpointError, ExportError, OSError) as error:
        Console(stderr=True, highlight=False).print(f"[red]error:[/red] {error}")
        return 1
    size = sum(path.stat().st_size for path in config.out.glob("*.safetensors")) / 1e6
    Console(highlight=False).print(f"{config.out}: {size:.1f} MB of weights in half precision")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Release, description=__doc__)))
