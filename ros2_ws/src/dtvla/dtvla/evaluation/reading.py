"""Dataclasses from JSON, with the types that they say: anybody may have edited the file that it is from."""

from __future__ import annotations

import types
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def read(kind: type[T], data: object, *, others: bool = False) -> T:
    """The dataclass in a JSON object.

    Args:
        kind: a dataclass of numbers, words, lists and tables of them.
        data: what the file says.
        others: leave out fields that this version does not know, instead of refusing them.

    Raises:
        ValueError: a field is missing, unknown or of another type; the sentence names it.
    """
    if not isinstance(data, dict):
        raise ValueError(f"it has {type(data).__name__} where {kind.__name__} is expected")
    hints = get_type_hints(kind)
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    values = {}
    for name, value in data.items():
        if name in known:
            values[name] = _as(hints[name], value, name)
        elif not others:
            raise ValueError(f"it has an unknown field {name!a}")
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"the field {name} is missing")
    return kind(**values)


def _as(hint: Any, value: object, name: str) -> Any:
    """A value as the type of a field; JSON has lists for tuples and words for paths."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        for choice in arguments:
            try:
                return _as(choice, value, name)
            except ValueError:
                continue
    elif origin is Literal:
        if value in arguments and type(value) in {type(choice) for choice in arguments}:
            return value
    elif origin is tuple and isinstance(value, list):
        return tuple(_as(arguments[0], item, name) for item in value)
    elif origin is dict and isinstance(value, dict):
        return {str(key): _as(arguments[1], item, name) for key, item in value.items()}
    elif hint is Path and isinstance(value, str):
        return Path(value)
    elif hint is float and type(value) is int and abs(value) < 1 << 53:
        return float(value)
    elif isinstance(hint, type) and type(value) is hint:
        return value
    raise ValueError(f"its field {name} is {str(value)[:40]!a}")
