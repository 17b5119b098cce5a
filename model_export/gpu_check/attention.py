"""The attention kernels against a float32 reference, and their time against the machine's ceilings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from dtvla.policy.token_layout import NEVER, Bounds, allowed
from model_export.gpu_check.ceilings import Ceilings
from model_export.gpu_check.device import TimedDevice, first_line
from model_export.plugin.op import hybrid_attention, launch, plan_for, reference
from model_export.plugin.plan import LaunchPlan
from training.model.attention import attend
from training.model.config import TextConfig

# Largest differences from a float32 reference of the same inputs that rounding explains: outputs are means of
# unit normals, rounded to 8 or 11 bits; weights are rounded likewise before the second product.
TOLERANCE = {torch.bfloat16: 3e-2, torch.float16: 4e-3, torch.float32: 2e-5}
MAX_COPIES, MIN_COPIES = 256, 8


@dataclass(frozen=True)
class AttentionPhase:
    """One attention call of a decision."""

    name: str
    rows: int
    bounds: Bounds


def phases(prefix: int, thought: int, block: int) -> list[AttentionPhase]:
    """The attention calls of a decision with a prompt, a thought (with its tags) and an action block."""
    start, end = prefix + thought - 1, prefix + thought - 1 + block
    return [
        AttentionPhase("prefill", prefix, Bounds(prefix, NEVER, prefix, 0)),
        AttentionPhase("think", 1, Bounds(prefix, NEVER, start, start - 1)),
        AttentionPhase("verify", end, Bounds(prefix, start, end, 0)),
        AttentionPhase("action", block, Bounds(prefix, start, end, start)),
    ]


@dataclass(frozen=True)
class AttentionResult:
    """One phase in one type."""

    phase: str
    dtype: str
    max_error: float
    tolerance: float
    parts: int = 1
    planned_us: float | None = None
    single_us: float | None = None
    torch_us: float | None = None
    bandwidth_share: float | None = None  # of the planned kernels
    flops_share: float | None = None
    note: str = ""

    def row(self) -> dict[str, object]:
        return {**asdict(self), "good": self.good}

    @property
    def good(self) -> bool:
        return self.max_error <= self.tolerance


def _inputs(
    device: TimedDevice, text: TextConfig, phase: AttentionPhase, cache: int, dtype: torch.dtype, dirt: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q = torch.randn(1, text.heads, phase.rows, text.head_dim, device=device.torch).to(dtype)
    k, v = torch.randn(2, 1, text.kv_heads, cache, text.head_dim, device=device.torch).to(dtype)
    k[:, :, phase.bounds.kv_len :] = dirt
    v[:, :, phase.bounds.kv_len :] = dirt
    return q, k, v, torch.tensor([phase.bounds], dtype=torch.int32, device=device.torch)


def check(
    device: TimedDevice,
    text: TextConfig,
    phase: AttentionPhase,
    cache: int,
    dtype: torch.dtype,
    ceilings: Ceilings,
) -> AttentionResult:
    """Error (with NaN behind kv_len) and, on a GPU, times of one phase in one type."""
    torch.manual_seed(0)
    scale = text.head_dim**-0.5
    inputs = _inputs(device, text, phase, cache, dtype, torch.nan)
    q, k, v, bounds = inputs
    expected = reference(q.float(), k.float(), v.float(), bounds, scale)
    found = hybrid_attention(*inputs, scale).float()
    error = float((found - expected).abs().max())  # NaN stays NaN, which is not good
    name = str(dtype).removeprefix("torch.")
    result = AttentionResult(phase.name, name, error, TOLERANCE[dtype])
    if not device.is_cuda:
        return AttentionResult(**{**asdict(result), "note": "torch reference: there is no GPU"})
    chosen = plan_for(q, k)
    single = LaunchPlan(chosen.tile, 1, "for comparison")
    seen = torch.from_numpy(allowed(phase.bounds, phase.rows, cache)).to(device.torch)
    moved = _bytes(text, phase, q.element_size())
    flops = 4 * text.heads * text.head_dim * int(seen.sum())
    per_call = _Timer(device, text, phase, cache, dtype)
    planned = per_call.microseconds(lambda q, k, v, b: launch(q, k, v, b, scale, chosen))
    alone = planned
    if chosen.parts > 1:
        alone = per_call.microseconds(lambda q, k, v, b: launch(q, k, v, b, scale, single))
        other = launch(*inputs, scale, single).float()
        error = max(error, float((other - expected).abs().max()))
    plain = per_call.microseconds(lambda q, k, v, b: attend(q, k, v, seen[None, None]))
    return AttentionResult(
        phase.name,
        name,
        error,
        TOLERANCE[dtype],
        parts=chosen.parts,
        planned_us=planned,
        single_us=alone,
        torch_us=plain,
        bandwidth_share=moved / (planned * 1e-6) / ceilings.bytes_per_s,
        flops_share=flops / (planned * 1e-6) / ceilings.flops_per_s,
        note=f"{chosen.tile.rows} x {chosen.tile.keys} tile; {chosen.why}",
    )


def _bytes(text: TextConfig, phase: AttentionPhase, size: int) -> int:
    """Bytes that one call has to move: queries, outputs, and the keys and values that exist."""
    rows = 2 * text.heads * phase.rows + 2 * text.kv_heads * phase.bounds.kv_len
    return rows * text.head_dim * size


class _Timer:
    """Times a call with data that is not in the GPU's cache, without the time to start it.

    The call is captured for many copies of its inputs, together more than the cache holds, in one CUDA graph.
    """

    def __init__(
        self, device: TimedDevice, text: TextConfig, phase: AttentionPhase, cache: int, dtype: torch.dtype
    ) -> None:
        self._device = device
        size = _bytes(text, phase, dtype.itemsize)
        copies = max(MIN_COPIES, min(MAX_COPIES, 3 * device.cache_bytes // size))
        self._inputs = [_inputs(device, text, phase, cache, dtype, 0.0) for _ in range(copies)]

    def microseconds(self, call: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> float:
        """Median time of one call."""

        def work() -> None:
            for inputs in self._inputs:
                call(*inputs)

        replay = self._device.graph(work)
        return 1e3 * self._device.milliseconds(replay) / len(self._inputs)


def check_all(
    device: TimedDevice,
    text: TextConfig,
    sizes: tuple[int, int, int, int],
    dtypes: tuple[torch.dtype, ...],
    ceilings: Ceilings,
) -> Iterator[AttentionResult]:
    """Every phase in every type; `sizes` are prompt, thought, action block and cache."""
    prefix, thought, block, cache = sizes
    for dtype in dtypes:
        for phase in phases(prefix, thought, block):
            try:
                yield check(device, text, phase, cache, dtype, ceilings)
            except RuntimeError as error:
                name = str(dtype).removeprefix("torch.")
                why = f"failed: {first_line(error)}"
                yield AttentionResult(phase.name, name, float("nan"), TOLERANCE[dtype], note=why)
