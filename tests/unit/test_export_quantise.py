"""8-bit bundles: every weighted product is quantised, rows stay independent, decisions stay close."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dtvla.policy.bundle.loading import Bundle
from dtvla.policy.options import DecisionOptions
from dtvla.policy.policy import Policy
from dtvla.policy.token_layout import NEVER, Bounds
from model_export import compare
from model_export.errors import ExportError
from model_export.onnx.weights import weight_inputs
from model_export.quantise.calibration import calibrate, recorded_looks
from model_export.quantise.quantise_bundle import (
    INT8_MOST,
    activation_grid,
    quantise,
    quantise_bundle,
    weight_grid,
)
from training.collect import save_episode


def looks(count, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield (
            {name: rng.integers(0, 256, (40, 40, 3), np.uint8) for name in ("agentview", "wrist")},
            "pick it up",
        )


@pytest.fixture(scope="module")
def ranges(random_bundle_path):
    return calibrate(random_bundle_path, looks(6))


@pytest.fixture(scope="module", params=["int8", "fp8"])
def quantised(request, random_bundle_path, ranges, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundles") / request.param
    quantise_bundle(random_bundle_path, out, ranges, request.param)
    return out


def test_every_weighted_product_of_both_graphs_is_in_8_bits(quantised):
    precision = Bundle.load(quantised).spec.precision
    code = {"int8": onnx.TensorProto.INT8, "fp8": onnx.TensorProto.FLOAT8E4M3FN}[precision]
    for name in ("vision", "decoder"):
        graph = onnx.load(str(quantised / f"{name}.onnx")).graph
        assert not list(weight_inputs(graph)), "a product still has a plain weight"
        products = [node for node in graph.node if node.op_type == "MatMul"]
        makers = {output: node for node in graph.node for output in node.output}
        types = {tensor.name: tensor.data_type for tensor in graph.initializer}
        weighted = [
            makers[p.input[1]] for p in products if makers.get(p.input[1], p).op_type == "DequantizeLinear"
        ]
        assert len(weighted) > 6
        assert {types[node.input[0]] for node in weighted} == {code}


def test_the_weights_that_were_quantised_are_gone_from_the_file(quantised, random_bundle_path):
    for name in ("vision", "decoder"):
        assert (quantised / f"{name}.onnx").stat().st_size < (
            random_bundle_path / f"{name}.onnx"
        ).stat().st_size


def test_it_decides_nearly_what_float32_decides(quantised, random_bundle_path):
    plain, small = Policy.load(random_bundle_path), Policy.load(quantised)
    thought = np.array([4, 40, 41, 5, 6])
    near = []
    for images, instruction in looks(4, seed=1):
        a, b = (policy.act(images, instruction, thought).raw_actions for policy in (plain, small))
        near.append(np.abs(a - b) < 0.2)
    assert np.mean(near) > 0.6  # random weights tell bins apart badly; a wrong scale gives about 0.2


def test_drafts_change_no_word_in_8_bits(quantised):
    """Bug avoided: with a scale taken anew from each pass, rows beside a row change its numbers."""
    plain = Policy.load(quantised, options=DecisionOptions(drafts=False))
    drafts = Policy.load(quantised)
    for images, instruction in looks(6, seed=2):
        a, b = plain.decide(images, instruction), drafts.decide(images, instruction)
        np.testing.assert_array_equal(a.thought_ids, b.thought_ids)
        np.testing.assert_allclose(a.raw_actions, b.raw_actions, atol=1e-6)


def test_a_row_does_not_depend_on_the_rows_beside_it(quantised):
    backend = Policy.load(quantised).backend
    backend.decode(np.arange(20, 40), Bounds(20, NEVER, 20, 0), think_rows=(19,))
    alone = backend.decode(np.array([41]), Bounds(20, NEVER, 21, 20), think_rows=(0,)).think[0].copy()
    beside = backend.decode(np.array([41, 200, 7]), Bounds(20, NEVER, 23, 20), think_rows=(0, 1, 2)).think[0]
    known = np.isfinite(alone)
    np.testing.assert_allclose(beside[known], alone[known], atol=2e-5)


@given(hnp.arrays(np.float32, (5, 3), elements=st.floats(-4, 4, width=32)), st.sampled_from(["int8", "fp8"]))
def test_a_weight_comes_back_within_half_a_step(weight, kind):
    grid = weight_grid(weight, kind)
    codes = grid.codes(weight)
    back = codes.astype(np.float32) * grid.scale
    most = np.abs(weight).max(0)
    step = most / INT8_MOST / 2 if kind == "int8" else np.maximum(np.abs(weight) * 2.0**-4, most * 2.0**-10)
    assert (np.abs(back - weight) <= step * 1.01 + 1e-6).all()
    if kind == "int8":
        assert codes.min() >= -INT8_MOST
        assert codes.max() <= INT8_MOST


@given(st.floats(-50, 50), st.floats(0, 50), st.sampled_from(["int8", "fp8"]))
def test_zero_has_a_code_of_its_own_whatever_the_range(low, width, kind):
    grid = activation_grid(low, low + width, kind)
    codes = grid.codes(np.zeros(1, np.float32))
    assert (codes.astype(np.float32) - grid.zero.astype(np.float32))[0] == 0


def test_what_lies_outside_the_calibrated_range_is_cut_off_not_wrapped_around():
    codes = activation_grid(-1.0, 1.0, "int8").codes(np.array([-9.0, 9.0], np.float32))
    assert codes.tolist() == [0, 255]
    codes = activation_grid(-1.0, 1.0, "fp8").codes(np.array([-9.0, 9.0], np.float32))
    assert codes.dtype == ml_dtypes.float8_e4m3fn
    assert codes.astype(np.float32).tolist() == [-448.0, 448.0]


def test_ranges_of_another_model_are_refused(random_bundle_path, ranges):
    proto = onnx.load(str(random_bundle_path / "decoder.onnx"))
    with pytest.raises(ExportError, match="was not calibrated"):
        quantise(proto, ranges["vision"], "int8")


def test_only_a_float32_bundle_is_calibrated(quantised):
    with pytest.raises(ExportError, match="ranges are measured in fp32"):
        calibrate(quantised, looks(1))


def test_a_folder_without_episodes_is_refused_with_the_command_that_makes_some(tmp_path):
    with pytest.raises(ExportError, match=r"training\.collect"):
        next(recorded_looks(tmp_path))


def test_looks_are_spread_over_all_episodes(tmp_path):
    for episode in range(3):
        pictures = np.full((5, 2, 8, 8, 3), episode, np.uint8)
        save_episode(tmp_path / f"e{episode}.npz", {"images": pictures, "instruction": np.array("go")})
    seen = [int(images["wrist"][0, 0, 0]) for images, _ in recorded_looks(tmp_path, 6)]
    assert seen == [0, 0, 1, 1, 2, 2]


def test_bundles_are_compared_on_the_same_pictures(quantised, random_bundle_path, tmp_path):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (3, 2, 40, 40, 3), np.uint8)
    save_episode(tmp_path / "e.npz", {"images": pictures, "instruction": np.array("go")})
    same, other = compare.compare(
        compare.Compare((random_bundle_path, quantised), episodes=tmp_path, looks=3)
    )
    assert (same.same_thoughts, same.action_difference, same.action_values_alike) == (1.0, 0.0, 1.0)
    assert other.size_mb < same.size_mb
    assert 0 < other.action_difference_same_thought < 0.5
