"""Settings of a run: a frozen dataclass, filled from a TOML file and then from the command line.

    python -m training.sft --config tiny --steps 100

`--config` takes a file, or the name of one in training/configs. Tables of the file are nested dataclasses.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
_Settings = TypeVar("_Settings")


class SettingsError(ValueError):
    """A configuration that cannot be used; the message names the file, the key and the remedy."""


def parse(kind: type[_Settings], description: str, arguments: Sequence[str] | None = None) -> _Settings:
    """The settings of a command: its configuration file, changed by the other options.

    Args:
        kind: a frozen dataclass whose defaults hold without a file.
        description: of the command, for --help.
        arguments: the command line; None takes this process's.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    name, rest = _take_config(given)
    try:
        default = None if name is None else load(kind, name)
    except SettingsError as error:
        raise SystemExit(str(error)) from None
    known = ", ".join(configs())
    description = f"{description}\n\n--config FILE or a name ({known}) is read before all other options."
    if default is None:
        return tyro.cli(kind, description=description, args=rest)
    return tyro.cli(kind, description=description, args=rest, default=default)


def configs() -> list[str]:
    """Names of the configurations that come with the project."""
    return sorted(path.stem for path in CONFIGS.glob("*.toml"))


def find(name: str | Path) -> Path:
    """The file of a configuration.

    Raises:
        SettingsError: neither a file nor a known name.
    """
    for path in (Path(name), CONFIGS / f"{name}.toml"):
        if path.is_file():
            return path
    raise SettingsError(
        f"There is no configuration '{name}': neither a file nor one of {', '.join(configs())}."
    )


def load(kind: type[_Settings], name: str | Path) -> _Settings:
    """Settings from a TOML file; what the file leaves out keeps its default.

    Raises:
        SettingsError: no such file, not TOML, an unknown key, a value of another type or out of its choices.
    """
    path = find(name)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not TOML: {error}.") from None
    found: _Settings = _fill(kind, values, path, "")
    return found


def _fill(kind: Any, values: dict[str, Any], path: Path, prefix: str) -> Any:
    hints = get_type_hints(kind)
    known = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    filled = {}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            remedy = (
                f"Did you mean '{prefix}{near[0]}'?" if near else f"Known are {', '.join(sorted(known))}."
            )
            raise SettingsError(f"{path}: unknown key '{prefix}{key}'. {remedy}")
        filled[key] = _convert(known[key], value, path, prefix + key)
    try:
        return kind(**filled)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{path}{f', {prefix[:-1]}' if prefix else ''}: {error}") from None


def _convert(kind: Any, value: Any, path: Path, key: str) -> Any:
    """`value` as the type that a field is annotated with."""
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _fill(kind, value, path, f"{key}.")
    if origin in (Union, types.UnionType):
        kinds = [each for each in arguments if each is not type(None)]
        return _convert(kinds[0], value, path, key) if len(kinds) == 1 else value
    if origin is tuple and isinstance(value, list):
        items = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        if len(items) == len(value):
            return tuple(_convert(each, item, path, key) for each, item in zip(items, value, strict=True))
    if origin is Literal:
        if value in arguments:
            return value
        raise SettingsError(f"{path}: {key} is {value!r}; choose one of {', '.join(map(str, arguments))}.")
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in (bool, int, float, str) and type(value) is kind:
        return value
    wanted = getattr(kind, "__name__", str(kind))
    raise SettingsError(f"{path}: {key} must be of type {wanted}, not {value!r}.")


def _take_config(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of --config, and the other arguments."""
    name, rest = None, []
    waiting = iter(arguments)
    for argument in waiting:
        if argument == "--config":
            name = next(waiting, None)
            if name is None:
                raise SystemExit("--config needs a file or a name.")
        elif argument.startswith("--config="):
            name = argument.removeprefix("--config=")
        else:
            rest.append(argument)
    return name, rest
