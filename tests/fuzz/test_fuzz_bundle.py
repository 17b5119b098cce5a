"""A bundle with anything in it is loaded as what it says, or refused in a sentence."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import damaged, fuzz, in_words, mutated, new_folder, values
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from dtvla.errors import BundleError, InputError, PolicyInputError
from dtvla.policy.bundle.engine_files import read_engines
from dtvla.policy.bundle.loading import Bundle
from dtvla.policy.bundle.onnx_files import external_files
from dtvla.policy.bundle.policy_spec import PolicySpec
from dtvla.policy.bundle.signing import KeyFileError, make_keys, sign, verify
from dtvla.policy.prompt import load_tokenizer, prompt_ids
from dtvla.resources import resource

SHIPPED = resource("bundles/embedded-int8")
MANIFEST: dict[str, Any] = json.loads((SHIPPED / "policy.json").read_text())
TOKENIZER = json.loads((SHIPPED / "tokenizer.json").read_text())
LAYOUT = PolicySpec.from_json(MANIFEST).layout
ENGINE = {
    "file": "decoder.engine",
    "graph": "decoder",
    "gpu": "NVIDIA H200",
    "compute_capability": "9.0",
    "tensorrt": "10.16.1",
    "precision": "int8",
    "onnx_sha256": MANIFEST["files"]["decoder.onnx"],
    "profiles": [
        {
            "name": "step",
            "rows": [1, 1, 1],
            "features": [0, 0, 0],
            "think_rows": [1, 1, 1],
            "action_rows": [0] * 3,
        }
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the shipped bundle whose graphs are links, so that a test costs little."""
    copy = tmp_path / "bundle"
    copy.mkdir()
    for name in ("vision.onnx", "decoder.onnx"):
        (copy / name).symlink_to(SHIPPED / name)
    for name in ("policy.json", "tokenizer.json"):
        shutil.copy(SHIPPED / name, copy / name)
    return copy


@fuzz(300)
@given(data=mutated(MANIFEST))
def test_what_a_manifest_says_is_within_its_bounds_or_refused(data: Any) -> None:
    spec = in_words(lambda: PolicySpec.from_json(data), BundleError)
    if spec is None:
        return
    again = {**spec.to_json(), "files": {}, "sha256": ""}
    assert PolicySpec.from_json(again).to_json() == spec.to_json() or _has_nan(again)
    layout = spec.layout
    assert 1 <= layout.horizon <= 1000
    assert layout.images * layout.image_tokens < spec.cache_length <= 1 << 20
    assert len(layout.action_block()) == layout.slots + 3
    assert np.isfinite(spec.codec.edges).all()
    raw = spec.normaliser.unnormalise(np.linspace(-1, 1, 7)[None].repeat(3, 0))
    assert all(np.isfinite(part).all() for part in (raw, *spec.metric(raw)))
    assert 0.0 < spec.control_period_s <= 10.0


@fuzz(60)
@given(data=mutated(MANIFEST))
def test_a_sealed_manifest_of_any_content_loads_or_is_refused(
    data: Any, folder: Path, reseal: Callable[[Path, Any], None]
) -> None:
    if isinstance(data, dict):
        reseal(folder, data)
    else:
        (folder / "policy.json").write_text(json.dumps(data))
    bundle = in_words(lambda: Bundle.load(folder), BundleError)
    assert bundle is None or set(bundle.files) >= {"tokenizer.json", "vision.onnx", "decoder.onnx"}


@fuzz(60)
@given(content=st.one_of(damaged((SHIPPED / "policy.json").read_bytes()), st.binary(max_size=200)))
def test_a_manifest_with_damaged_bytes_is_refused(content: bytes, folder: Path) -> None:
    (folder / "policy.json").write_bytes(content)
    bundle = in_words(lambda: Bundle.load(folder), BundleError)
    assert bundle is None or content == (SHIPPED / "policy.json").read_bytes()


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "9" * 100_000, '{"sha256": ' + "9" * 5000 + "}"]
)
def test_a_manifest_that_is_deep_or_long_is_refused(text: str, folder: Path) -> None:
    (folder / "policy.json").write_text(text)
    assert in_words(lambda: Bundle.load(folder), BundleError) is None


@fuzz(200)
@given(raw=st.one_of(values, mutated([ENGINE])))
def test_engines_are_read_as_they_are_or_refused(raw: Any) -> None:
    files = {**MANIFEST["files"], "decoder.engine": "0" * 64}
    engines = in_words(lambda: read_engines(raw, files), BundleError)
    for engine in engines or ():
        assert engine.file in files
        assert all(0 <= p.rows.low <= p.rows.usual <= p.rows.high for p in engine.profiles)


@fuzz(60)
@given(
    content=st.one_of(mutated(TOKENIZER).map(lambda data: json.dumps(data).encode()), st.binary(max_size=300))
)
def test_a_tokenizer_of_any_content_gives_ids_of_the_layout_or_is_refused(
    content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    tokenizer = in_words(lambda: load_tokenizer(path, LAYOUT), InputError)
    if tokenizer is not None:
        _speaks_or_refuses(tokenizer)


@fuzz(60)
@given(content=damaged((SHIPPED / "tokenizer.json").read_bytes()))
def test_a_tokenizer_with_damaged_bytes_gives_ids_of_the_layout_or_is_refused(
    content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    tokenizer = in_words(lambda: load_tokenizer(path, LAYOUT), InputError)
    if tokenizer is not None:
        _speaks_or_refuses(tokenizer)


@fuzz(200)
@given(content=st.one_of(damaged((SHIPPED / "vision.onnx").read_bytes()), st.binary(max_size=300)))
def test_a_damaged_graph_names_files_or_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "vision.onnx"
    path.write_bytes(content)
    names = in_words(lambda: external_files(path), BundleError)
    assert names is None or all(isinstance(name, str) for name in names)


@fuzz(100)
@given(signature=st.binary(max_size=80), manifest=st.binary(max_size=100), key=st.binary(max_size=200))
def test_no_bytes_pass_for_a_signature_or_a_key(signature: bytes, manifest: bytes, key: bytes) -> None:
    with new_folder() as folder:
        public = make_keys(folder / "key")
        (folder / "policy.json.sig").write_bytes(signature)
        assert in_words(lambda: verify(folder, manifest, public), BundleError) is None
        (folder / "wrong").write_bytes(key)
        (folder / "wrong").chmod(0o600)
        assert in_words(lambda: verify(folder, manifest, folder / "wrong"), KeyFileError) is None
        assert in_words(lambda: sign(folder, folder / "wrong"), KeyFileError) is None


def _speaks_or_refuses(tokenizer: Tokenizer) -> None:
    ids = in_words(lambda: prompt_ids(tokenizer, LAYOUT, "Pick up the can"), PolicyInputError)
    if ids is not None:
        assert ids.min() >= 0
        assert ids.max() < LAYOUT.vocab_size


def _has_nan(data: Any) -> bool:
    if isinstance(data, dict):
        return any(_has_nan(value) for value in data.values())
    if isinstance(data, list):
        return any(_has_nan(value) for value in data)
    return isinstance(data, float) and math.isnan(data)
