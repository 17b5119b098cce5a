"""Low-rank adapters (LoRA: Hu et al. 2021, arXiv 2106.09685) that leave no trace in a checkpoint.

The frozen matrix W acts together with (alpha / rank) B A. B begins at zero, so that the first step starts at
the loaded model; checkpoints hold the sum, as every other tool expects them.

Not by `peft`: its layers keep the frozen matrix under another name (`base_layer.weight`), where readers of
the published names would not find it; its `merge_and_unload` takes the adapters out of the model that is
being trained, where we write merged checkpoints of a model that trains on; and it needs accelerate.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LoraLinear(nn.Linear):
    """A linear layer without bias whose weight is frozen, and a trained low-rank change of it."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = linear.weight
        self.weight.requires_grad_(False)
        self.scale = alpha / rank
        like = linear.weight.detach()
        first = torch.empty(rank, linear.in_features).uniform_(-1, 1, generator=generator)
        self.lora_A = nn.Parameter(first.to(like) * math.sqrt(1 / linear.in_features))
        self.lora_B = nn.Parameter(like.new_zeros(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.linear(F.linear(x, self.lora_A), self.lora_B) * self.scale

    def merged(self) -> Tensor:
        """The matrix that acts."""
        return self.weight + self.scale * (self.lora_B @ self.lora_A)


def add_adapters(decoder: nn.Module, rank: int, alpha: float, seed: int) -> None:
    """Puts adapters on the attention and feed-forward matrices of a decoder, and freezes the rest of it."""
    decoder.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for module in list(decoder.modules()):
        for name, child in list(module.named_children()):
            if name in TARGETS and isinstance(child, nn.Linear):
                setattr(module, name, LoraLinear(child, rank, alpha, generator))


def merged_weights(weights: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """A state dict with every adapter added to its matrix.

    Args:
        weights: by name; `X.lora_A` and `X.lora_B` belong to `X.weight`.
        scale: alpha / rank.
    """
    merged = {name: tensor for name, tensor in weights.items() if ".lora_" not in name}
    for name, first in weights.items():
        if name.endswith(".lora_A"):
            stem = name.removesuffix("lora_A")
            change = weights[f"{stem}lora_B"].float() @ first.float()
            matrix = merged[f"{stem}weight"]
            merged[f"{stem}weight"] = (matrix.float() + scale * change).to(matrix.dtype)
    return merged
