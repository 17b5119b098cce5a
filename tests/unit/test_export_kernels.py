"""The attention kernels in Triton's interpreter, the torch operator and the plan, against the mask rule.

Triton reads TRITON_INTERPRET when it is imported, so what runs in the interpreter (the functions named
`check_...`) runs in one process of its own; nothing here needs a GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dtvla.policy.token_layout import NEVER, Bounds, allowed
from model_export.plugin.op import hybrid_attention, launch, reference
from model_export.plugin.plan import GpuTarget, LaunchPlan, Tile, choose_parts, padded, plan, tight_tile
from training.model.deepthinkvla import attend

ROOT = Path(__file__).resolve().parents[2]
FLOAT32_ERROR, FLOAT16_ERROR = 1e-5, 2e-3
quietly = settings(max_examples=15, deadline=None, derandomize=True, database=None)


class Case(SimpleNamespace):
    """Random tensors with their bounds; `clean` inputs are finite, `dirty` ones NaN where nobody may look."""

    def __init__(self, sizes: tuple[int, ...], bounds: list[Bounds], seed: int, dtype: torch.dtype) -> None:
        samples, kv_heads, group, rows, cache, dim = sizes
        generator = torch.Generator().manual_seed(seed)

        def normal(heads: int, length: int) -> torch.Tensor:
            return torch.randn(samples, heads, length, dim, generator=generator).to(dtype)

        q, k, v = normal(kv_heads * group, rows), normal(kv_heads, cache), normal(kv_heads, cache)
        table = torch.tensor(bounds, dtype=torch.int32)
        super().__init__(q=q, k=k, v=v, bounds=table, rows=rows, cache=cache, scale=dim**-0.5)
        self.list = bounds

    def expected(self) -> torch.Tensor:
        return reference(self.q, self.k, self.v, self.bounds, self.scale).float()

    def dirty(self) -> tuple[torch.Tensor, torch.Tensor]:
        k, v = self.k.clone(), self.v.clone()
        for sample, bounds in enumerate(self.list):
            k[sample, :, bounds.kv_len :] = torch.nan
            v[sample, :, bounds.kv_len :] = torch.nan
        return k, v

    def error(self, tile: Tile, parts: int) -> float:
        found = launch(self.q, *self.dirty(), self.bounds, self.scale, LaunchPlan(tile, parts, ""))
        return float((found.float() - self.expected()).abs().max())


@st.composite
def cases(draw: st.DrawFn, dtype: torch.dtype = torch.float32) -> Case:
    samples, kv_heads, group = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    rows, cache = draw(st.integers(1, 12)), draw(st.integers(1, 60))
    dim = draw(st.sampled_from([16, 32, 64, 80]))
    index = st.integers(0, cache)
    one = st.builds(Bounds, index, index | st.just(NEVER), index, index)
    bounds = draw(st.lists(one, min_size=samples, max_size=samples))
    return Case((samples, kv_heads, group, rows, cache, dim), bounds, draw(st.integers(0, 99)), dtype)


tiles = st.builds(
    Tile,
    st.sampled_from([16, 32]),
    st.sampled_from([16, 32]),
    st.just(4),
    st.just(2),
    st.just("ieee"),
    st.just(""),
)

# ------------------------------------------------------------------------- in the interpreter's process


@quietly
@given(cases(), tiles)
def check_one_pass_follows_the_mask_rule(case: Case, tile: Tile) -> None:
    assert case.error(tile, parts=1) < FLOAT32_ERROR


@quietly
@given(cases(), tiles, st.integers(2, 5))
def check_shares_of_the_keys_join_to_the_same(case: Case, tile: Tile, parts: int) -> None:
    assert case.error(tile, parts) < FLOAT32_ERROR


@settings(quietly, max_examples=8)
@given(cases(torch.float16), tiles, st.integers(1, 3))
def check_float16_stays_within_its_rounding(case: Case, tile: Tile, parts: int) -> None:
    assert case.error(tile, parts) < FLOAT16_ERROR


def check_the_tiles_of_the_plan_on_the_phases_of_a_decision() -> None:
    for rows, bounds in (
        (40, Bounds(40, NEVER, 40, 0)),  # prefill
        (1, Bounds(40, NEVER, 61, 60)),  # a thought token
        (23, Bounds(40, 60, 83, 60)),  # the action block
        (60, Bounds(20, 38, 60, 0)),  # a draft verified in one pass
    ):
        case = Case((1, 1, 8, rows, 96, 64), [bounds], 0, torch.float32)
        chosen = plan(
            samples=1, heads=8, kv_heads=1, rows=rows, cache=96, head_dim=64,
            dtype="fp16", gpu=GpuTarget(90, 132),
        )  # fmt: skip
        assert case.error(chosen.tile, chosen.parts) < FLOAT32_ERROR


def check_keys_that_no_row_sees_are_never_read() -> None:
    case = Case((1, 1, 2, 3, 96, 32), [Bounds(10, NEVER, 96, 40)], 0, torch.float32)
    expected = case.expected()
    case.k[:, :, 43:], case.v[:, :, 43:] = torch.nan, torch.nan  # they exist, but lie after the last row
    for parts in (1, 3):
        found = launch(
            case.q, case.k, case.v, case.bounds, case.scale, LaunchPlan(tight_tile("fp32"), parts, "")
        )
        torch.testing.assert_close(found, expected)


def check_bounds_beyond_the_cache_read_nothing_beyond_it() -> None:
    case = Case((2, 1, 2, 3, 20, 32), [Bounds(0, 0, 20, 5)] * 2, 0, torch.float32)
    expected = case.expected()
    wild = torch.tensor([[1 << 30, 0, 1 << 30, 5], [-7, -(1 << 30), 1 << 20, 5]], dtype=torch.int32)
    found = launch(case.q, case.k, case.v, wild, case.scale, LaunchPlan(tight_tile("fp32"), 1, ""))
    torch.testing.assert_close(found, expected)


CHECKS = [name for name in dir() if name.startswith("check_")]


def run_checks() -> None:
    """Runs every check and prints a JSON object of their failures."""
    failures = {}
    for name in CHECKS:
        try:
            globals()[name]()
        except Exception:
            failures[name] = traceback.format_exc()
    print(json.dumps(failures))


@pytest.fixture(scope="module")
def interpreted() -> dict[str, str]:
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    failures: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return failures


@pytest.mark.parametrize("check", CHECKS)
def test_in_the_interpreter(interpreted: dict[str, str], check: str) -> None:
    assert check not in interpreted, interpreted[check]


# --------------------------------------------------------------------------------- the torch operator


@quietly
@given(cases())
def test_the_reference_is_the_mask_rule_of_the_layout(case: Case) -> None:
    masks = np.stack([allowed(bounds, case.rows, case.cache) for bounds in case.list])
    mask = torch.from_numpy(masks)[:, None]
    expected = attend(case.q, case.k, case.v, mask)
    sees = mask.any(-1, keepdim=True)
    found = reference(case.q, *case.dirty(), case.bounds)
    torch.testing.assert_close(found, torch.where(sees, expected, 0.0), atol=FLOAT32_ERROR, rtol=0)


def test_the_operator_is_the_reference_on_the_cpu_and_has_a_fake_of_the_same_shape() -> None:
    case = Case((2, 2, 3, 5, 20, 16), [Bounds(4, 12, 16, 9)] * 2, 0, torch.float32)
    arguments = (case.q, case.k, case.v, case.bounds, case.scale)
    torch.testing.assert_close(torch.ops.dtvla.hybrid_attention(*arguments), case.expected())
    torch.library.opcheck(hybrid_attention, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k": lambda k: k.half()}, "of one type"),
        ({"k": lambda k: k[:, :, :3]}, "N a multiple of K"),
        ({"bounds": lambda b: b.long()}, "bounds as int32"),
        ({"bounds": lambda b: b[:1]}, "bounds as int32"),
    ],
)
def test_the_operator_refuses_what_does_not_fit(change: dict[str, Any], words: str) -> None:
    case = Case((2, 1, 2, 3, 20, 16), [Bounds(4, 12, 16, 9)] * 2, 0, torch.float32)
    inputs = {"q": case.q, "k": case.k, "v": case.v, "bounds": case.bounds}
    inputs = {name: change.get(name, lambda x: x)(value) for name, value in inputs.items()}
    with pytest.raises(ValueError, match=words):
        hybrid_attention(*inputs.values(), 0.25)


# -------------------------------------------------------------------------------------------- the plan


def test_a_decoded_token_is_split_over_its_keys_and_a_prefill_is_not() -> None:
    sizes: dict[str, Any] = {"samples": 1, "heads": 8, "kv_heads": 1, "cache": 1024, "head_dim": 256}
    gpu: dict[str, Any] = {"dtype": "bf16", "gpu": GpuTarget(90, 132)}
    token, block, prefill = (plan(**sizes, **gpu, rows=rows) for rows in (1, 73, 560))
    assert (token.tile.rows, token.parts) == (16, 32)
    assert block.parts == 13
    assert (prefill.tile.warps, prefill.parts) == (8, 1)


@given(st.integers(1, 300), st.integers(1, 4096), st.sampled_from([16, 32, 64]), st.integers(1, 160))
def test_shares_never_outnumber_processors_or_key_blocks(
    programs: int, cache: int, keys: int, processors: int
) -> None:
    parts, why = choose_parts(programs, cache, keys, processors)
    assert parts == 1 or (parts * programs <= processors and (parts - 1) * keys < cache)
    assert why


def test_a_head_dimension_the_kernel_is_not_made_for_is_refused() -> None:
    assert (padded(80), padded(256)) == (128, 256)
    with pytest.raises(ValueError, match="16 to 256, not 257"):
        padded(257)


if __name__ == "__main__":
    run_checks()
