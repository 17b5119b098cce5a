# mypy: disable-error-code="no-untyped-def"
"""The product of `fp8.fp8_linear` in Triton; imported where a GPU (or Triton's interpreter) runs it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

FEW_ROWS = 16


@triton.jit
def linear_kernel(
    X, WEIGHT, SCALE, OUT, rows, outputs,
    INPUTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """OUT [rows, outputs] = X [rows, INPUTS] times WEIGHT [outputs, INPUTS]; grid (columns, rows)."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    depth = tl.arange(0, DEPTH)
    x_at = X + row[:, None].to(tl.int64) * INPUTS + depth[None, :]
    w_at = WEIGHT + column[:, None].to(tl.int64) * INPUTS + depth[None, :]
    acc = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, INPUTS, DEPTH):
        x = tl.load(x_at + first, mask=row[:, None] < rows, other=0.0)
        w = tl.load(w_at + first, mask=column[:, None] < outputs, other=0.0)
        acc += tl.dot(x, tl.trans(w.to(x.dtype)))
    acc = acc * tl.load(SCALE + column, mask=column < outputs, other=0.0)[None, :]
    keep = (row[:, None] < rows) & (column[None, :] < outputs)
    out_at = OUT + row[:, None].to(tl.int64) * outputs + column[None, :]
    tl.store(out_at, acc.to(OUT.dtype.element_ty), mask=keep)


def launch(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """The product on the GPU (see `fp8.fp8_linear`)."""
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    rows, inputs = flat.shape
    outputs = weight.shape[0]
    out = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    # Few rows: narrow strips of outputs, so that every multiprocessor reads weights. Many: square tiles.
    tile, columns, depth, warps = (16, 16, 128, 4) if rows <= FEW_ROWS else (64, 128, 64, 8)
    grid = (triton.cdiv(outputs, columns), triton.cdiv(rows, tile))
    linear_kernel[grid](
        flat, weight, scale, out, rows, outputs,
        INPUTS=inputs, ROWS=tile, COLUMNS=columns, DEPTH=depth, num_warps=warps, num_stages=3,
    )  # fmt: skip
    return out.reshape(*x.shape[:-1], outputs)
