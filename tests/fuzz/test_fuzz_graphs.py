"""A damaged ONNX graph behind a seal that fits is refused in words, and does not take the process down.

The graphs are loaded in a child process: ONNX Runtime is native code; a crash there would end the tests too.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import onnx
import pytest
from fuzzing import damaged, fuzz
from hypothesis import given
from hypothesis import strategies as st

from dtvla.errors import BundleError
from dtvla.policy.bundle.loading import file_digest
from dtvla.resources import resource

SHIPPED = resource("bundles/embedded-int8")
PATIENCE_S = 60.0


def serve(pipe: Connection) -> None:
    """The child: loads the bundles it is named and says what came of each."""
    from dtvla.policy.policy import Policy

    while True:
        folder = pipe.recv()
        try:
            Policy.load(folder, threads=1)
        except BundleError as error:
            pipe.send(("refused", str(error)))
        except Exception as error:
            pipe.send(("failed", f"{type(error).__name__}: {error}"))
        else:
            pipe.send(("loaded", ""))


class Loader:
    """A child process that loads bundles; a new one takes the place of one that died."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._start()

    def _start(self) -> None:
        self._pipe, theirs = self._context.Pipe()
        self._child = self._context.Process(target=serve, args=(theirs,), daemon=True)
        self._child.start()
        theirs.close()

    def load(self, folder: Path) -> tuple[str, str]:
        self._pipe.send(str(folder))
        try:
            if not self._pipe.poll(PATIENCE_S):
                raise AssertionError(f"Nothing came of it within {PATIENCE_S:g} s.")
            answer: tuple[str, str] = self._pipe.recv()
            return answer
        except (EOFError, ConnectionError):
            self._child.join()
            status = self._child.exitcode
            self._start()
            return "died", f"exit status {status}"

    def close(self) -> None:
        self._child.kill()
        self._child.join()


@pytest.fixture(scope="module")
def loader() -> Iterator[Loader]:
    child = Loader()
    yield child
    child.close()


def bundle_with(folder: Path, name: str, content: bytes, reseal: Callable[[Path, Any], None]) -> Path:
    """The shipped bundle with one file of another content, under a seal that fits."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file in ("vision.onnx", "decoder.onnx", "tokenizer.json"):
        (folder / file).symlink_to(SHIPPED / file)
    (folder / name).unlink()
    (folder / name).write_bytes(content)
    data = json.loads((SHIPPED / "policy.json").read_text())
    data["files"][name] = file_digest(folder / name)
    reseal(folder, data)
    return folder


@pytest.mark.parametrize("name", ["vision.onnx", "decoder.onnx"])
@fuzz(12)
@given(data=st.data())
def test_a_damaged_graph_is_refused_in_words(
    name: str, data: st.DataObject, loader: Loader, tmp_path: Path, reseal: Callable[[Path, Any], None]
) -> None:
    content = data.draw(damaged((SHIPPED / name).read_bytes()))
    outcome, words = loader.load(bundle_with(tmp_path / "bundle", name, content, reseal))
    assert outcome in ("loaded", "refused"), words
    if outcome == "refused":
        assert words.endswith(".")
        assert words.isprintable()


@pytest.mark.parametrize("name", ["vision.onnx", "decoder.onnx"])
@fuzz(12)
@given(data=st.data())
def test_a_graph_that_says_something_else_is_refused_in_words(
    name: str, data: st.DataObject, loader: Loader, tmp_path: Path, reseal: Callable[[Path, Any], None]
) -> None:
    model = onnx.load(SHIPPED / name)
    for _ in range(data.draw(st.integers(1, 3))):
        distort(data.draw, model.graph)
    content = model.SerializeToString()
    outcome, words = loader.load(bundle_with(tmp_path / "bundle", name, content, reseal))
    assert outcome in ("loaded", "refused"), words
    if outcome == "refused":
        assert words.endswith(".")
        assert words.isprintable()


def distort(draw: Callable[[st.SearchStrategy[Any]], Any], graph: onnx.GraphProto) -> None:
    """Changes one thing that a valid protobuf may say: wiring, operators, attributes, shapes, types."""
    node = graph.node[draw(st.integers(0, len(graph.node) - 1))]
    weight = graph.initializer[draw(st.integers(0, len(graph.initializer) - 1))]
    size = st.sampled_from([-(2**63), -1, 0, 1, 3, 2**31 - 1, 2**62])
    names = [name for other in graph.node[:40] for name in other.output] + ["", "nowhere", "\x1b[2J"]
    action = draw(
        st.sampled_from(["input", "output", "operator", "attribute", "remove", "shape", "type", "end"])
    )
    if action == "input" and node.input:
        node.input[draw(st.integers(0, len(node.input) - 1))] = draw(st.sampled_from(names))
    elif action == "output" and node.output:
        node.output[0] = draw(st.sampled_from(names))
    elif action == "operator":
        node.op_type = draw(
            st.sampled_from(["Loop", "Reshape", "Concat", "Cast", "Nothing", "\x1b", "Gather"])
        )
    elif action == "attribute" and node.attribute:
        attribute = node.attribute[0]
        attribute.i = draw(size)
        attribute.ints[:] = draw(st.lists(size, max_size=4))
        attribute.type = draw(st.sampled_from(range(12)))
    elif action == "remove":
        del graph.node[draw(st.integers(0, len(graph.node) - 1))]
    elif action == "shape":
        weight.dims[:] = draw(st.lists(size, max_size=4))
    elif action == "type":
        weight.data_type = draw(st.sampled_from(range(24)))
    else:
        end = draw(st.sampled_from([*graph.input, *graph.output]))
        del end.type.tensor_type.shape.dim[draw(st.integers(0, 4)) :]
        for value in draw(st.lists(size, max_size=2)):
            end.type.tensor_type.shape.dim.add(dim_value=value)


def test_the_undamaged_bundle_loads(
    loader: Loader, tmp_path: Path, reseal: Callable[[Path, Any], None]
) -> None:
    content = (SHIPPED / "vision.onnx").read_bytes()
    assert loader.load(bundle_with(tmp_path / "bundle", "vision.onnx", content, reseal)) == ("loaded", "")
