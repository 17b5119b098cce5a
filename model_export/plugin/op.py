"""`torch.ops.dtvla.hybrid_attention`: the kernels on CUDA, the mask rule in plain torch elsewhere."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from dtvla.policy.token_layout import visible
from model_export.plugin.plan import Dtype, GpuTarget, LaunchPlan, padded, plan

TRITON_NAME: dict[torch.dtype, Dtype] = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
}
FUSED = {"enable_fp_fusion": True}  # Triton 3.10 changes the default


def reference(
    q_BNSD: Tensor, k_BKCD: Tensor, v_BKCD: Tensor, bounds_B4: Tensor, scale: float | None = None
) -> Tensor:
    """The operator in float32 from its mask rule; the result has q's type.

    Args:
        q_BNSD: queries of rows `q_start ..`.
        k_BKCD: keys, C allocated positions; N is a multiple of K.
        v_BKCD: values.
        bounds_B4: each sample's (prefix_len, action_start, kv_len, q_start).
        scale: of the scores; 1 / sqrt(D) by default.
    """
    b, n, s, d = q_BNSD.shape
    kv_heads, cache = k_BKCD.shape[1:3]
    prefix, start, length, first = (bounds_B4[:, c, None, None] for c in range(4))
    i = first + torch.arange(s, device=q_BNSD.device)[:, None]
    j = torch.arange(cache, device=q_BNSD.device)
    seen = visible(i, j, prefix, start, length)  # [B, S, C]
    exists = (j < length[:, 0])[:, None, :, None]
    # What lies behind kv_len may be anything, and 0 x NaN is NaN.
    k, v = (torch.where(exists, x, 0).float() for x in (k_BKCD, v_BKCD))
    grouped = q_BNSD.float().reshape(b, kv_heads, n // kv_heads, s, d)
    scores = torch.einsum("bkgsd,bkcd->bkgsc", grouped, k) * (d**-0.5 if scale is None else scale)
    scores = scores.masked_fill(~seen[:, None, None], -torch.inf)
    weights = torch.softmax(scores, -1).nan_to_num(0.0)  # a row that sees nothing: zeros
    return torch.einsum("bkgsc,bkcd->bkgsd", weights, v).reshape(q_BNSD.shape).to(q_BNSD.dtype)


def launch(
    q_BNSD: Tensor,
    k_BKCD: Tensor,
    v_BKCD: Tensor,
    bounds_B4: Tensor,
    scale: float,
    chosen: LaunchPlan,
) -> Tensor:
    """Runs the kernels with a given plan: one pass, or shares of the keys and their combination.

    Works on CPU tensors too where Triton's interpreter is on (TRITON_INTERPRET=1).
    """
    from model_export.plugin.kernel import attention_kernel, combine_kernel, split_kernel

    q, k, v, bounds = (x.contiguous() for x in (q_BNSD, k_BKCD, v_BKCD, bounds_B4))
    b, n, s, d = q.shape
    kv_heads, cache = k.shape[1:3]
    group = n // kv_heads
    tile, width = chosen.tile, padded(d)
    tiles = -(-group * s // tile.rows)
    out = torch.empty_like(q)
    shape = {"GROUP": group, "D": d, "WIDTH": width, "ROWS": tile.rows, "KEYS": tile.keys}
    how = {"PRECISION": tile.precision, "num_warps": tile.warps, "num_stages": tile.stages, **FUSED}
    if chosen.parts == 1:
        grid = (tiles, kv_heads, b)
        attention_kernel[grid](q, k, v, bounds, s, cache, out, SCALE=scale, **shape, **how)
        return out
    parts = chosen.parts
    peak, total = q.new_empty((2, b * kv_heads, parts, group * s), dtype=torch.float32)
    acc = q.new_empty((b * kv_heads, parts, group * s, d), dtype=torch.float32)
    split_kernel[(tiles, kv_heads, b * parts)](
        q, k, v, bounds, s, cache, peak, total, acc, SCALE=scale, PARTS=parts, **shape, **how
    )
    combine_kernel[(group * s, b * kv_heads)](
        peak, total, acc, group * s, out, D=d, WIDTH=width, PARTS=parts, SLOTS=padded_parts(parts), **FUSED
    )
    return out


def padded_parts(parts: int) -> int:
    """The power of two at or above a number of shares."""
    return 1 << (parts - 1).bit_length()


@lru_cache
def target_of(index: int) -> GpuTarget:
    """The CUDA device of an index."""
    facts = torch.cuda.get_device_properties(index)
    return GpuTarget(facts.major * 10 + facts.minor, facts.multi_processor_count)


def plan_for(q_BNSD: Tensor, k_BKCD: Tensor) -> LaunchPlan:
    """The plan for these tensors on their CUDA device."""
    b, n, s, d = q_BNSD.shape
    return plan(
        samples=b,
        heads=n,
        kv_heads=k_BKCD.shape[1],
        rows=s,
        cache=k_BKCD.shape[2],
        head_dim=d,
        dtype=TRITON_NAME[q_BNSD.dtype],
        gpu=target_of(q_BNSD.device.index or 0),
    )


def _check(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor) -> None:
    if q.dtype not in TRITON_NAME or k.dtype != q.dtype or v.dtype != q.dtype:
        raise ValueError(
            "hybrid_attention takes q, k and v of one type, bfloat16, float16 or float32, "
            f"not {q.dtype}, {k.dtype}, {v.dtype}."
        )
    fits = k.shape == v.shape and k.ndim == q.ndim == 4
    if not fits or k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3] or q.shape[1] % k.shape[1]:
        raise ValueError(
            "hybrid_attention takes q [B, N, S, D] and k, v [B, K, C, D] with N a multiple of K, "
            f"not {list(q.shape)}, {list(k.shape)}, {list(v.shape)}."
        )
    if bounds.dtype != torch.int32 or bounds.shape != (q.shape[0], 4):
        raise ValueError(
            f"hybrid_attention takes bounds as int32 [{q.shape[0]}, 4], not {bounds.dtype} "
            f"{list(bounds.shape)}."
        )


@torch.library.custom_op("dtvla::hybrid_attention", mutates_args=())
def hybrid_attention(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, scale: float) -> Tensor:
    """Attention [B, N, S, D] under the hybrid mask.

    Args:
        q: [B, N, S, D], rows `q_start ..`.
        k: [B, K, C, D], the cache: C allocated positions, of which `kv_len` exist.
        v: [B, K, C, D].
        bounds: int32 [B, 4], each sample's `layout.Bounds`; read on the GPU, so a CUDA graph may replay
            the call with other numbers.
        scale: of the scores.
    """
    _check(q, k, v, bounds)
    if q.is_cuda:
        return launch(q, k, v, bounds, scale, plan_for(q, k))
    return reference(q, k, v, bounds, scale)


@hybrid_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, scale: float) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)
