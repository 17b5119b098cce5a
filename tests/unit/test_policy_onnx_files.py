"""A graph takes weights only from files of its bundle; links and sizes give nothing else a way in."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from dtvla.errors import BundleError
from dtvla.policy.bundle.loading import MAX_MANIFEST_BYTES, REQUIRED, Bundle, file_digest, write_bundle
from dtvla.policy.bundle.onnx_files import external_files
from dtvla.resources import resource


@pytest.fixture
def bundle(random_bundle_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(random_bundle_path, tmp_path / "bundle"))


def manifest(bundle: Path) -> dict[str, Any]:
    return dict(json.loads((bundle / "policy.json").read_text()))


def elsewhere(location: str) -> TensorProto:
    """Four floats that lie in another file."""
    tensor = TensorProto(
        name="far", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL
    )
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph(**parts: object) -> onnx.GraphProto:
    return helper.make_graph(parts.pop("nodes", []), "g", [], [], **parts)  # type: ignore[arg-type]


def constant(attribute: str, value: object) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["y"], **{attribute: value})


def model(content: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(content)


def nowhere() -> onnx.ModelProto:
    return model(graph())


def in_an_initializer() -> onnx.ModelProto:
    return model(graph(initializer=[elsewhere("weights.bin")]))


def in_an_attribute() -> onnx.ModelProto:
    return model(graph(nodes=[constant("value", elsewhere("weights.bin"))]))


def in_a_branch() -> onnx.ModelProto:
    branch = graph(nodes=[constant("value", elsewhere("weights.bin"))])
    return model(graph(nodes=[helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=graph())]))


def in_a_sparse_tensor() -> onnx.ModelProto:
    sparse = onnx.SparseTensorProto(values=elsewhere("weights.bin"), dims=[4])
    return model(graph(sparse_initializer=[sparse]))


def in_a_function() -> onnx.ModelProto:
    node = constant("value", elsewhere("weights.bin"))
    function = helper.make_function("own", "F", [], ["y"], [node], [helper.make_opsetid("", 17)])
    return helper.make_model(graph(), functions=[function])


@pytest.mark.parametrize(
    "make", [in_an_initializer, in_an_attribute, in_a_branch, in_a_sparse_tensor, in_a_function]
)
def test_weights_in_another_file_are_seen_wherever_the_graph_hides_them(
    make: Callable[[], onnx.ModelProto], tmp_path: Path
) -> None:
    (tmp_path / "g.onnx").write_bytes(make().SerializeToString())
    assert external_files(tmp_path / "g.onnx") == {"weights.bin"}


def test_a_graph_that_holds_its_weights_itself_names_no_file(tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(nowhere().SerializeToString())
    assert external_files(tmp_path / "g.onnx") == set()
    for name in ("vision.onnx", "decoder.onnx"):
        assert external_files(resource("bundles/embedded-int8") / name) == set()


@pytest.mark.parametrize("location", ["../outside.bin", "/etc/hostname", "sub/x.bin", "unlisted.bin", ""])
def test_a_bundle_whose_graph_takes_weights_from_elsewhere_is_refused(
    bundle: Path, location: str, reseal: Any
) -> None:
    """Also from an unlisted file beside the graph: ONNX Runtime would read it although nobody hashed it."""
    path = bundle / "vision.onnx"
    content = onnx.load(path)
    content.graph.initializer.append(elsewhere(location))
    path.write_bytes(content.SerializeToString())
    (bundle.parent / "outside.bin").write_bytes(bytes(16))
    _list(reseal, bundle, REQUIRED)
    (bundle / "unlisted.bin").write_bytes(bytes(16))
    with pytest.raises(BundleError, match=r"vision\.onnx takes weights from .* no file of the bundle"):
        Bundle.load(bundle)


def test_weights_beside_the_graph_are_fine_when_they_have_a_hash(bundle: Path, reseal: Any) -> None:
    path = bundle / "vision.onnx"
    content = onnx.load(path)
    content.graph.initializer.append(elsewhere("vision.onnx.data"))
    path.write_bytes(content.SerializeToString())
    (bundle / "vision.onnx.data").write_bytes(bytes(16))
    _list(reseal, bundle, (*REQUIRED, "vision.onnx.data"))
    assert "vision.onnx.data" in Bundle.load(bundle).files


@pytest.mark.parametrize("content", [b"", b"\x08", b"\x3a\x7fxx", b"\x0b", b"\xff" * 30, b"\x0d\x00"])
def test_bytes_that_are_no_graph_are_refused_in_words(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"g\.onnx is (empty|no ONNX graph)"):
        external_files(tmp_path / "g.onnx")


@pytest.mark.parametrize(
    "name",
    ["../tokenizer.json", "/etc/hostname", "..", ".", "", "a/b", "a\\b", "a\0b", "a\nb", "\ud800", ".x"],
)
def test_a_manifest_cannot_name_a_file_outside_its_folder(bundle: Path, name: str, reseal: Any) -> None:
    _list(reseal, bundle, REQUIRED, **{name: "0" * 64})
    with pytest.raises(BundleError, match="plain file names") as caught:
        Bundle.load(bundle)
    assert str(caught.value).isprintable()


def test_a_link_is_worth_what_its_target_hashes_to(bundle: Path, tmp_path: Path) -> None:
    """Links are followed (caches of model hubs are made of them); what counts is the content."""
    graph_file = bundle / "vision.onnx"
    graph_file.rename(tmp_path / "blob")
    graph_file.symlink_to(tmp_path / "blob")
    Bundle.load(bundle)
    (tmp_path / "blob").write_bytes(b"other")
    with pytest.raises(BundleError, match="is not the file this bundle was made with"):
        Bundle.load(bundle)
    for target in ("/dev/zero", tmp_path, graph_file):  # endless, a folder, itself
        graph_file.unlink()
        graph_file.symlink_to(target)
        with pytest.raises(BundleError, match="is missing"):
            Bundle.load(bundle)
    graph_file.unlink()
    os.mkfifo(graph_file)
    with pytest.raises(BundleError, match="is missing"):
        Bundle.load(bundle)


def test_a_huge_manifest_is_not_read_to_its_end(bundle: Path) -> None:
    with (bundle / "policy.json").open("wb") as file:
        file.truncate(200 * MAX_MANIFEST_BYTES)
    with pytest.raises(BundleError, match=r"has more than 1048576 bytes"):
        Bundle.load(bundle)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("cache_length", 10**12, "cache_length is 1000000000000"),
        ("cache_length", 10**400, "cache_length is 1000"),
        ("control_period_s", 10**400, "control_period_s is 1000"),
        ("control_period_s", 1e9, "at most 10"),
    ],
)
def test_a_size_that_would_fill_the_memory_is_refused(
    bundle: Path, key: str, value: object, words: str, reseal: Any
) -> None:
    data = manifest(bundle)
    data[key] = value
    reseal(bundle, data)
    with pytest.raises(BundleError, match=words):
        Bundle.load(bundle)


@pytest.mark.parametrize(
    ("key", "value"), [("horizon", 10**9), ("vocab_size", 10**15), ("action_dim", 6), ("bins", 10**15)]
)
def test_a_layout_beyond_any_policy_is_refused(bundle: Path, key: str, value: int, reseal: Any) -> None:
    data = manifest(bundle)
    data["layout"][key] = value
    reseal(bundle, data)
    with pytest.raises(BundleError, match=rf"layout\.{key} is {value}"):
        Bundle.load(bundle)


def test_a_bundle_written_with_weights_from_outside_is_refused_at_once(bundle: Path) -> None:
    spec = Bundle.load(bundle).spec
    content = onnx.load(bundle / "vision.onnx")
    content.graph.initializer.append(elsewhere("../outside.bin"))
    (bundle / "vision.onnx").write_bytes(content.SerializeToString())
    with pytest.raises(BundleError, match="takes weights from"):
        write_bundle(bundle, spec)


def _list(reseal: Any, bundle: Path, names: tuple[str, ...], **more: str) -> None:
    """A sealed manifest that lists these files."""
    data = manifest(bundle)
    data["files"] = {name: file_digest(bundle / name) for name in names} | more
    reseal(bundle, data)
