"""Half precision, files beyond protobuf's limit, and the providers that run (or refuse to run) a bundle."""

import os
from dataclasses import replace

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from dtvla.errors import BundleError
from dtvla.policy.backends.execution_providers import PROVIDERS, default_threads, open_session
from dtvla.policy.backends.onnxruntime import OnnxRuntimeBackend
from dtvla.policy.bundle.loading import Bundle
from dtvla.policy.decoding import whole_pass
from dtvla.policy.token_layout import NEVER, Bounds
from model_export.bundle import export_bundle
from model_export.onnx import export
from model_export.onnx.export import export_decoder
from model_export.parity import check_parity
from model_export.sample import byte_tokenizer, random_config, random_model, random_spec
from tools.benchmarks.export import reference_decision, step_bytes
from training.model.kv_cache_decoder import TorchBackend


@pytest.fixture(scope="module")
def model():
    return random_model(random_config(byte_tokenizer()), seed=0)


@pytest.fixture(scope="module")
def spec(model):
    return random_spec(model.config.layout, model.config.vision.image_size)


def test_a_float16_bundle_agrees_with_torch_in_float16(model, spec, tmp_path):
    results = export_bundle(model, spec, byte_tokenizer(), tmp_path / "half", "fp16")
    assert [result.phase for result in results] == ["vision", "prefill", "think", "act"]
    bundle = Bundle.load(tmp_path / "half")
    assert bundle.spec.precision == "fp16"
    inputs = OnnxRuntimeBackend(bundle.path, bundle.spec).decoder.get_inputs()
    assert {entry.type for entry in inputs if entry.name.startswith("key_")} == {"tensor(float16)"}
    assert model.decoder.embed_tokens.weight.dtype == torch.float32  # the caller's model is not converted


def test_a_bfloat16_decoder_agrees_with_torch_in_the_reference_evaluator(model, tmp_path):
    """ONNX Runtime has no bfloat16 on the CPU; onnx's own evaluator does, slowly."""
    half = random_model(random_config(byte_tokenizer()), seed=0).bfloat16()
    export_decoder(half, tmp_path / "decoder.onnx")
    text, layout = half.config.text, half.config.layout
    prompt, thought = np.arange(20, 26), np.array([layout.think, 50, layout.end_think, layout.action])
    step = whole_pass(layout, prompt, None, thought)
    cache = np.zeros((1, text.kv_heads, len(step.ids), text.head_dim), ml_dtypes.bfloat16)
    feeds = {
        "ids": step.ids[None],
        "features": np.zeros((1, 0, text.hidden_size), np.float32),
        "bounds": np.array([step.bounds], np.int32),
        "write_index": np.zeros(1, np.int64),
        "think_rows": np.array([5]),
        "act_rows": np.asarray(step.action_rows),
        **{f"{kind}_{i}": cache for kind in ("key", "value") for i in range(text.layers)},
    }
    action = ReferenceEvaluator(str(tmp_path / "decoder.onnx")).run(["action_logits"], feeds)[0][0]
    exact = TorchBackend(model, 512).decode(step.ids, step.bounds, action_rows=step.action_rows).action
    rounded = (
        TorchBackend(half.float(), 512).decode(step.ids, step.bounds, action_rows=step.action_rows).action
    )
    assert np.isfinite(action).all()
    ours, theirs = np.abs(action - exact).max(), np.abs(rounded - exact).max()
    assert ours < 8 * theirs  # rounding of activations adds to that of weights, a wrong graph is far away
    assert ours < 0.1 * np.abs(exact).max()


def test_a_bfloat16_bundle_is_refused_on_the_cpu_with_both_sides_named(model, spec, tmp_path):
    assert export_bundle(model, spec, byte_tokenizer(), tmp_path / "half", "bf16") == []
    bundle = Bundle.load(tmp_path / "half")
    with pytest.raises(BundleError, match="is in bf16, which ONNX Runtime's CPUExecutionProvider does not"):
        OnnxRuntimeBackend(bundle.path, bundle.spec)


def test_weights_beyond_protobufs_limit_lie_in_a_file_of_their_own(model, spec, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "ONE_FILE", 10_000)
    results = export_bundle(model, spec, byte_tokenizer(), tmp_path / "large")
    assert all(result.difference < 2e-5 for result in results)
    bundle = Bundle.load(tmp_path / "large")
    assert "decoder.onnx.data" in bundle.files  # covered by the hashes
    assert (bundle.path / "decoder.onnx.data").stat().st_size > 10_000
    (bundle.path / "decoder.onnx.data").write_bytes(b"other weights")
    with pytest.raises(BundleError, match=r"decoder\.onnx\.data is not the file this bundle was made with"):
        Bundle.load(tmp_path / "large")


def test_action_ids_are_not_scored_as_words(model, random_bundle_path):
    backend = OnnxRuntimeBackend(random_bundle_path, Bundle.load(random_bundle_path).spec)
    layout = model.config.layout
    logits = backend.decode(np.arange(20, 30), Bounds(10, NEVER, 10, 0), think_rows=(9,)).think[0]
    actions = np.arange(layout.action_begin, layout.action_end + 1)
    np.testing.assert_array_equal(np.flatnonzero(np.isneginf(logits)), actions)
    decoder = onnx.load(str(random_bundle_path / "decoder.onnx")).graph
    assert {output.name for output in decoder.output} >= {"think_logits", "action_logits"}


def test_ids_behind_the_action_ids_are_scored_as_words(tmp_path):
    """The published vocabulary goes on behind its action ids."""
    raw = random_config(byte_tokenizer())
    raw["text_config"]["vocab_size"] += 5
    model = random_model(raw, seed=2)
    export_decoder(model, tmp_path / "decoder.onnx")
    export.export_vision(model, tmp_path / "vision.onnx")
    spec = random_spec(model.config.layout, 28)
    assert all(r.difference < 2e-5 for r in check_parity(model, OnnxRuntimeBackend(tmp_path, spec)))


@pytest.mark.parametrize("name", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_there_is_named_and_never_replaced_in_silence(random_bundle_path, name):
    """ONNX Runtime itself would warn and take the CPU."""
    if PROVIDERS[name].name in ort.get_available_providers():
        pytest.skip(f"{name} is there")
    spec = Bundle.load(random_bundle_path).spec
    with pytest.raises(
        BundleError, match=f"cannot run on {PROVIDERS[name].name}.*CPUExecutionProvider.*To get it"
    ):
        OnnxRuntimeBackend(random_bundle_path, spec, provider=name)


def test_it_says_what_really_runs(random_bundle_path):
    backend = OnnxRuntimeBackend(random_bundle_path, Bundle.load(random_bundle_path).spec, threads=2)
    assert backend.description == f"ONNX Runtime {ort.__version__}, CPUExecutionProvider, 2 threads"


def test_an_opset_that_the_runtime_lacks_is_named_beside_the_newest_it_has(random_bundle_path, tmp_path):
    proto = onnx.load(str(random_bundle_path / "decoder.onnx"))
    next(entry for entry in proto.opset_import if entry.domain == "").version = 99
    onnx.save(proto, str(tmp_path / "decoder.onnx"))
    with pytest.raises(BundleError, match=r"is in opset 99; this ONNX Runtime .* reads up to \d\d\. Install"):
        open_session(tmp_path / "decoder.onnx", 1, PROVIDERS["cpu"], "fp32", scatters=True)


def test_small_decoders_get_one_thread_and_large_ones_all(tmp_path):
    decoder = tmp_path / "decoder.onnx"
    decoder.write_bytes(b"x")
    assert default_threads(decoder) == 1
    with (tmp_path / "decoder.onnx.data").open("wb") as handle:
        handle.truncate(100_000_000)
    assert default_threads(decoder) >= 1
    if len(os.sched_getaffinity(0)) > 1:
        assert default_threads(decoder) > 1


def test_the_references_way_gives_the_same_actions_it_only_takes_longer(model, random_bundle_path):
    """What the benchmark times as the reference is a decision, not any loop of passes."""
    layout, rng = model.config.layout, np.random.default_rng(0)
    images = [layout.image] * (layout.images * layout.image_tokens)
    prompt = np.array([*images, layout.bos, 40, 41, *layout.prompt_end])
    pixels = rng.uniform(-1, 1, (2, 3, 28, 28)).astype(np.float32)
    thought = np.array([layout.think, 50, 51, layout.end_think, layout.action])
    theirs = reference_decision(model, TorchBackend(model, 512), prompt, pixels, thought).numpy()
    backend = OnnxRuntimeBackend(random_bundle_path, Bundle.load(random_bundle_path).spec)
    ours = whole_pass(layout, prompt, backend.encode(pixels), thought).run(backend).action
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_the_bytes_of_a_thinking_step_are_those_of_its_weights(model):
    text, bins = model.config.text, model.config.layout.bins
    layers = sum(p.numel() for layer in model.decoder.layers for p in layer.parameters() if p.ndim == 2)
    head = (text.vocab_size - bins) * text.hidden_size
    assert step_bytes(text, bins, 0, 4) == 4 * (layers + head)
    assert step_bytes(text, bins, 10, 4) - step_bytes(text, bins, 0, 4) == 2 * 2 * 16 * 10 * 4


def test_a_bundle_without_the_field_precision_is_float32(random_bundle_path):
    from dtvla.policy.bundle.policy_spec import PolicySpec

    data = {**Bundle.load(random_bundle_path).spec.to_json(), "files": {}, "sha256": ""}
    del data["precision"]
    assert PolicySpec.from_json(data).precision == "fp32"
    assert replace(PolicySpec.from_json(data), precision="bf16").to_json()["precision"] == "bf16"
