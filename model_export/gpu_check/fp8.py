"""Weights in eight bits (e4m3, one scale per output), activations as they are.

A decoded token reads every weight once and computes next to nothing, so half the bytes is up to half the
time. torch's own eight-bit product (`torch._scaled_mm`) wants the activations in eight bits too: several
small kernels per layer to find their scales, and another rounding. This kernel reads eight-bit weights and
multiplies in the activations' type instead.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model_export.gpu_check.device import Unavailable
from training.model.deepthinkvla import DeepThinkVLA

E4M3_MAX = 448.0
MIN_CAPABILITY = 89  # conversions from e4m3 in hardware


def quantise(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """The weight as e4m3 [O, I] and float32 scales [O] with weight ~ e4m3 * scale."""
    weight = weight_OI.float()
    scale = weight.abs().amax(1).clamp_min(1e-12) / E4M3_MAX
    return (weight / scale[:, None]).to(torch.float8_e4m3fn), scale


def reference_linear(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """x [.., I] times the weight, in float32."""
    return ((x.float() @ weight.float().T) * scale).to(x.dtype)


@torch.library.custom_op("dtvla::fp8_linear", mutates_args=())
def fp8_linear(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """x [.., I] times an e4m3 weight [O, I] with scales [O]; I a multiple of 128."""
    if not x.is_cuda:
        return reference_linear(x, weight, scale)
    from model_export.gpu_check.fp8_kernel import launch

    return launch(x, weight, scale)


@fp8_linear.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


class Fp8Linear(nn.Module):
    """A bias-free linear layer with eight-bit weights."""

    def __init__(self, weight_OI: Tensor) -> None:
        super().__init__()
        weight, scale = quantise(weight_OI)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """x [.., I] -> [.., O]."""
        assert isinstance(self.weight, Tensor)
        assert isinstance(self.scale, Tensor)
        return fp8_linear(x, self.weight, self.scale)


def require(capability: int) -> None:
    """Does nothing where eight-bit weights can be used.

    Raises:
        Unavailable: an older GPU.
    """
    if 0 < capability < MIN_CAPABILITY:
        raise Unavailable(f"eight-bit floats need compute capability 8.9; this GPU has {capability / 10:.1f}")


def quantise_decoder(model: DeepThinkVLA) -> Fp8Linear:
    """Replaces the decoder layers' linear weights in place; returns the head over the vocabulary.

    The embedding table stays as it is for looking ids up; the head is an eight-bit copy of it.
    """
    for module in list(model.decoder.layers.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Fp8Linear(child.weight))
    return Fp8Linear(model.decoder.embed_tokens.weight)
