"""What a run will need, said before its first step: memory of a process, arithmetic of a sample, time."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import nn

from training.model.config import ModelConfig
from training.sft.models import part_of
from training.sft.settings import Sft

GIB = 2**30
USABLE = 0.5  # share of the measured product's speed that whole training steps reach


@dataclass(frozen=True)
class Estimate:
    """Of one process, for one step.

    Attributes:
        parameters, trained: by part of the model.
        weight_bytes, gradient_bytes, optimiser_bytes, activation_bytes: at their largest.
        flop: of one sample, forwards and backwards.
        flop_per_s: of a matrix product of this model's size on this device, measured.
        samples_per_s: of all processes together, expected.
    """

    parameters: dict[str, int]
    trained: dict[str, int]
    weight_bytes: int
    gradient_bytes: int
    optimiser_bytes: int
    activation_bytes: int
    flop: float
    flop_per_s: float
    samples_per_s: float

    @property
    def bytes(self) -> int:
        return self.weight_bytes + self.gradient_bytes + self.optimiser_bytes + self.activation_bytes


def estimate(config: Sft, model: nn.Module, tokens: int, world: int) -> Estimate:
    """From the model's sizes, `tokens` of a sample, and one measured matrix product."""
    model_config: ModelConfig = model.config  # type: ignore[assignment]
    parameters: dict[str, int] = {}
    learned: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part, count = part_of(name), parameter.numel()
        parameters[part] = parameters.get(part, 0) + count
        learned[part] = learned.get(part, 0) + count * parameter.requires_grad
    total, trained = sum(parameters.values()), sum(learned.values())
    shards = world if config.parallel == "shard" else 1
    text, vision = model_config.text, model_config.vision
    width = 2 if config.model.precision == "bf16" else 4
    # Of a layer and token: inputs, queries, keys, values, output, and four of the feed-forward.
    kept = 6 * text.hidden_size + 4 * text.intermediate_size
    seen = 6 * vision.hidden_size + 3 * vision.intermediate_size
    if config.model.gradient_checkpointing:
        kept, seen = text.hidden_size, vision.hidden_size
    micro = config.micro_batch or -(-config.batch // world)
    images = model_config.layout.images * vision.tokens
    activations = micro * width * (tokens * text.layers * kept + images * vision.layers * seen)
    activations += micro * tokens * text.vocab_size * 4 // 2  # logits of the supervised rows, in float32
    moments = 1 if config.optimiser.kind == "muon" else 2
    flop = 6.0 * (parameters.get("decoder", 0) * tokens + parameters.get("vision", 0) * images)
    if config.model.gradient_checkpointing:
        flop *= 4 / 3
    speed = _product_speed(micro * tokens, text.hidden_size, text.intermediate_size, next(model.parameters()))
    return Estimate(
        parameters,
        learned,
        4 * total // shards + (2 * total // shards if width == 2 else 0),
        4 * trained // shards,
        4 * moments * trained // shards,
        activations,
        flop,
        speed,
        world * USABLE * speed / flop,
    )


def _product_speed(rows: int, inner: int, outer: int, like: torch.Tensor) -> float:
    """FLOP/s of one matrix product on the device of `like`, the best of a few."""
    a = torch.ones(rows, inner, device=like.device)
    b = torch.ones(inner, outer, device=like.device)
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        _ = (a @ b)[0, 0].item()
        best = min(best, time.perf_counter() - begin)
    return 2.0 * rows * inner * outer / best


def table(found: Estimate, config: Sft, world: int) -> Table:
    """The estimate as a table for the console."""
    out = Table("", "", title="What this run needs (estimated)", title_justify="left", show_header=False)
    total, trained = sum(found.parameters.values()), sum(found.trained.values())
    parts = ", ".join(f"{part} {count / 1e6:.2f}" for part, count in found.parameters.items())
    out.add_row("parameters", f"{total / 1e6:.2f} M ({parts}), {trained / 1e6:.2f} M trained")
    out.add_row(
        "memory of a process",
        f"{found.bytes / GIB:.2f} GiB: weights {found.weight_bytes / GIB:.2f}, gradients "
        f"{found.gradient_bytes / GIB:.2f}, optimiser {found.optimiser_bytes / GIB:.2f}, activations "
        f"{found.activation_bytes / GIB:.2f}",
    )
    out.add_row("arithmetic", f"{found.flop / 1e9:.2f} GFLOP a sample; a product here: {_speed(found)}")
    hours = config.steps * config.batch / found.samples_per_s / 3600
    out.add_row(
        "time",
        f"{found.samples_per_s:.1f} samples/s in {world} process(es): {hours:.1f} h for {config.steps} steps "
        f"of {config.batch}",
    )
    return out


def _speed(found: Estimate) -> str:
    return f"{found.flop_per_s / 1e9:.0f} GFLOP/s, of which {USABLE:.0%} are expected"
