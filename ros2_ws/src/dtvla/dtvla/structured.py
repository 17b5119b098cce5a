"""Values out of JSON and TOML files as dataclasses: the one place where such files are checked.

The types, ranges and choices stand in the annotations of the dataclasses; msgspec compares them with what the
file says, and `FieldError` says in a sentence which field is wrong, what came and what was expected. msgspec
alone would leave unknown fields of a dataclass out in silence, and shows neither the value nor the choices.
"""

from __future__ import annotations

import re
import reprlib
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from dtvla.errors import InputError, plain

T = TypeVar("T")
LARGEST = 1e30  # far from where float64 ends, so that what is computed with a number stays finite

Count = Annotated[int, Meta(ge=1)]
Finite = Annotated[float, Meta(gt=-LARGEST, le=LARGEST)]  # NaN is refused here too
Positive = Annotated[float, Meta(gt=0.0, le=LARGEST)]

_WORDS = {int: "a whole number", float: "a number", str: "a string", bool: "true or false", Path: "a path"}
_PLACE = re.compile(r" - at (?:`key` in )?`\$(.*)`\Z", re.DOTALL)
_STEP = re.compile(r"\.(\w+)|\[(\d+)\]|(\[\.\.\.\])")
_OTHER_TYPE = re.compile(r"Expected `([^`]+)`, got `|Expected `(array)` of length \d+, got ")
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 80
_REPR.maxlevel = 2


def one_of(*choices: str) -> Meta:
    """The annotation of a string that is one of several."""
    words = "|".join(map(re.escape, choices))
    return Meta(pattern=rf"^(?:{words})\Z", description=f"one of {', '.join(choices)}")


def matching(pattern: str, words: str) -> Meta:
    """The annotation of a string that matches a pattern as a whole.

    Args:
        pattern: a regular expression.
        words: what it asks for, such as "a SHA-256 in hex".
    """
    return Meta(pattern=rf"^(?:{pattern})\Z", description=words)


@dataclass(eq=False)
class FieldError(InputError):
    """A field of a file that cannot be used; `str` gives a sentence without the file's name.

    Attributes:
        path: of the field, such as `layout.bins` or `cameras[0].name`; empty for the whole file.
        problem: `missing`; `unknown`; `type`: it is of another type; `value`: out of its range or choices;
            `rule`: the dataclass itself refused it, and `wanted` is its sentence.
        wanted: what was expected, such as "a whole number, 1 to 10".
        expected: the expected type's name, such as `int`; only with `type`.
        shown: what came, short enough to be printed; empty when nothing did.
        near: the known field whose name is most like that of the unknown one; empty when none is.
        known: names of the fields that could stand in the unknown one's place.
    """

    path: str
    problem: Literal["missing", "unknown", "type", "value", "rule"]
    wanted: str = ""
    expected: str = ""
    shown: str = ""
    near: str = ""
    known: tuple[str, ...] = ()

    def __str__(self) -> str:
        name = self.path or "the file"
        if self.problem == "missing":
            return f"the field {name} is missing."
        if self.problem == "unknown":
            return f"unknown field {name}." + (f" Did you mean {self.near}?" if self.near else "")
        if self.problem == "rule":
            return f"{self.path}: {self.wanted}" if self.path else self.wanted
        if self.wanted.startswith(("a list", "an object")):
            return f"{name} must be {self.wanted}, not {self.shown}."
        return f"{name} is {self.shown}; it must be {self.wanted}."


def read(kind: type[T], data: object, at: str = "", *, others: bool = False, complete: bool = False) -> T:
    """A value of a file as a dataclass, or as a tuple of dataclasses.

    Numbers must be of their type (true is no number, 1.0 is no whole number, 1 is a number), lists stand for
    tuples and strings for paths.

    Args:
        kind: what it is to be.
        data: what a parser of JSON or TOML found.
        at: path of the value in its file, for the sentence.
        others: leave unknown fields out instead of refusing them.
        complete: refuse a file that leaves a field out, also where the dataclass has a default.

    Raises:
        FieldError: a field is missing, unknown, of another type or out of its range.
    """
    for path, problem, known in _misnamed(kind, data, at) if complete or not others else ():
        if problem == "missing" and complete:
            raise FieldError(path, "missing")
        if problem == "unknown" and not others:
            near = get_close_matches(path.rpartition(".")[2], known, 1)
            parent = path[: path.rfind(".") + 1]
            raise FieldError(path, "unknown", near=parent + near[0] if near else "", known=known)
    try:
        value = msgspec.convert(data, kind, strict=True, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise _explained(error, kind, data, at) from None
    except UnicodeEncodeError as error:
        wanted, shown = "text that can be printed", _shown(error.object)
        raise FieldError(at, "value", wanted, shown=shown) from None
    _fill_in(value)
    return value


def _fill_in(value: Any) -> None:
    """Gives dataclasses their defaults, which msgspec leaves to the class: `vars` would not know them."""
    if isinstance(value, tuple):
        for item in value:
            _fill_in(item)
    elif is_dataclass(value):
        for field in fields(value):
            _fill_in(vars(value).setdefault(field.name, getattr(value, field.name)))


def within(path: str, value: int, low: int, high: int | None = None) -> None:
    """Checks a bound that depends on another field.

    Raises:
        FieldError: the value is not in [low, high].
    """
    if value < low or (high is not None and value > high):
        limits = Meta(ge=low, le=high)
        raise FieldError(path, "value", _limits(limits), shown=str(value))


def _decode(kind: type, value: object) -> Any:
    """What msgspec does not know itself: paths. Its own words say what else came."""
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise InputError(f"Expected `{kind.__name__}`, got `{type(value).__name__}`")


def _explained(error: msgspec.ValidationError, kind: Any, data: object, at: str) -> FieldError:
    """msgspec's error in our words. It tells the field only inside its message."""
    message = str(error)
    place = _PLACE.search(message)
    path, hint, value = at, kind, data
    for name, index, entry in _STEP.findall(place[1] if place else ""):
        if _description(hint):
            break
        step: Any = _wrong_entry(hint, value) if entry else name or int(index)
        hint, value = _child(hint, step), value[step]  # type: ignore[index]
        path += f"[{index}]" if index else f".{plain(step)}" if path else plain(step)
    if description := _description(hint):
        return FieldError(path, "value", description, shown=_shown(value))
    wrong_type = _OTHER_TYPE.match(message)
    if wrong_type:
        expected = wrong_type[1] or wrong_type[2]
        return FieldError(path, "type", _described(hint), expected, _shown(value))
    if error.__cause__ is not None:
        return FieldError(path, "rule", str(error.__cause__))
    if message.startswith("Object missing required field"):
        missing = message.split("`")[1]
        return FieldError(f"{path}.{missing}" if path else missing, "missing")
    return FieldError(path, "value", _range(hint), shown=_shown(value))


def _wrong_entry(hint: Any, value: Any) -> Any:
    """The key of the entry that does not fit: msgspec tells only that there is one."""
    for key, entry in value.items():
        try:
            msgspec.convert(entry, _child(hint, key), strict=True, dec_hook=_decode)
        except msgspec.ValidationError:
            return key
    raise AssertionError("msgspec refused an entry and then took each of them")


def _misnamed(hint: Any, data: object, path: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Path, problem and known names of every field that is unknown or left out."""
    for choice in _choices(hint):
        known = _hints(choice)
        if is_dataclass(choice) and isinstance(data, Mapping):
            prefix = f"{path}." if path else ""
            for name in data:
                if name not in known:
                    yield prefix + plain(name), "unknown", tuple(known)
            for name in known:
                if name not in data:
                    yield prefix + name, "missing", tuple(known)
                else:
                    yield from _misnamed(known[name], data[name], prefix + name)
        elif get_origin(choice) is tuple and isinstance(data, list):
            for index, item in enumerate(data):
                yield from _misnamed(_child(choice, index), item, f"{path}[{index}]")


def _choices(hint: Any) -> tuple[Any, ...]:
    """The types that a hint allows, without their limits."""
    origin = get_origin(hint)
    if origin is Annotated:
        return _choices(get_args(hint)[0])
    if origin in (Union, types.UnionType):
        return tuple(choice for each in get_args(hint) for choice in _choices(each))
    return (hint,)


def _child(hint: Any, step: str | int) -> Any:
    """The hint of a field, an item or an entry; `Any` where it says none."""
    for choice in _choices(hint):
        origin, arguments = get_origin(choice), get_args(choice)
        if step in _hints(choice):
            return _hints(choice)[step]
        if origin is tuple and isinstance(step, int):
            return arguments[0 if arguments[1:] == (...,) else min(step, len(arguments) - 1)]
        if isinstance(origin, type) and issubclass(origin, Mapping):
            return arguments[1]
        if isinstance(step, int) and hasattr(choice, "_fields"):  # a NamedTuple
            return list(get_type_hints(choice, include_extras=True).values())[step]
    return Any


def _hints(kind: Any) -> dict[Any, Any]:
    """The types of a dataclass's fields by name; none of anything else."""
    return _field_types(kind) if hasattr(kind, "__dataclass_fields__") else {}


@cache
def _field_types(kind: Any) -> dict[Any, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind) if field.init}


def _description(hint: Any) -> str:
    """The words that an annotation gives itself: they stand for the whole value, whatever is wrong in it."""
    metas = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return next((meta.description for meta in metas if isinstance(meta, Meta) and meta.description), "")


def _described(hint: Any) -> str:
    """What a hint asks for, in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        limits = _all_limits(hint)
        separator = " with " if _is_list(arguments[0]) else ", "
        return _described(arguments[0]) + (separator + limits if limits else "")
    if origin in (Union, types.UnionType):
        return " or ".join(_described(each) for each in arguments if each is not type(None))
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(map(str, arguments))
    if origin is tuple and arguments[1:] != (...,):
        return f"a list of {len(arguments)}"
    if hasattr(hint, "_fields"):
        return f"a list of {len(hint._fields)}"
    if _is_list(hint):
        return "a list"
    return _WORDS.get(hint, "an object with named fields")


def _is_list(hint: Any) -> bool:
    return get_origin(hint) in (tuple, list)


def _range(hint: Any) -> str:
    """Which values of the right type a hint allows, in words."""
    if get_origin(hint) is Annotated and not _is_list(get_args(hint)[0]):
        return _all_limits(hint)
    return _described(hint) if get_origin(hint) else "a number that can be computed with"


def _all_limits(hint: Any) -> str:
    return ", ".join(filter(None, (_limits(meta) for meta in get_args(hint)[1:])))


def _limits(meta: Any) -> str:
    """The limits of an annotation, in words."""
    if not isinstance(meta, Meta):
        return ""
    if meta.ge is not None and meta.le is not None:
        return f"{meta.ge} to {meta.le}"
    words = []
    if meta.gt is not None:
        words.append("finite" if meta.gt == -LARGEST else f"above {meta.gt:g}")
    if meta.ge is not None:
        words.append(f"{meta.ge} or more")
    if meta.le is not None and meta.le != LARGEST:
        words.append(f"at most {meta.le:g}")
    if meta.min_length is not None:
        words.append(f"at least {meta.min_length} " + ("entry" if meta.min_length == 1 else "entries"))
    if meta.max_length is not None:
        words.append(f"at most {meta.max_length} entries")
    return ", ".join(words)


def _shown(value: object) -> str:
    """A value as a sentence can quote it."""
    return plain(_REPR.repr(value))
