# mypy: disable-error-code="no-untyped-def"
"""The hybrid-mask attention as Triton kernels: flash attention over a static key/value cache.

    q, out [B, N, S, D]; k, v [B, K, C, D] (C positions allocated); bounds int32 [B, 4] as `layout.Bounds`

The mask rule `j < kv_len and (j < prefix_len or j <= i or i >= action_start)` is one number per row: row i
sees the keys before `kv_len` if i >= action_start, else those before `min(kv_len, max(prefix_len, i + 1))`.
So a tile of rows compares against limits only in the key blocks between its smallest and its largest one;
blocks below need no mask, blocks above are never read. Keys at or after `kv_len` may hold anything, NaN too.
A row that sees no key gives zeros.

The N / K query heads of one key head are stacked as rows (head after head), so that every key that is read
serves all of them. Parameter order is TensorRT's: inputs, extra integers, outputs (tensorrt_plugin.py).
"""

from __future__ import annotations

import triton
import triton.language as tl

LOW = tl.constexpr(-1.0e30)  # the score of an unseen key; finite, so that no difference of two is NaN
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _scan(
    q, k_base, v_base, begin, end, limit, peak, total, acc, factor,
    D: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Takes the key blocks of [begin, end) into the running softmax of a tile (peak, total, acc).

    With MASKED every row keeps to its `limit` and keys from `end` on are not read; without, all rows see all.
    """
    d = tl.arange(0, WIDTH)
    for first in range(begin, end, KEYS):
        j = first + tl.arange(0, KEYS)
        offset = j[:, None] * D + d[None, :]
        if MASKED:
            there = (j[:, None] < end) & (d[None, :] < D)
            k = tl.load(k_base + offset, mask=there, other=0.0)
        elif D == WIDTH:
            k = tl.load(k_base + offset)
        else:
            k = tl.load(k_base + offset, mask=d[None, :] < D, other=0.0)
        score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * factor
        if MASKED:
            seen = j[None, :] < limit[:, None]
            score = tl.where(seen, score, LOW)
        new_peak = tl.maximum(peak, tl.max(score, 1))
        weight = tl.exp2(score - new_peak[:, None])
        if MASKED:
            weight = tl.where(seen, weight, 0.0)  # a row that has seen nothing yet has peak LOW: exp2(0)
        fade = tl.exp2(peak - new_peak)
        total = total * fade + tl.sum(weight, 1)
        # Values of unseen keys are loaded as zeros: 0 x NaN would be NaN.
        if MASKED:
            v = tl.load(v_base + offset, mask=there, other=0.0)
        elif D == WIDTH:
            v = tl.load(v_base + offset)
        else:
            v = tl.load(v_base + offset, mask=d[None, :] < D, other=0.0)
        acc = acc * fade[:, None] + tl.dot(weight.to(v.dtype), v, input_precision=PRECISION)
        peak = new_peak
    return peak, total, acc


@triton.jit
def _tile(
    Q, K, V, BOUNDS, rows, cache, sample, part, SCALE: tl.constexpr, GROUP: tl.constexpr,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Part `part` of PARTS of the softmax of one tile of stacked rows: its peak, total and weighted sum.

    Returns also the tile's row numbers and the index of key head `program_id(1)` of the sample.
    """
    at = (sample * tl.num_programs(1) + tl.program_id(1)).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = row < GROUP * rows
    d = tl.arange(0, WIDTH)
    q_offset = at * (GROUP * rows * D) + row[:, None] * D + d[None, :]
    q = tl.load(Q + q_offset, mask=real[:, None] & (d[None, :] < D), other=0.0)
    prefix = tl.load(BOUNDS + sample * 4)
    start = tl.load(BOUNDS + sample * 4 + 1)
    # A runtime that tries a kernel out on arbitrary data must not make it read behind the cache.
    length = tl.minimum(tl.maximum(tl.load(BOUNDS + sample * 4 + 2), 0), cache)
    i = tl.load(BOUNDS + sample * 4 + 3) + row % rows
    limit = tl.where(i >= start, length, tl.minimum(length, tl.maximum(prefix, i + 1)))
    limit = tl.maximum(limit, 0)
    last = tl.max(tl.where(real, limit, 0), 0)
    dense = tl.min(tl.where(real, limit, cache), 0) // KEYS * KEYS  # below, every row sees every key
    # Each part takes whole blocks of the keys that exist, not of those that are allocated.
    share = tl.cdiv(tl.cdiv(last, PARTS), KEYS) * KEYS
    begin = part * share
    end = tl.minimum(begin + share, last)
    peak = tl.full([ROWS], LOW, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    k_base, v_base = K + at * cache * D, V + at * cache * D
    factor = SCALE * LOG2_E
    peak, total, acc = _scan(
        q, k_base, v_base, begin, tl.minimum(end, dense), limit, peak, total, acc, factor,
        D, WIDTH, KEYS, False, PRECISION,
    )  # fmt: skip
    peak, total, acc = _scan(
        q, k_base, v_base, tl.maximum(begin, dense), end, limit, peak, total, acc, factor,
        D, WIDTH, KEYS, True, PRECISION,
    )  # fmt: skip
    return peak, total, acc, row, at


@triton.jit
def attention_kernel(
    Q, K, V, BOUNDS, rows, cache, OUT, SCALE: tl.constexpr, GROUP: tl.constexpr,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attention in one pass; grid (ceil(GROUP * rows / ROWS), key heads, samples)."""
    _, total, acc, row, at = _tile(
        Q, K, V, BOUNDS, rows, cache, tl.program_id(2), 0, SCALE, GROUP,
        D, WIDTH, ROWS, KEYS, 1, PRECISION,
    )  # fmt: skip
    out = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    d = tl.arange(0, WIDTH)
    offset = at * (GROUP * rows * D) + row[:, None] * D + d[None, :]
    keep = (row[:, None] < GROUP * rows) & (d[None, :] < D)
    tl.store(OUT + offset, out.to(OUT.dtype.element_ty), mask=keep)


@triton.jit
def split_kernel(
    Q, K, V, BOUNDS, rows, cache, PEAK, TOTAL, ACC, SCALE: tl.constexpr, GROUP: tl.constexpr,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One of PARTS shares of the keys; grid (row tiles, key heads, samples * PARTS).

    Few rows leave most of a GPU idle in one pass; shares of the keys run side by side.
    PEAK, TOTAL [B * K, PARTS, GROUP * rows] and ACC [B * K, PARTS, GROUP * rows, D] are float32.
    """
    sample = tl.program_id(2) // PARTS
    part = tl.program_id(2) % PARTS
    peak, total, acc, row, at = _tile(
        Q, K, V, BOUNDS, rows, cache, sample, part, SCALE, GROUP,
        D, WIDTH, ROWS, KEYS, PARTS, PRECISION,
    )  # fmt: skip
    real = row < GROUP * rows
    place = (at * PARTS + part) * (GROUP * rows) + row
    tl.store(PEAK + place, peak, mask=real)
    tl.store(TOTAL + place, total, mask=real)
    d = tl.arange(0, WIDTH)
    tl.store(ACC + place[:, None] * D + d[None, :], acc, mask=real[:, None] & (d[None, :] < D))


@triton.jit
def combine_kernel(
    PEAK, TOTAL, ACC, stacked, OUT,
    D: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """Joins the shares of one stacked row; grid (stacked rows of a key head, B * K).

    SLOTS is the power of two at or above PARTS.
    """
    row, at = tl.program_id(0), tl.program_id(1).to(tl.int64)
    part = tl.arange(0, SLOTS)
    d = tl.arange(0, WIDTH)
    place = (at * PARTS + part) * stacked + row
    there = part < PARTS
    peak = tl.load(PEAK + place, mask=there, other=LOW)
    fade = tl.exp2(peak - tl.max(peak, 0))
    total = tl.sum(tl.load(TOTAL + place, mask=there, other=0.0) * fade, 0)
    keep = there[:, None] & (d[None, :] < D)
    acc = tl.load(ACC + place[:, None] * D + d[None, :], mask=keep, other=0.0)
    out = tl.sum(acc * fade[:, None], 0) / tl.where(total > 0.0, total, 1.0)
    tl.store(OUT + (at * stacked + row) * D + d, out.to(OUT.dtype.element_ty), mask=d < D)
