"""Engines in a bundle: bound to its graphs and to one machine; what does not fit is refused in words."""

import importlib.util
import inspect
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtvla.errors import BundleError, PolicyFault
from dtvla.policy.backends import cuda_device
from dtvla.policy.backends import factory as backends
from dtvla.policy.backends.cuda_device import gpu, libraries
from dtvla.policy.backends.tensorrt import TensorRTBackend
from dtvla.policy.bundle.engine_files import (
    Engine,
    Profile,
    Span,
    choose,
    graph_digest,
    profile_for,
    read_engines,
    short_version,
    widest,
)
from dtvla.policy.bundle.loading import Bundle, sealed, write_bundle
from dtvla.policy.policy import Policy

DIGESTS = {"vision.onnx": "a" * 64, "decoder.onnx": "b" * 64, "vision.engine": "c" * 64}
DIGESTS["decoder.engine"] = "d" * 64
PROFILES = (
    Profile("think", Span(1, 1, 1), think_rows=Span(1, 1, 1)),
    Profile("prefill", Span(1, 64, 512), Span(0, 8, 8), Span(0, 1, 12), Span(0, 70, 70)),
)
HERE = ("NVIDIA H200", "9.0", "10.16.1.11")
WITHOUT_TENSORRT = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt") is not None, reason="says what happens where TensorRT is missing"
)


def engine(graph="decoder", gpu="NVIDIA H200", capability="9.0", version="10.16.1", digests=DIGESTS):
    sha = graph_digest(digests, graph)
    profiles = PROFILES if graph == "decoder" else (Profile("images", Span(2, 2, 2)),)
    return Engine(f"{graph}.engine", graph, gpu, capability, version, "bf16", sha, profiles)


@pytest.fixture
def bundle(random_bundle_path, tmp_path):
    """A copy with two files that pass for engines."""
    path = shutil.copytree(random_bundle_path, tmp_path / "bundle")
    for graph in ("vision", "decoder"):
        (path / f"{graph}.engine").write_bytes(f"an engine of {graph}".encode())
    loaded = Bundle.load(path)
    engines = [engine(graph, digests=loaded.files) for graph in ("vision", "decoder")]
    write_bundle(path, loaded.spec, engines)
    return path


def edit(bundle, change):
    path = bundle / "policy.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_bytes(sealed(data))


def test_engines_come_back_from_a_bundle_as_they_were_written(bundle):
    loaded = Bundle.load(bundle)
    assert loaded.engines == tuple(engine(graph, digests=loaded.files) for graph in ("vision", "decoder"))
    assert loaded.engines[1].profiles == PROFILES
    assert {"vision.engine", "decoder.engine"} <= set(loaded.files)


def test_a_bundle_without_the_field_loads_and_has_no_engine(random_bundle_path):
    assert "engines" not in json.loads((random_bundle_path / "policy.json").read_text())
    assert Bundle.load(random_bundle_path).engines == ()


def test_one_flipped_byte_in_an_engine_is_refused_with_its_file_named(bundle):
    content = bytearray((bundle / "decoder.engine").read_bytes())
    content[3] ^= 1
    (bundle / "decoder.engine").write_bytes(content)
    with pytest.raises(BundleError, match=r"decoder\.engine"):
        Bundle.load(bundle)


def test_an_engine_of_another_onnx_file_is_refused_with_both_named(bundle):
    present = json.loads((bundle / "policy.json").read_text())["files"]["decoder.onnx"]
    edit(bundle, lambda data: data["engines"][1].update(onnx_sha256="0123456789ab" + "0" * 52))
    with pytest.raises(BundleError, match=rf"decoder\.engine was built .* 0123456789ab; .* {present[:12]}"):
        Bundle.load(bundle)


def test_weights_beside_the_onnx_file_count_as_part_of_the_graph():
    """Bug of the first draft: new weights in decoder.onnx.data left the engine of the old ones valid."""
    large = {**DIGESTS, "decoder.onnx.data": "e" * 64}
    assert graph_digest(large, "decoder") != graph_digest(DIGESTS, "decoder")
    assert graph_digest(large, "decoder") != graph_digest({**large, "decoder.onnx.data": "f" * 64}, "decoder")
    assert graph_digest(large, "vision") == DIGESTS["vision.onnx"]
    with pytest.raises(BundleError, match=r"decoder\.engine was built from"):
        read_engines([engine().to_json()], large)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"file": "other.engine"}, r"engines\[0\]\.file is 'other\.engine', which files does not list"),
        ({"graph": "encoder"}, r"engines\[0\]\.graph is 'encoder'"),
        ({"gpu": 9}, r"engines\[0\]\.gpu is 9"),
        ({"compute_capability": "sm_90"}, r"engines\[0\]\.compute_capability is 'sm_90'"),
        ({"tensorrt": "10"}, r"engines\[0\]\.tensorrt is '10'"),
        ({"precision": "half"}, r"engines\[0\]\.precision is 'half'"),
        ({"onnx_sha256": "xyz"}, r"engines\[0\]\.onnx_sha256 is 'xyz'"),
        ({"profiles": []}, r"engines\[0\]\.profiles must be a list"),
        ({"profiles": [{"name": "think"}]}, r"engines\[0\]\.profiles\[0\]\.rows is missing"),
        ({"driver": "580"}, r"unknown field engines\[0\]\.driver"),
    ],
)
def test_a_wrong_field_of_an_engine_is_refused_by_its_path(change, sentence):
    with pytest.raises(BundleError, match=sentence):
        read_engines([{**engine().to_json(), **change}], DIGESTS)


@pytest.mark.parametrize("span", [None, [1, 2], [2, 1, 3], [1, 1, True], [-1, 0, 1], "111"])
def test_a_span_that_is_no_rising_triple_is_refused(span):
    entry = engine().to_json()
    entry["profiles"] = [{**entry["profiles"][0], "rows": span}]
    with pytest.raises(BundleError, match=r"engines\[0\]\.profiles\[0\]\.rows is .* three whole numbers"):
        read_engines([entry], DIGESTS)


@pytest.mark.parametrize(("raw", "sentence"), [({}, "engines is dict"), (["x"], r"engines\[0\] must be")])
def test_a_field_that_is_no_list_of_objects_is_refused(raw, sentence):
    with pytest.raises(BundleError, match=sentence):
        read_engines(raw, DIGESTS)


def test_the_pair_for_this_machine_is_chosen_among_others():
    mine = [engine("vision"), engine("decoder")]
    others = [engine(graph, gpu="NVIDIA Thor", capability="11.0") for graph in ("vision", "decoder")]
    assert choose([*others, *mine], *HERE) == tuple(mine)
    assert choose([*mine, *others], *HERE) == tuple(mine)


@pytest.mark.parametrize(
    "here",
    [
        ("NVIDIA H100 80GB HBM3", "9.0", "10.16.1"),
        ("NVIDIA H200", "9.1", "10.16.1"),
        ("NVIDIA H200", "9.0", "11.1.0"),
    ],
)
def test_engines_for_another_machine_are_refused_with_both_sides_and_the_onnx_path(here):
    with pytest.raises(BundleError) as refusal:
        choose([engine("vision"), engine("decoder")], *here)
    sentence = str(refusal.value)
    assert "for NVIDIA H200 (compute capability 9.0) with TensorRT 10.16.1;" in sentence
    assert f"here is {here[0]} (compute capability {here[1]}) with TensorRT {here[2]}." in sentence
    assert "--backend onnxruntime" in sentence
    assert "python -m model_export.engine" in sentence


def test_half_a_pair_and_no_engine_at_all_are_refused():
    with pytest.raises(BundleError, match="lack its vision graph"):
        choose([engine("decoder")], *HERE)
    with pytest.raises(BundleError, match="no TensorRT engine"):
        choose([], *HERE)


def test_only_three_numbers_of_a_version_count():
    assert short_version("10.16.1.11") == short_version("10.16.1") == "10.16.1"


def test_the_first_profile_that_fits_is_taken_and_none_is_an_error():
    assert profile_for(PROFILES, 1, 0, 1, 0) == 0
    assert profile_for(PROFILES, 1, 0, 0, 1) == 1
    with pytest.raises(ValueError, match=r"513 rows .* \(think, prefill\)"):
        profile_for(PROFILES, 513, 0, 1, 0)


@given(st.lists(st.tuples(*[st.integers(0, 600)] * 4), min_size=1, max_size=5), st.integers(0, 4))
def test_buffers_for_the_widest_sizes_hold_every_pass_of_every_profile(highs, pick):
    profiles = [Profile(str(i), *(Span(0, high, high) for high in each)) for i, each in enumerate(highs)]
    most = widest(profiles)
    assert most.fits(*highs[pick % len(highs)])


@WITHOUT_TENSORRT
def test_asking_for_tensorrt_where_it_is_missing_says_what_to_install(bundle):
    with pytest.raises(BundleError, match=r"need TensorRT, which is not here .* pip install .*10\.16\.1"):
        Policy.load(bundle, backend="tensorrt")
    with pytest.raises(BundleError, match="--backend onnxruntime"):
        TensorRTBackend(Bundle.load(bundle))
    with pytest.raises(BundleError, match="TensorRT engines need"):
        libraries()


@WITHOUT_TENSORRT
def test_auto_runs_the_onnx_graphs_and_says_why_the_engines_are_not_used(bundle, random_bundle_path):
    policy = Policy.load(bundle)
    assert "ONNX Runtime" in policy.runs_on
    assert "engines are not used: TensorRT engines need TensorRT" in policy.runs_on
    assert policy.sibling().runs_on == policy.runs_on
    assert "not used" not in Policy.load(random_bundle_path).runs_on


def test_onnxruntime_by_name_never_looks_at_engines(bundle, monkeypatch):
    monkeypatch.setattr(backends, "TensorRTBackend", None)
    chosen = backends.choose_backend(Bundle.load(bundle), "onnxruntime")
    assert "not used" not in chosen.sentence


def test_an_unknown_backend_is_refused_with_the_known_ones(bundle):
    with pytest.raises(ValueError, match="'cuda'; choose one of auto, onnxruntime"):
        backends.choose_backend(Bundle.load(bundle), "cuda")


class _NoDriver:
    """The CUDA runtime's own answers on a machine without a driver."""

    class cudaError_t:  # noqa: N801 - the library's name
        cudaSuccess = 0  # noqa: N815

    @staticmethod
    def cudaGetDeviceProperties(index):  # noqa: N802
        return 35, None

    @staticmethod
    def cudaGetErrorString(error):  # noqa: N802
        return 0, b"CUDA driver version is insufficient for CUDA runtime version"


def test_a_machine_without_a_gpu_is_refused_with_cudas_reason():
    with pytest.raises(BundleError, match=r"CUDA finds none \(CUDA driver version is insufficient"):
        gpu(_NoDriver)


def test_every_cuda_function_that_is_called_exists_with_as_many_arguments():
    """Runs where cuda-python is installed; it needs no GPU."""
    cuda = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings; make test-all gets it")
    source = inspect.getsource(cuda_device)
    named = set(re.findall(r"\bcuda[A-Z]\w+", source)) - {"cudaError_t", "cudaSuccess"}
    kinds = {"cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost", "cudaStreamCaptureModeThreadLocal"}
    assert {name for name in named - kinds if not hasattr(cuda, name)} == set()
    assert hasattr(cuda.cudaMemcpyKind, "cudaMemcpyDeviceToHost")
    assert hasattr(cuda.cudaStreamCaptureMode, "cudaStreamCaptureModeThreadLocal")
    if cuda.cudaGetDeviceCount()[0] != cuda.cudaError_t.cudaSuccess:
        with pytest.raises(BundleError, match="CUDA finds none"):
            gpu(cuda)
        with pytest.raises(PolicyFault, match="cudaStreamCreateWithFlags failed on the GPU"):
            cuda_device.CudaDevice(cuda)


def test_engines_of_several_machines_live_in_one_bundle(bundle):
    loaded = Bundle.load(bundle)
    more = [replace(each, gpu="NVIDIA Thor", compute_capability="11.0") for each in loaded.engines]
    write_bundle(bundle, loaded.spec, [*loaded.engines, *more])
    again = Bundle.load(bundle)
    assert choose(again.engines, *HERE) == loaded.engines
    assert choose(again.engines, "NVIDIA Thor", "11.0", "10.16.1") == tuple(more)


def test_the_policy_still_decides_beside_engines_it_cannot_use(bundle, random_bundle_path):
    images = {name: np.full((28, 28, 3), 90, np.uint8) for name in ("agentview", "wrist")}
    with_engines = Policy.load(bundle, backend="onnxruntime").decide(images, "go")
    plain = Policy.load(random_bundle_path).decide(images, "go")
    np.testing.assert_array_equal(with_engines.raw_actions, plain.raw_actions)
