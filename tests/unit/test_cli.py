"""The command line: its errors, its help, and that one option has one sentence everywhere."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from dtvla.bringup.graph import GraphOptions, sentences
from dtvla.bringup.launcher import Interrupted
from dtvla.cli import main as command_line
from dtvla.cli.graph import Demo, Up
from dtvla.errors import BundleError, DtvlaError, InputError
from dtvla.sim.bootstrap import SimulatorUnavailable


def _fails_with(monkeypatch: pytest.MonkeyPatch, error: BaseException, *arguments: str) -> int:
    def failing(**_: object) -> int:
        raise error

    monkeypatch.setattr(command_line.app, "cli", failing)
    monkeypatch.setattr(sys, "argv", ["dtvla", "doctor", *arguments])
    return command_line.main()


@pytest.mark.parametrize(
    "error",
    [
        InputError("There is no robot 'ur5'."),
        BundleError("policy.json has no field 'schema'."),
        SimulatorUnavailable("No GL. Install libegl1."),
        FileNotFoundError(2, "No such file or directory", "a/file"),
    ],
)
def test_what_the_user_can_mend_is_told_as_a_sentence(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _fails_with(monkeypatch, error) == 1
    assert capsys.readouterr().err == f"Error: {error}\n"


@pytest.mark.parametrize(
    "error", [ValueError("not enough values to unpack"), RuntimeError("x"), KeyError("a")]
)
def test_a_fault_of_ours_does_not_look_like_the_users(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _fails_with(monkeypatch, error) == 70
    told = capsys.readouterr().err
    assert told.startswith(f"A fault of dtvla itself ({type(error).__name__}: ")
    assert "--debug" in told
    assert "Traceback" not in told


@pytest.mark.parametrize(("error", "status"), [(InputError("No."), 1), (KeyError("a"), 70)])
def test_debug_shows_the_traceback_of_both(
    error: Exception, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _fails_with(monkeypatch, error, "--debug") == status
    assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize("error", [Interrupted(), KeyboardInterrupt()])
def test_an_interruption_is_no_error(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _fails_with(monkeypatch, error) == 130
    assert capsys.readouterr().err == ""


def test_the_messages_of_errors_reach_no_terminal_as_escapes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _fails_with(monkeypatch, InputError("\x1b[31mred[/]\x07"))
    assert capsys.readouterr().err == "Error: \\x1b[31mred[/]\\x07\n"


def test_a_command_that_moved_names_its_new_place() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dtvla.cli", "bench"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "make bench" in done.stderr


@pytest.mark.parametrize("command", [Up, Demo])
def test_an_option_of_the_graph_has_the_same_type_and_sentence_on_the_command_line(command: type) -> None:
    """`dtvla up`, `ros2 launch` and the documents once said three different things of one option."""
    graph = {field.name: field for field in dataclasses.fields(GraphOptions)}
    hints = get_type_hints(command, include_extras=True)
    shared = [field for field in dataclasses.fields(command) if field.name in graph and field.name in hints]
    assert len(shared) >= 6
    for field in shared:
        about = [each.help for each in get_args(hints[field.name])[1:] if hasattr(each, "help")]
        if about:
            assert about == [sentences()[field.name]]


def test_every_option_of_the_graph_has_a_sentence() -> None:
    for name, sentence in sentences().items():
        assert sentence[0].isupper() or sentence.startswith("true"), name
        assert sentence.endswith("."), name


def test_every_error_of_ours_is_one_of_the_base_class() -> None:
    """Else the command line would tell the user's mistake as a fault of ours."""
    import ast

    package = Path(command_line.__file__).parents[1]
    wrong = []
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                if bases & {"ValueError", "RuntimeError", "OSError", "FileNotFoundError"}:
                    ours = bases & {"DtvlaError", "InputError"}
                    wrong += [] if ours else [f"{path.name}: {node.name}"]
    assert wrong == []
    assert issubclass(InputError, DtvlaError)
    assert issubclass(InputError, ValueError)
