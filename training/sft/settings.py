"""What a supervised run does: see training/configs for whole configurations."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from dtvla.policy.options import Decoding
from training.datasets.augment import Augmentation


def _share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; it is a share from 0 to 1.")


@dataclass(frozen=True)
class ModelSettings:
    """Which model is trained, and how it is computed."""

    init: str = "tiny"  # tiny or base: from scratch; else a checkpoint's folder or hub id
    precision: Literal["fp32", "bf16"] = "fp32"  # of the passes; weights and optimiser stay float32
    onednn: bool = False  # fp32 products on a CPU by oneDNN: faster on AMD (`training.model.onednn`)
    gradient_checkpointing: bool = False  # a third more arithmetic, activations of one layer at a time
    lora_rank: int = 0  # above 0: the decoder learns low-rank changes of its matrices only
    lora_alpha: float = 16.0  # their scale is alpha / rank

    @property
    def dtype(self) -> torch.dtype:
        """`precision` as torch's."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def __post_init__(self) -> None:
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank is {self.lora_rank}; it is 0 (off) or more.")


@dataclass(frozen=True)
class DataSettings:
    """What is learned from."""

    folder: Path = Path("data/embedded")  # of `python -m training.collect`, or a LeRobot dataset
    window: int = 8  # of a dataset on disk: episodes that are open at a time
    thought_dropout: float = 0.0  # share of the looks that are shown without a thought, and its prompt
    other_words: float = 0.0  # share of the embedded suites' looks whose task is said in other words
    augmentation: Augmentation = "shift"  # of the pictures; the published training: reference
    hold_out: int = 192  # rows of held-out episodes that are looked at with every checkpoint

    def __post_init__(self) -> None:
        _share("thought_dropout", self.thought_dropout)
        _share("other_words", self.other_words)


@dataclass(frozen=True)
class OptimiserSettings:
    """How the weights move. Per-part learning rates and schedule as the reference (sft/sft_trainer.py)."""

    kind: Literal["muon", "adamw"] = "muon"  # muon: for training from scratch, in one piece per process
    lr: float = 2e-3  # of the decoder
    vision_lr: float | None = None  # of the vision tower; None: the decoder's; 0: it stays as it is
    projector_lr: float | None = None  # likewise
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.02  # not on norms and biases; with muon on matrices only
    clip: float = 1.0  # of the gradient's norm
    warmup: int = 100  # steps
    final_share: float = 0.05  # of the learning rate that the cosine ends at

    def __post_init__(self) -> None:
        _share("final_share", self.final_share)


@dataclass(frozen=True)
class LoopSettings:
    """Closed-loop episodes while it trains; the checkpoint with most successes becomes `best`."""

    every: int = 0  # steps between two evaluations; 0: never
    suites: tuple[str, ...] = ("embedded",)
    episodes: int = 18  # of each suite
    seed0: int = 50_000  # training has 100,000 and up, final evaluations 10,000 and up
    workers: int = 2


@dataclass(frozen=True)
class Sft:
    """A supervised run."""

    out: Path = Path("runs/sft/tiny")
    steps: int = 2900
    batch: int = 32  # samples of a step, over all processes and micro-batches
    micro_batch: int | None = None  # samples of one pass in one process; None: all of its share
    thought_weight: float = 5.0  # weight of a thought token against an action token (the reference: 1)
    actions: Literal["parallel", "one_by_one"] = "parallel"  # hybrid attention, or all tokens causal
    execute_steps: int = 5  # rows of a chunk that the runtime executes per decision
    thought_cap: int = 64  # most tokens of a thought at run time
    parallel: Literal["replicate", "shard"] = "replicate"  # under torchrun; shard: FSDP2
    seed: int = 429
    threads: int = 2
    log_every: int = 20
    save_every: int = 100
    keep: int = 2  # checkpoints beside the best one
    stop_after: int | None = None  # end this run at that step; the schedule still aims at `steps`
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    closed_loop: LoopSettings = field(default_factory=LoopSettings)

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "execute_steps", "thought_cap", "threads", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more.")
        if self.parallel == "shard" and self.optimiser.kind == "muon":
            raise ValueError("parallel 'shard' splits every matrix, and muon needs whole ones; take adamw.")
        if self.actions == "one_by_one" and self.data.thought_dropout == 1:
            raise ValueError("actions 'one_by_one' and thought_dropout 1 are two baselines; take one.")

    @property
    def decoding(self) -> Decoding:
        """How the policy has learned to decide."""
        if self.actions == "one_by_one":
            return "autoregressive"
        return "none" if self.data.thought_dropout == 1 else "hybrid"
