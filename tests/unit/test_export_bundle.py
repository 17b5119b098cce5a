"""The exported graphs against torch, and what is written into them."""

import numpy as np
import onnx
import pytest
import torch

from dtvla.policy import decoding
from dtvla.policy.backends.onnxruntime import OnnxRuntimeBackend
from dtvla.policy.backends.opset_compatibility import needs_conversion
from dtvla.policy.bundle.loading import Bundle
from dtvla.policy.token_layout import NEVER, Bounds
from model_export.__main__ import Export, main
from model_export.onnx.export import export_decoder, export_vision
from model_export.parity import check_parity
from model_export.sample import byte_tokenizer, random_config, random_model, random_spec
from training.model.deepthinkvla import hybrid_mask


@pytest.fixture(scope="module")
def model():
    return random_model(random_config(byte_tokenizer()), seed=0)


@pytest.fixture(scope="module")
def backend(random_bundle_path):
    return OnnxRuntimeBackend(random_bundle_path, Bundle.load(random_bundle_path).spec)


@pytest.fixture(scope="module")
def decoder(random_bundle_path):
    return onnx.load(str(random_bundle_path / "decoder.onnx"))


@pytest.mark.parametrize("seed", range(4))
def test_prefill_thinking_and_action_pass_agree_with_one_pass_in_torch(model, backend, seed):
    for result in check_parity(model, backend, seed):
        assert result.difference < 2e-5, result.phase


@pytest.mark.parametrize("key_heads", [2, 4])
def test_any_number_of_key_heads_agrees_with_torch(key_heads, tmp_path):
    raw = random_config(byte_tokenizer())
    raw["text_config"].update(num_key_value_heads=key_heads, num_hidden_layers=1 + key_heads // 4)
    model = random_model(raw, seed=key_heads)
    export_vision(model, tmp_path / "vision.onnx")
    export_decoder(model, tmp_path / "decoder.onnx")
    backend = OnnxRuntimeBackend(tmp_path, random_spec(model.config.layout, 28))
    for result in check_parity(model, backend):
        assert result.difference < 2e-5, result.phase


def test_every_layer_is_one_custom_node_that_names_its_plugin(model, decoder):
    nodes = [node for node in decoder.graph.node if node.domain == "dtvla"]
    assert [node.op_type for node in nodes] == ["HybridAttention"] * model.config.text.layers
    for node in nodes:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert attributes["plugin_namespace"] == b"dtvla"
        assert attributes["plugin_version"] == b"1"
        assert attributes["scale"] == pytest.approx(model.config.text.head_dim**-0.5)


def test_the_file_carries_the_body_of_its_operator_and_all_weights(decoder):
    assert [(f.domain, f.name) for f in decoder.functions] == [("dtvla", "HybridAttention")]
    assert not any(t.data_location == onnx.TensorProto.EXTERNAL for t in decoder.graph.initializer)


def test_the_mask_is_four_integers_and_no_square_tensor_is_an_input(decoder):
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in decoder.graph.input
    }
    assert shapes["bounds"] == ["B", 4]
    assert shapes["ids"] == ["B", "S"]
    assert not any(shape.count("S") > 1 for shape in shapes.values())


def test_no_path_of_this_machine_is_in_the_graphs(random_bundle_path):
    for name in ("decoder.onnx", "vision.onnx", "policy.json"):
        content = (random_bundle_path / name).read_bytes()
        assert b"/model_export/" not in content
        assert b"site-packages" not in content


def test_the_caches_are_written_in_place(backend):
    cache = backend._caches["key_0"]
    address = cache.data_ptr()
    cache.numpy()[:] = 0
    backend.decode(np.array([9, 10, 11]), Bounds(3, NEVER, 3, 0), think_rows=(2,))
    assert cache.data_ptr() == address
    written = np.abs(cache.numpy()).sum((0, 1, 3)) > 0
    np.testing.assert_array_equal(written, np.arange(backend.cache_length) < 3)


def test_rows_beyond_the_cache_are_refused(backend):
    with pytest.raises(ValueError, match="exceed the cache"):
        backend.decode(np.array([9]), Bounds(3, NEVER, 513, 512), think_rows=(0,))


def test_the_action_row_must_be_computed_in_the_action_pass(model, backend):
    """Bug: keys of `<action>` from a causal step are wrong ones, since that row sees everything."""
    layout = model.config.layout
    prompt = np.arange(20, 40)
    thought = np.array([layout.think, 50, 51, layout.end_think, layout.action])
    n = len(prompt)
    decoding.prefill(backend, prompt, None)
    for t in range(len(thought) - 1):
        backend.decode(thought[t : t + 1], Bounds(n, NEVER, n + t + 1, n + t), think_rows=(0,))
    right = decoding.act(backend, layout, n, thought).copy()
    start = n + len(thought) - 1
    backend.decode(thought[-1:], Bounds(n, NEVER, start + 1, start), think_rows=(0,))
    slots = layout.action_block()[1:]
    wrong = backend.decode(
        slots, Bounds(n, start, start + 1 + len(slots), start + 1), action_rows=range(layout.slots - 1)
    ).action
    assert np.abs(right[1:] - wrong).max() > 1e-3


def test_a_thought_cut_by_the_cap_is_closed_as_if_the_tags_had_been_thought(model, backend):
    layout = model.config.layout
    prompt, cut = np.arange(20, 40), np.array([layout.think, 50, 51])
    closed = np.append(cut, [layout.end_think, layout.action])
    n = len(prompt)
    decoding.prefill(backend, prompt, None)
    for t in range(2):
        backend.decode(cut[t : t + 1], Bounds(n, NEVER, n + t + 1, n + t), think_rows=(0,))
    found = decoding.act(backend, layout, n, cut)
    ids = torch.from_numpy(np.concatenate([prompt, closed, layout.action_block()[1:]]))[None]
    start = n + len(closed) - 1
    bounds = [torch.tensor([value]) for value in (n, start, ids.shape[1])]
    with torch.no_grad():
        positions = torch.arange(1, ids.shape[1] + 1)[None]
        hidden = model.hidden(model.embed(ids, None), positions, hybrid_mask(*bounds, ids.shape[1]))
        expected = model.action_logits(hidden[0, start : start + layout.slots]).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_the_graph_lowered_for_older_runtimes_computes_the_same(model, random_bundle_path, monkeypatch):
    """Python 3.10 has no ONNX Runtime with TensorScatter: there the cache is written by ScatterND."""
    monkeypatch.setattr("dtvla.policy.backends.execution_providers.needs_conversion", lambda version: True)
    older = OnnxRuntimeBackend(random_bundle_path, Bundle.load(random_bundle_path).spec)
    address = older._caches["key_1"].data_ptr()
    assert all(result.difference < 2e-5 for result in check_parity(model, older))
    assert older._caches["key_1"].data_ptr() == address
    assert np.abs(older._caches["key_1"].numpy()).max() > 0  # written in place


@pytest.mark.parametrize(("version", "older"), [("1.23.2", True), ("1.24.0", False), ("2.0.1", False)])
def test_only_runtimes_without_tensor_scatter_get_the_lowered_graph(version, older):
    assert needs_conversion(version) is older


def test_weights_that_keep_their_names_are_those_of_the_checkpoint_even_where_they_are_alike(tmp_path):
    """So that others can be put in: what is folded or shared could not be replaced."""
    model = random_model(random_config(byte_tokenizer()), seed=3)
    with torch.no_grad():
        for layer in model.decoder.layers:
            layer.input_layernorm.weight.zero_()
            layer.post_attention_layernorm.weight.zero_()
    export_vision(model, tmp_path / "vision.onnx", keep_names=True)
    export_decoder(model, tmp_path / "decoder.onnx", keep_names=True)
    held = [
        (tensor.name, onnx.numpy_helper.to_array(tensor))
        for name in ("vision", "decoder")
        for tensor in onnx.load(str(tmp_path / f"{name}.onnx")).graph.initializer
    ]
    parameters = {f"model.{name}": value.detach().numpy() for name, value in model.named_parameters()}
    assert sorted(name for name, _ in held) == sorted(parameters)
    for name, value in held:
        np.testing.assert_array_equal(value, parameters[name])
    backend = OnnxRuntimeBackend(tmp_path, random_spec(model.config.layout, 28))
    assert all(result.difference < 2e-5 for result in check_parity(model, backend))


def test_eight_bits_keep_no_names(tmp_path, capfd):
    config = Export(str(tmp_path), tmp_path / "out", precision="int8", keep_names=True)
    assert main(config) == 1
    assert "leave out --keep-names" in " ".join(capfd.readouterr().err.split())
