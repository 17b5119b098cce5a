"""Muon in float32: momentum whose update is orthogonalised, for the matrices of a network.

`torch.optim.Muon` orthogonalises in bfloat16, which a CPU without bfloat16 arithmetic has to emulate.
Method: K. Jordan et al., "Muon: an optimizer
for hidden layers in neural networks" (2024); scale of the update after Liu et al., arXiv 2502.16982.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, from the first source
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Muon for 2-d parameters; the learning rate is on AdamW's scale.

    Args:
        parameters: matrices.
        lr: learning rate; an update has the root mean square that AdamW's typically has (0.2 lr).
        momentum: of the gradient's moving average (Nesterov form).
        weight_decay: decoupled.
    """

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Updates every matrix that has a gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(matrix)
                average = state["momentum"].lerp_(matrix.grad, 1 - group["momentum"])
                direction = orthogonalise(matrix.grad.lerp(average, group["momentum"]))
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(direction, alpha=-group["lr"] * 0.2 * max(matrix.shape) ** 0.5)


def orthogonalise(gradient: Tensor) -> Tensor:
    """The nearest matrix with singular values close to 1 (five Newton-Schulz iterations)."""
    a, b, c = _COEFFICIENTS
    x = gradient.float()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(gradient.dtype)
