"""Products of float32 matrices by oneDNN instead of the BLAS that torch calls.

On the AMD processors here oneDNN multiplies the small policy's matrices a fifth faster than torch's MKL (101
against 81 GFLOP/s at 3,312 x 192 x 512); an Intel processor may see no difference. Sums round otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _Product(torch.autograd.Function):
    """x W^T for a weight W [out, in] without bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _multiply(x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        rows, own = gradient.flatten(0, -2), x.flatten(0, -2)
        return _multiply(gradient, weight.t().contiguous()), rows.t() @ own  # MKL is as fast for the second


def _multiply(x: Tensor, weight: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return product


class OneDnnLinear(nn.Linear):
    """A linear layer without bias whose float32 products on a CPU are oneDNN's."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]; other precisions and devices go torch's way."""
        plain = x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32
        if not plain or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        product: Tensor = _Product.apply(x, self.weight)
        return product


def use_onednn(model: nn.Module) -> None:
    """Makes oneDNN compute a model's linear layers without bias; weights and their names stay."""
    for module in model.modules():
        if type(module) is nn.Linear and getattr(module, "bias", None) is None:
            module.__class__ = OneDnnLinear
