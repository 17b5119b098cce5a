"""The flow of the GPU check on the CPU with a tiny model: everything but the kernels and the clock."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from dtvla.policy.token_layout import Bounds
from model_export.gpu_check import __main__ as command
from model_export.gpu_check import decisions, engines, fp8, model, report
from model_export.gpu_check.attention import phases
from model_export.gpu_check.ceilings import Ceilings
from model_export.gpu_check.device import Effort, TimedDevice, Unavailable
from model_export.plugin.op import hybrid_attention
from model_export.sample import byte_tokenizer, random_config
from training.model.config import ModelConfig
from training.model.kv_cache_decoder import CachedDecoder

ROOT = Path(__file__).resolve().parents[2]
SIZES = model.Sizes(text=5, thought=6, cache=128)
CPU = TimedDevice("cpu", Effort(repeats=3, warm_up=1))
WAYS = (
    *decisions.QUICK_IMPLEMENTATIONS,
    decisions.Implementation("kernel, fp8 weights", kernel=True, fp8=True),
)


@pytest.fixture(scope="module")
def tiny() -> dict[str, Any]:
    return random_config(byte_tokenizer())


@pytest.fixture(scope="module")
def found(tiny: dict[str, Any]) -> dict[str, Any]:
    console = Console(file=io.StringIO(), width=200)
    return command.run(CPU, tiny, SIZES, (torch.float32, torch.float16), WAYS, console)


def stage(found: dict[str, Any], way: str, name: str) -> dict[str, Any]:
    row: dict[str, Any]
    (row,) = (r for r in found["stages"] if (r["way"], r["stage"]) == (way, name))
    return row


def test_every_phase_is_checked_in_every_type(found: dict[str, Any]) -> None:
    rows = found["attention"]
    assert [row["phase"] for row in rows] == ["prefill", "think", "verify", "action"] * 2
    assert all(row["good"] for row in rows)
    assert all("no GPU" in row["note"] for row in rows)


def test_every_stage_is_timed_in_every_way_that_the_machine_has(found: dict[str, Any]) -> None:
    for way in ("torch eager", "kernel", "kernel, fp8 weights"):
        for name in ("vision", "prefill", "think", "action", "verify"):
            row = stage(found, way, name)
            assert row["ms"] > 0
            assert row["share"] == pytest.approx(row["floor_ms"] / row["ms"])


def test_what_the_machine_lacks_is_said_and_not_left_out(found: dict[str, Any]) -> None:
    row = stage(found, "kernel, CUDA graph", "think")
    assert row["ms"] is None
    assert row["note"] == "not available: CUDA graphs need a GPU"
    assert found["tensorrt"]["available"] in (True, False)


def test_the_kernel_gives_the_logits_of_plain_torch_and_fp8_stays_near(found: dict[str, Any]) -> None:
    for name in ("prefill", "think", "action", "verify"):
        assert stage(found, "kernel", name)["difference"] < 1e-4
        assert 0 < stage(found, "kernel, fp8 weights", name)["difference"] < 1.0


def test_a_decision_is_the_sum_of_its_stages(found: dict[str, Any]) -> None:
    (total,) = (t for t in found["decisions"] if t["way"] == "kernel")
    ms = {
        name: stage(found, "kernel", name)["ms"]
        for name in ("vision", "prefill", "think", "action", "verify")
    }
    alone = ms["vision"] + ms["prefill"] + ms["action"]
    assert total["no_thought_ms"] == pytest.approx(alone)
    assert total["thought_ms"] == pytest.approx(alone + (SIZES.thought - 1) * ms["think"])
    assert total["verified_ms"] == pytest.approx(ms["vision"] + ms["verify"])
    (missing,) = (t for t in found["decisions"] if t["way"] == "kernel, CUDA graph")
    assert missing["verified_ms"] is None


def test_the_report_is_plain_json_named_after_the_gpu(found: dict[str, Any], tmp_path: Path) -> None:
    odd = {**found, "machine": {"name": "NVIDIA H200 (SXM)"}, "attention": [{"max_error": math.nan}]}
    path = report.write(odd, tmp_path / "results")
    assert path.name == "gpu-nvidia-h200-sxm.json"
    assert json.loads(path.read_text())["attention"] == [{"max_error": None}]


def test_the_stages_cover_the_decision_as_the_layout_says(tiny: dict[str, Any]) -> None:
    config = ModelConfig.from_hf(tiny)
    prefill, think, action, verify = model.stages(config, SIZES, torch.device("cpu"))
    n = model.prompt_length(config, SIZES)
    assert prefill.bounds == Bounds(n, model.NEVER, n, 0)
    assert think.rows == 1
    assert action.bounds.kv_len == verify.bounds.kv_len == verify.rows
    assert action.rows == config.layout.slots + 3
    assert model.slots_in(action) == model.slots_in(verify) == config.layout.slots
    assert (verify.ids[0, verify.act_rows[0]]) == config.layout.action
    named = {phase.name: phase for phase in phases(n, SIZES.thought, action.rows)}
    for part in (prefill, think, action, verify):
        assert (named[part.name].rows, named[part.name].bounds) == (part.rows, part.bounds)


def test_a_decision_longer_than_the_cache_is_refused(tiny: dict[str, Any]) -> None:
    config = ModelConfig.from_hf(tiny)
    with pytest.raises(ValueError, match="does not fit a cache of 64"):
        model.stages(config, model.Sizes(text=5, thought=6, cache=64), torch.device("cpu"))


def test_the_full_model_has_the_published_size() -> None:
    with torch.device("meta"):
        network = model.DeepThinkVLA(ModelConfig.from_hf(model.FULL))
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(2.92e9, rel=0.01)
    think = next(
        s for s in model.stages(network.config, model.Sizes(), torch.device("cpu")) if s.name == "think"
    )
    # float32 here; ../shared's floor of 1.17 ms at 4.3 TB/s is 5.0 GB in two bytes
    assert model.stage_work(network, think, weight_bytes=2).moved == pytest.approx(5.0e9, rel=0.02)


def test_the_floor_is_the_slower_of_moving_and_computing() -> None:
    limits = Ceilings(bytes_per_s=1e12, flops_per_s=1e14)
    assert limits.floor_ms(1e9, 1e9) == pytest.approx(1.0)
    assert limits.floor_ms(1e6, 1e12) == pytest.approx(10.0)


def test_the_cached_decoder_gives_the_same_with_our_attention(tiny: dict[str, Any]) -> None:
    network = model.random_model(tiny, torch.device("cpu"), torch.float32)
    part = model.stages(network.config, SIZES, torch.device("cpu"))[-1]
    features = torch.randn(1, 8, 32)
    bounds = torch.tensor([part.bounds])
    plain, ours = (
        CachedDecoder(network, 1, SIZES.cache, attention).run(part.ids, bounds, features)
        for attention in (None, hybrid_attention)
    )
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)


def test_eight_bit_weights_are_within_their_rounding() -> None:
    weight, x = torch.randn(40, 64) * 0.02, torch.randn(3, 64)
    layer = fp8.Fp8Linear(weight)
    assert layer.weight.dtype == torch.float8_e4m3fn
    assert (layer(x) - x @ weight.T).abs().max() < 0.04 * (x @ weight.T).std() * 4


def test_an_older_gpu_is_told_that_it_has_no_eight_bit_floats() -> None:
    fp8.require(90)
    with pytest.raises(Unavailable, match=r"8\.9; this GPU has 8\.6"):
        fp8.require(86)


INTERPRETED = """
import torch
from model_export.gpu_check import fp8, fp8_kernel
torch.manual_seed(0)
for rows, inputs, outputs in ((1, 256, 40), (20, 128, 130)):
    x, (weight, scale) = torch.randn(rows, inputs), fp8.quantise(torch.randn(outputs, inputs) * 0.02)
    error = (fp8_kernel.launch(x, weight, scale) - fp8.reference_linear(x, weight, scale)).abs().max()
    assert error < 1e-5, error
"""


def test_the_eight_bit_product_agrees_in_the_interpreter() -> None:
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_without_tensorrt_the_report_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert engines.check()["why"].startswith("TensorRT is not importable")


def test_without_a_gpu_the_command_ends_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(command.GpuCheck(out=tmp_path)) == 1
    assert "measures a CUDA GPU" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
