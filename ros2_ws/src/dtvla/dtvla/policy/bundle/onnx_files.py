"""Which files an ONNX graph takes weights from, read from the protobuf itself.

A bundle's hashes cover its files; a graph that takes weights from elsewhere would run what nobody verified.
The package `onnx` could say so too, but a robot does not carry it, and it would load the whole graph. Field
numbers: onnx.proto of ONNX.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from dtvla.errors import BundleError

# Message -> field number -> message of that field. Everything else is skipped by its length.
_NODES = {7: "node", 11: "attribute"}  # of a FunctionProto: its nodes, and attributes with defaults
_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": _NODES,
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_KEY, _VALUE = 1, 2  # of an entry of `external_data`
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DEEPEST = 64  # graphs within graphs


class _Damaged(ValueError):
    """The bytes are no protobuf message."""


def external_files(path: Path) -> set[str]:
    """The locations that a graph's tensors name as the files of their data, as they stand in it.

    Raises:
        BundleError: the file is no protobuf message.
    """
    if path.stat().st_size == 0:
        raise BundleError(f"{path} is empty. Export the policy again.")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return set(_locations(data, 0, len(data), "model", 0))
        except (_Damaged, UnicodeDecodeError) as error:
            raise BundleError(f"{path} is no ONNX graph: {error}. Export the policy again.") from None


def _locations(data: mmap.mmap, at: int, end: int, kind: str, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        raise _Damaged(f"it nests deeper than {_DEEPEST} messages")
    for number, start, stop in _fields(data, at, end):
        child = _FIELDS[kind].get(number)
        if child == "entry":
            entry = {n: data[a:b] for n, a, b in _fields(data, start, stop)}
            if entry.get(_KEY) == b"location":
                yield entry.get(_VALUE, b"").decode()
        elif child is not None:
            yield from _locations(data, start, stop, child, depth + 1)


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The length-delimited fields of a message: number, first byte, byte behind the last."""
    while at < end:
        tag, at = _varint(data, at, end)
        wire = tag & 7
        if wire == _VARINT:
            _, at = _varint(data, at, end)
        elif wire == _BYTES:
            length, at = _varint(data, at, end)
            if length > end - at:
                raise _Damaged(f"a field at byte {at} reaches beyond its message")
            yield tag >> 3, at, at + length
            at += length
        elif wire in (_FIXED32, _FIXED64):
            at += 4 if wire == _FIXED32 else 8
        else:
            raise _Damaged(f"byte {at} begins a field of unknown kind {wire}")
    if at > end:
        raise _Damaged("its last field is cut off")


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise _Damaged(f"the number that ends at byte {at} is cut off or too long")
