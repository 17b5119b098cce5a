"""Attention written out with one mask computes what the node of every layer computes."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtvla.policy.backends.onnxruntime import OnnxRuntimeBackend
from dtvla.policy.backends.onnxruntime_batch import OnnxRuntimeBatch
from dtvla.policy.backends.opset_compatibility import OPSET, converted
from dtvla.policy.backends.protocol import Pass
from dtvla.policy.bundle.loading import Bundle, write_bundle
from dtvla.policy.token_layout import NEVER, Bounds
from model_export.errors import ExportError
from model_export.onnx.export import save_graph
from model_export.onnx.shared_mask import convert, share_mask
from model_export.quantise.calibration import calibrate
from model_export.quantise.quantise_bundle import quantise_bundle


@pytest.fixture(scope="module")
def folders(random_bundle_path, tmp_path_factory):
    """The float32 bundle as it is exported, and with attention written out."""
    written = tmp_path_factory.mktemp("bundles") / "written"
    written.mkdir()
    for name in ("vision.onnx", "tokenizer.json"):
        (written / name).write_bytes((random_bundle_path / name).read_bytes())
    proto = onnx.load(str(random_bundle_path / "decoder.onnx"))
    assert share_mask(proto)
    save_graph(proto, written / "decoder.onnx")
    write_bundle(written, Bundle.load(random_bundle_path).spec)
    return random_bundle_path, written


@pytest.fixture(scope="module")
def backends(folders):
    return [OnnxRuntimeBackend(folder, Bundle.load(folder).spec) for folder in folders]


@settings(deadline=None, max_examples=30)
@given(
    rows=st.integers(1, 30),
    at=st.integers(0, 60),
    prefix=st.integers(1, 70),
    action=st.none() | st.integers(0, 90),
    seed=st.integers(0, 99),
)
def test_any_pass_gives_the_same_logits(backends, rows, at, prefix, action, seed):
    rng = np.random.default_rng(seed)
    before, ids = rng.integers(20, 200, 60), rng.integers(20, 200, rows)
    bounds = Bounds(prefix, NEVER if action is None else action, at + rows, at)
    outs = []
    for backend in backends:
        backend.clear()
        backend.decode(before, Bounds(60, NEVER, 60, 0), think_rows=(59,))
        out = backend.decode(ids, bounds, think_rows=(0, rows - 1), action_rows=(rows - 1,))
        outs.append((out.think.copy(), out.action.copy()))
    for plain, written in zip(*outs, strict=True):
        np.testing.assert_allclose(written, plain, atol=1e-5)


def test_sequences_of_different_lengths_keep_their_own_masks(backends):
    rng = np.random.default_rng(1)
    prompts = [rng.integers(20, 200, length) for length in (12, 40, 25)]
    passes = [Pass(p, Bounds(len(p), NEVER, len(p), 0), think_rows=(len(p) - 1,)) for p in prompts]
    steps = [
        Pass(np.array([30 + n]), Bounds(len(p), NEVER, len(p) + 1, len(p)), think_rows=(0,))
        for n, p in enumerate(prompts)
    ]
    outs = []
    for backend in backends:
        batch = OnnxRuntimeBatch(backend, 3, slack=64)
        batch.decode(passes)
        outs.append(np.stack([out.think for out in batch.decode(steps)]))
    np.testing.assert_allclose(outs[1], outs[0], atol=1e-5)


def test_older_runtimes_get_it_lowered(folders):
    content = onnx.load_from_string(converted(folders[1] / "decoder.onnx"))
    assert {f.name for f in content.functions} == {"HybridMask", "MaskedAttention", "ScatterIndices"}
    versions = {e.version for f in content.functions for e in f.opset_import if e.domain == ""}
    assert versions == {OPSET}
    onnx.checker.check_model(content, full_check=True)


def test_int8_bundles_are_written_so_and_older_ones_can_be_converted_once(random_bundle_path, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    ranges = calibrate(random_bundle_path, [({"agentview": image, "wrist": image}, "pick")])
    bundle = tmp_path / "small"
    quantise_bundle(random_bundle_path, bundle, ranges, "int8")
    nodes = [n.op_type for n in onnx.load(str(bundle / "decoder.onnx")).graph.node if n.domain == "dtvla"]
    assert nodes == ["HybridMask", "MaskedAttention", "MaskedAttention"]
    with pytest.raises(ExportError, match="rewritten before"):
        convert(bundle)
    with pytest.raises(ExportError, match="only int8"):
        convert(random_bundle_path)
