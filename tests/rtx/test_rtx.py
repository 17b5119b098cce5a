"""NVIDIA's own parser and builder on our graphs, where there is neither a GPU nor TensorRT itself.

TensorRT-RTX, TensorRT for consumer GPUs, comes as a wheel of 147 MB whose libraries need no driver to parse
and to build. Skipped unless it is there (two minutes if so); `make test-all`, or `tools/test_extras.sh rtx`
for this alone, puts it into a folder of its own, beside .venv.

To run an engine needs a GPU: loading one asks the driver first. The plugin is not tested here, it is
for TensorRT itself: the parser looks for it, finds none, and takes the operator's body, as it should.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

from dtvla.policy.bundle.loading import Bundle
from model_export.engine.bundle_engines import hidden_size
from model_export.engine.profiles import decoder_profiles, decoder_shapes, fix_sizes, fixed_sizes

PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx"
CAPABILITIES = (89, 120)  # of consumer GPUs, for which TensorRT-RTX builds
_SPEC = importlib.util.find_spec(PACKAGE)
pytestmark = pytest.mark.skipif(
    _SPEC is None, reason="needs the wheel of requirements/rtx.txt; make test-all gets it"
)


@pytest.fixture(scope="module")
def folder() -> Path:
    assert _SPEC is not None
    assert _SPEC.origin is not None
    return Path(_SPEC.origin).parent


@pytest.fixture(scope="module", params=["fp32", "fp16", "bf16"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle's two graphs in a precision; bf16 is never run here, only parsed and built."""
    import torch

    from model_export.onnx.export import export_decoder, export_vision
    from model_export.sample import byte_tokenizer, random_config, random_model

    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[request.param]
    model = random_model(random_config(byte_tokenizer()), seed=0).to(dtype)
    path = tmp_path_factory.mktemp(request.param)
    export_vision(model, path / "vision.onnx")
    export_decoder(model, path / "decoder.onnx")
    return path


def ask(folder: Path, *arguments: object) -> dict[str, Any]:
    """Runs `vendor.py`."""
    command = [sys.executable, str(Path(__file__).with_name("vendor.py")), str(folder)]
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-2000:]}"
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def fixed(graph: Path, spec: Any, out: Path) -> Path:
    """A graph as `model_export.engine.bundle_engines` hands it to the parser."""
    proto = onnx.load(str(graph))
    fix_sizes(proto, fixed_sizes(spec, graph.stem))
    out.write_bytes(proto.SerializeToString())
    return out


@pytest.fixture(scope="module")
def spec(random_bundle_path: Path) -> Any:
    return Bundle.load(random_bundle_path).spec


def test_the_vision_graph_is_parsed(folder, exported, spec, tmp_path):
    answer = ask(folder, fixed(exported / "vision.onnx", spec, tmp_path / "vision.onnx"))
    assert answer["errors"] == []
    assert answer["layers"] > 50


def test_the_decoder_is_parsed_with_every_cache_updated_in_place(folder, exported, spec, tmp_path):
    graph = fixed(exported / "decoder.onnx", spec, tmp_path / "decoder.onnx")
    answer = ask(folder, graph)
    assert answer["errors"] == []
    assert answer["cache_updates"] == 4  # keys and values of two layers


def test_the_parser_looks_for_our_plugin_before_it_takes_the_body(folder, exported, spec, tmp_path):
    answer = ask(folder, fixed(exported / "decoder.onnx", spec, tmp_path / "decoder.onnx"))
    wanted = "HybridAttention, plugin_version: 1, plugin_namespace: dtvla"
    assert answer["plugin_lookups"]
    assert all(wanted in line for line in answer["plugin_lookups"])
    assert answer["local_functions"] >= 2


def test_a_cache_without_a_fixed_length_is_refused(folder, exported):
    """Why `fixed_sizes` is there."""
    answer = ask(folder, exported / "decoder.onnx")
    assert "must have a static sequence length" in " ".join(answer["errors"])


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_decoder_is_built_for_all_profiles(folder, exported, spec, tmp_path, capability):
    graph = fixed(exported / "decoder.onnx", spec, tmp_path / "decoder.onnx")
    hidden = hidden_size(graph)
    shapes = [decoder_shapes(profile, hidden) for profile in decoder_profiles(spec, spec.cache_length)]
    (tmp_path / "profiles.json").write_text(json.dumps(shapes))
    answer = ask(folder, graph, tmp_path / "profiles.json", capability)
    assert answer["engine_bytes"] > 100_000, answer["complaints"]


def test_the_execution_provider_loads_or_lacks_nothing_but_the_driver(folder):
    """ONNX Runtime with this provider is for machines with a GPU."""
    script = f"import {PACKAGE} as p, ctypes; ctypes.CDLL(p.get_library_path())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        assert "libcuda.so.1: cannot open shared object file" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
