"""The real command line of every program here, as parsers that can be asked instead of started.

A program is run as `python -m MODULE` runs it, up to the point where it reads its options. So nothing here
repeats an option: what the reference lists, and what the commands on a page are held to, is what the
program itself accepts.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import runpy
import sys
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any
from unittest import mock

import tyro._cli


class UnusableCommand(ValueError):
    """A command line that its program refuses; the message is the program's own."""


class _Asked(BaseException):
    """Leaves a program at the point where it would read its options."""

    def __init__(self, parser: argparse.ArgumentParser, arguments: list[str]) -> None:
        super().__init__()
        self.parser = parser
        self.arguments = arguments


def parser_of(module: str, arguments: Sequence[str] = ()) -> tuple[argparse.ArgumentParser, list[str]]:
    """The parser of `python -m MODULE`, and the arguments that the program hands to it.

    The two differ where a program takes options away before (`--config` of the trainers, which changes the
    defaults of all others).

    Raises:
        UnusableCommand: the program ended before, or reads no options this way.
    """
    make_parser = tyro._cli._cli_impl  # `tyro.cli` and everything built on it end here (tyro is pinned)

    def ask(kind: Any, **options: Any) -> None:
        given = options["args"]
        asked = {**options, "args": None, "return_parser": True, "console_outputs": True}
        parser = make_parser(kind, **asked)
        assert isinstance(parser, argparse.ArgumentParser)
        raise _Asked(parser, list(sys.argv[1:] if given is None else given))

    said = io.StringIO()
    try:
        with (
            mock.patch("tyro._cli._cli_impl", ask),
            mock.patch.object(sys, "argv", [module, *arguments]),
            contextlib.redirect_stderr(said),
            contextlib.redirect_stdout(said),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", RuntimeWarning)  # a program may have been imported before
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except _Asked as asked:
        return asked.parser, asked.arguments
    except SystemExit as end:
        raise UnusableCommand(f"{module}: {said.getvalue().strip() or end}") from None
    raise UnusableCommand(f"{module} ended without reading options by tyro.")


@cache
def usual_parser(module: str) -> argparse.ArgumentParser:
    """The parser of a program that was started without arguments."""
    return parser_of(module)[0]


def check(module: str, arguments: Sequence[str]) -> None:
    """Reads a command line as its program would, and starts nothing.

    Raises:
        UnusableCommand: an unknown option, a value out of its choices, or a required one is missing.
    """
    if not _refusal(usual_parser(module), arguments):
        return  # the same parser for many commands: making one takes a while
    parser, rest = parser_of(module, arguments)
    if refusal := _refusal(parser, rest):
        raise UnusableCommand(f"{module} {' '.join(arguments)}:\n{refusal}")


def _refusal(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> str:
    """What a parser says against a command line; empty when it takes it."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            parser.parse_args([_hyphens(word) for word in arguments])
    except SystemExit as end:
        if end.code != 0:  # --help ends well
            return said.getvalue().strip() or "refused"
    return ""


def check_names(module: str, arguments: Sequence[str]) -> None:
    """The same for a command that a sentence only hints at: its options must exist, nothing need be complete.

    Raises:
        UnusableCommand: an option or a subcommand that the program does not have.
    """
    parser, rest = usual_parser(module), list(arguments)
    while rest and (commands := subcommands(parser)):
        if rest[0] not in commands:
            if rest[0].startswith("-") or rest[0] == "...":
                break
            raise UnusableCommand(f"{module} has no command '{rest[0]}'; it has {', '.join(commands)}.")
        parser = commands[rest.pop(0)]
    known = {name for action in parser._actions for name in action.option_strings}
    for word in rest:
        name = _hyphens(word.strip("[]").split("=")[0])
        if name.startswith("--") and name not in {*known, "--help", "--config"}:
            raise UnusableCommand(f"{module} {' '.join(arguments)}: there is no option {name}.")


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of a program's subcommands by name; empty where it has none."""
    for action in parser._actions:
        if isinstance(action.choices, dict):
            return dict(action.choices)
    return {}


def options(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The options and positional arguments of a parser, in its order; without --help and the subcommands."""
    for action in parser._actions:
        if "--help" not in action.option_strings and not isinstance(action.choices, dict):
            yield action


def _hyphens(word: str) -> str:
    """An option as the parser spells it: `--max_steps` is taken like `--max-steps`."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value
