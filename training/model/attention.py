"""Attention of the decoder: rotary positions, grouped queries under a mask, prompts apart from what follows.

Shapes in suffixes: B batch, S sequence, N heads, K key/value heads, D head dimension.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def rope_tables(positions_BS: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine [B, 1, S, D/2] in float32 of the given 1-based positions."""
    index = torch.arange(0, head_dim, 2, dtype=torch.int64, device=positions_BS.device).float()
    inverse = 1.0 / (theta ** (index / head_dim))
    angle = positions_BS.float()[:, None, :, None] * inverse
    return angle.cos(), angle.sin()


def rotate(x_BNSD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding on the two halves of the head dimension."""
    a, b = x_BNSD.chunk(2, -1)
    cos, sin = cos.to(x_BNSD.dtype), sin.to(x_BNSD.dtype)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Early(NamedTuple):
    """The first rows of all sequences, which look at the first keys alone: those of the prompts."""

    rows: int
    keys: int


NOBODY = Early(0, 0)


def attend(
    q_BNSD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, mask: Tensor | None, early: Early = NOBODY
) -> Tensor:
    """Scaled dot-product attention; `mask` is bool [B, 1, S, S'] (True = may look) or None for all.

    What `early` rows do not look at is not computed: they are half of a sequence, and look at half of it.
    """
    rows, keys = early
    if not rows or mask is None:
        return _attend(q_BNSD, k_BKSD, v_BKSD, mask)
    begin = _attend(q_BNSD[:, :, :rows], k_BKSD[:, :, :keys], v_BKSD[:, :, :keys], mask[:, :, :rows, :keys])
    return torch.cat([begin, _attend(q_BNSD[:, :, rows:], k_BKSD, v_BKSD, mask[:, :, rows:])], 2)


def _attend(q_BNSD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, mask: Tensor | None) -> Tensor:
    if q_BNSD.device.type == "cpu":  # its kernel shares keys among heads; CUDA's would leave the fast ones
        return F.scaled_dot_product_attention(q_BNSD, k_BKSD, v_BKSD, attn_mask=mask, enable_gqa=True)
    groups = q_BNSD.shape[1] // k_BKSD.shape[1]
    k, v = k_BKSD.repeat_interleave(groups, 1), v_BKSD.repeat_interleave(groups, 1)
    return F.scaled_dot_product_attention(q_BNSD, k, v, attn_mask=mask)
