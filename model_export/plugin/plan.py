"""Which tile, warps, stages and how many shares of the keys the kernels run with, and why.

Needs neither torch nor Triton. The choices rest on what the compilers report without a GPU (`python -m
model_export.plugin.ahead_of_time`): registers, spills and shared memory. What is fastest on a given GPU is
for `python -m model_export.gpu_check` to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

Dtype = Literal["bf16", "fp16", "fp32"]  # Triton's names
BYTES: dict[Dtype, int] = {"bf16": 2, "fp16": 2, "fp32": 4}
MIN_HEAD_DIM, MAX_HEAD_DIM = 16, 256
FEW_ROWS = 16  # rows of one tensor-core instruction: fewer cost the same
MAX_PARTS = 32  # what one program of the combine kernel reads at once, per column of the head
DEFAULT_SHARED = 48 * 1024  # bytes a launch may ask for without cuFuncSetAttribute

# Shared memory one block may ask for (CUDA C++ Programming Guide, technical specifications per compute
# capability: 164, 100 or 228 KB per multiprocessor, 1 KB of each block's is the system's).
SHARED_LIMIT = {
    80: 163 * 1024,
    86: 99 * 1024,
    87: 163 * 1024,
    89: 99 * 1024,
    90: 227 * 1024,
    100: 227 * 1024,
    110: 227 * 1024,
    120: 99 * 1024,
}
TARGETS = tuple(SHARED_LIMIT)
# Matrix instructions that read both operands from shared memory leave registers for 64 keys at a time.
WARPGROUP_TARGETS = (90, 100, 110)


@dataclass(frozen=True)
class Tile:
    """How one program of the kernel works: stacked rows, keys per step, warps, stages, precision."""

    rows: int
    keys: int
    warps: int
    stages: int
    precision: Literal["tf32", "ieee"]  # of float32 products; 16-bit ones ignore it
    why: str


@dataclass(frozen=True)
class LaunchPlan:
    """A tile and the number of shares of the keys; with one share there is no second kernel."""

    tile: Tile
    parts: int
    why: str


class GpuTarget(NamedTuple):
    """What a plan depends on of a GPU: compute capability times ten, and number of multiprocessors."""

    capability: int
    processors: int


def padded(head_dim: int) -> int:
    """The power of two at or above a head dimension.

    Raises:
        ValueError: a head dimension the kernels are not made for.
    """
    if not MIN_HEAD_DIM <= head_dim <= MAX_HEAD_DIM:
        raise ValueError(
            f"The attention kernel takes head dimensions of {MIN_HEAD_DIM} to {MAX_HEAD_DIM}, not {head_dim}."
        )
    return 1 << (head_dim - 1).bit_length()


def choose_tile(stacked: int, dtype: Dtype, head_dim: int, capability: int) -> Tile:
    """The tile for a number of stacked rows (query heads of one key head x rows).

    Args:
        stacked: rows of all query heads of one key head together.
        dtype: of the tensors.
        head_dim: 16 to 256.
        capability: compute capability times ten, such as 90.
    """
    wide = padded(head_dim) > 128
    if dtype == "fp32":
        # tf32x3 spills 100 bytes at 16 rows and 1 kB at 32 (head dimension 256); plain tf32 is no float32.
        why = "float32 products on the ordinary units: exact; meant for checks, not for speed"
        return Tile(FEW_ROWS if stacked <= FEW_ROWS else 32, 16, 8, 2, "ieee", why)
    if stacked <= FEW_ROWS:
        # Three stages spill 4 bytes on sm_110 and ask for 73 kB; shares of the keys take one or two steps.
        return Tile(
            FEW_ROWS, 32, 4, 2, "tf32", "few rows: 16 fill one matrix instruction; 41 kB fit anywhere"
        )
    if not wide:
        return Tile(64, 64, 8, 2, "tf32", "64 rows and keys; a head of up to 128 fits with room to spare")
    if capability in WARPGROUP_TARGETS:
        return Tile(64, 64, 8, 2, "tf32", "64 rows need 8 warps (4 spill); 128 rows spill even with 8")
    return Tile(64, 32, 8, 2, "tf32", "64 keys spill without warpgroup instructions; 70 kB fits 99 kB blocks")


def tight_tile(dtype: Dtype) -> Tile:
    """A tile within the 48 kB of shared memory that every launch may use (head dimension 256).

    For a runtime that does not raise a kernel's limit before it launches it.
    """
    if dtype == "fp32":
        return Tile(16, 16, 8, 1, "ieee", "33 kB of shared memory")
    return Tile(32, 16, 4, 2, "tf32", "33 kB of shared memory")


def choose_parts(programs: int, cache: int, keys: int, processors: int) -> tuple[int, str]:
    """Shares of the keys when one pass has `programs` programs, and the reason.

    Args:
        programs: row tiles x key heads x samples.
        cache: allocated key positions; how many exist is only known on the GPU.
        keys: keys per step of the tile.
        processors: multiprocessors of the GPU.
    """
    room = processors // max(programs, 1)
    if room < 2:
        return 1, f"one pass: its {programs} programs already occupy {processors} multiprocessors"
    parts = min(room, -(-cache // keys), MAX_PARTS)
    if parts < 2:
        return 1, "one pass: all keys fit in one step"
    return (
        parts,
        f"{parts} shares of the keys: one pass has {programs} programs for {processors} multiprocessors",
    )


def plan(
    *,
    samples: int,
    heads: int,
    kv_heads: int,
    rows: int,
    cache: int,
    head_dim: int,
    dtype: Dtype,
    gpu: GpuTarget,
) -> LaunchPlan:
    """Tile and shares for q [samples, heads, rows, head_dim] over a cache of `cache` positions."""
    stacked = heads // kv_heads * rows
    tile = choose_tile(stacked, dtype, head_dim, gpu.capability)
    parts, why = choose_parts(-(-stacked // tile.rows) * kv_heads * samples, cache, tile.keys, gpu.processors)
    return LaunchPlan(tile, parts, why)
