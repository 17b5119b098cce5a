"""Settings of a run: a frozen dataclass, filled from a TOML file and then from the command line.

    python -m training.sft --config tiny --steps 100

`--config` takes a file, or the name of one in training/configs. Tables of the file are nested dataclasses.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import tyro

from dtvla.structured import FieldError, read

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
    try:
        return read(kind, values)
    except FieldError as error:
        raise SettingsError(f"{path}{_explained(error)}") from None


def _explained(error: FieldError) -> str:
    """A wrong key of a configuration, in TOML's words."""
    if error.problem == "unknown":
        known = ", ".join(sorted(error.known))
        remedy = f"Did you mean '{error.near}'?" if error.near else f"Known are {known}."
        return f": unknown key '{error.path}'. {remedy}"
    if error.wanted.startswith("one of"):
        return f": {error.path} is {error.shown}; choose {error.wanted}."
    if error.problem == "type":
        return f": {error.path} must be of type {error.expected}, not {error.shown}."
    if error.problem == "rule":
        return f"{f', {error.path}' if error.path else ''}: {error.wanted}"
    return f": {error}"


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
