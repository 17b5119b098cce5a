"""Whether the graphs of a bundle take and give what the runtime will bind: names, element types, sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime as ort

from dtvla.errors import BundleError, plain
from dtvla.policy.backends.execution_providers import ELEMENT_TYPES
from dtvla.policy.bundle.policy_spec import PolicySpec
from dtvla.policy.token_layout import TokenLayout

_FLOAT, _INT32, _INT64 = ("tensor(float)",), ("tensor(int32)",), ("tensor(int64)",)
_LARGEST_SIDE = 1 << 16  # of a cache: heads and their width become memory before anything runs
_CACHE = (tuple(ELEMENT_TYPES), 4)
# Of the decoder (docs/architecture.md): element types and number of axes.
_INPUTS = {
    "ids": (_INT64, 2),
    "features": (_FLOAT, 3),
    "bounds": (_INT32, 2),
    "write_index": (_INT64, 1),
    "think_rows": (_INT64, 1),
    "act_rows": (_INT64, 1),
    "key_0": _CACHE,
    "value_0": _CACHE,
}
_OUTPUTS = {"think_logits": (_FLOAT, 3), "action_logits": (_FLOAT, 3)}


def check_vision(session: ort.InferenceSession, path: Path, spec: PolicySpec) -> int:
    """Compares the vision graph's signature with policy.json; returns the hidden size of its features.

    Raises:
        BundleError: they do not fit.
    """
    pixels = _entry(session.get_inputs(), "pixels", "input", (_FLOAT, 4), path)
    features = _entry(session.get_outputs(), "features", "output", (_FLOAT, 3), path)
    size = spec.image.size
    _require(path, "`pixels` (image.size)", pixels.shape[1:], [3, size, size])
    _require(path, "`features` (layout.image_tokens)", features.shape[1], spec.layout.image_tokens)
    return _side(features, 2, path)


def check_decoder(session: ort.InferenceSession, path: Path, layout: TokenLayout) -> int:
    """Compares the decoder's signature with the layout; returns the hidden size of the features it takes.

    Raises:
        BundleError: they do not fit.
    """
    inputs, outputs = session.get_inputs(), session.get_outputs()
    found = {name: _entry(inputs, name, "input", wanted, path) for name, wanted in _INPUTS.items()}
    heads = {name: _entry(outputs, name, "output", wanted, path) for name, wanted in _OUTPUTS.items()}
    kinds = set()
    for entry in inputs:
        if is_cache(entry.name):
            _entry(inputs, entry.name, "input", _CACHE, path)
            _entry(outputs, f"{entry.name}_out", "output", ((entry.type,), 4), path)
            kinds.add((entry.type, _side(entry, 1, path), _side(entry, 3, path)))
        elif entry.name not in found:
            raise BundleError(f"{path} has an unknown input {plain(entry.name)}. Export the policy again.")
    if len(kinds) != 1:
        raise BundleError(f"{path} has caches of different types or sizes. Export the policy again.")
    _require(path, "`think_logits` (layout.vocab_size)", heads["think_logits"].shape[2], layout.vocab_size)
    _require(path, "`action_logits` (layout.bins)", heads["action_logits"].shape[2], layout.bins)
    return _side(found["features"], 2, path)


def is_cache(name: str) -> bool:
    """Whether an input of the decoder is a key/value cache."""
    return name.startswith(("key_", "value_"))


def _entry(entries: list[Any], name: str, kind: str, wanted: tuple[tuple[str, ...], int], path: Path) -> Any:
    found = next((entry for entry in entries if entry.name == name), None)
    if found is None:
        raise BundleError(f"{path} has no {kind} {plain(name)}. Export the policy again.")
    types, axes = wanted
    if found.type not in types or len(found.shape) != axes:
        raise BundleError(
            f"{path}: its {kind} {plain(name)} is a {found.type} with {len(found.shape)} axes, not a "
            f"{' or '.join(types)} with {axes}. Export the policy again."
        )
    return found


def _side(entry: Any, axis: int, path: Path) -> int:
    """The size of an axis that must be a number."""
    size = entry.shape[axis]
    if not isinstance(size, int) or not 1 <= size <= _LARGEST_SIDE:
        raise BundleError(
            f"{path}: axis {axis} of {plain(entry.name)} is {plain(size)}; it must be a number from 1 to "
            f"{_LARGEST_SIDE}. Export the policy again."
        )
    return size


def _require(path: Path, what: str, found: object, expected: object) -> None:
    if found != expected:
        raise BundleError(
            f"{path}: the size of {what} is {plain(found)}, policy.json says {expected}. "
            "Export the policy again."
        )
