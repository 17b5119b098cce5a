"""Every command on the site and in the README is one that its program accepts, and is run or says why not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dtvla.resources import default_bundle
from tools.docs.command_checks import HANDLINGS, handling_of, hold_to_its_program
from tools.docs.command_parsers import UnusableCommand
from tools.docs.page_commands import PageCommand, commands, page_files, split, untagged_blocks

ROOT = Path(__file__).resolve().parents[2]
PAGES = page_files()
BUNDLES = ("BUNDLE", "PATH", "my_policy", "bundle")  # what stands for a bundle's folder on a page


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def page_command(words: str, whole: bool = True) -> PageCommand:
    return PageCommand("page.md", tuple(words.split()), whole)


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_block_of_code_says_its_language(path: Path) -> None:
    assert untagged_blocks(path) == []


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_command_of_a_page_is_one_that_its_program_accepts(path: Path) -> None:
    refused = []
    for command in commands(path):
        try:
            hold_to_its_program(command)
        except UnusableCommand as error:
            refused.append(str(error))
    assert not refused, "\n\n".join(refused)


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_command_of_a_page_is_run_or_says_why_not(path: Path) -> None:
    for command in commands(path):
        handling_of(command)


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_commands_that_are_run_end_well(path: Path, tmp_path: Path) -> None:
    """As they stand on the page and in its order, in a folder of their own with copies of the bundle."""
    chosen = [each for each in commands(path) if each.whole and handling_of(each).how == "run"]
    if chosen:
        for name in BUNDLES:
            shutil.copytree(default_bundle(), tmp_path / name)
    python_path = os.pathsep.join([str(ROOT / "ros2_ws/src/dtvla"), os.environ.get("PYTHONPATH", "")])
    for command in chosen:
        assert command.words[0] == "dtvla", f"{command.text}: only dtvla is started here"
        done = subprocess.run(
            [sys.executable, "-m", "dtvla.cli", *command.words[1:]],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": python_path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command.text}\n{done.stdout}{done.stderr}"


def test_tests_that_are_named_for_a_command_exist() -> None:
    named = {each.why for each in HANDLINGS if each.how == "test"}
    assert [name for name in named if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("dtvla eval --suite embedded --episods 3", "--episods"),
        ("dtvla evaluate", "evaluate"),
        ("dtvla eval --chunk-mode closed", "invalid choice"),
        ("dtvla bundle check", "PATH"),
        ("python -m model_export CHECKPOINT --out BUNDLE --precision int4", "invalid choice"),
        ("python -m training.sft --config huge", "huge"),
        ("python -m training.nothing", "There is no program"),
        ("torchrun --nproc-per-node 2 -m training.sft --stepps 3", "--stepps"),
        ("make everything", "no target"),
        ("make demo ARGS=--nothing", "--nothing"),
        ("ros2 launch dtvla sim.launch.py robots:=panda", "robots"),
    ],
)
def test_a_wrong_command_on_a_page_is_found(words: str, said: str) -> None:
    with pytest.raises(UnusableCommand, match=said):
        hold_to_its_program(page_command(words))


@pytest.mark.parametrize("words", ["dtvla eval --varry all:2", "dtvla evl --vary all", "make tests"])
def test_a_wrong_command_within_a_sentence_is_found(words: str) -> None:
    with pytest.raises(UnusableCommand):
        hold_to_its_program(page_command(words, whole=False))


def test_a_sentence_may_leave_things_out_of_a_command() -> None:
    hold_to_its_program(page_command("dtvla bundle sign --key", whole=False))
    hold_to_its_program(page_command("python -m model_export.quantise ... --calibrate data", whole=False))


def test_a_command_that_nobody_speaks_of_is_found() -> None:
    with pytest.raises(UnusableCommand, match="HANDLINGS"):
        handling_of(page_command("frobnicate --all"))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (".venv/bin/dtvla up --task 1   # the graph", [("dtvla", "up", "--task", "1")]),
        ("A=1 B=2 make test ARGS='-k x'", [("make", "test", "ARGS=-k x")]),
        ("cd a && make b", [("cd", "a"), ("make", "b")]),
        ("dtvla eval \\\n  --ros", [("dtvla", "eval", "--ros")]),
        ("# nothing", []),
    ],
)
def test_shell_code_is_taken_apart_into_commands(text: str, found: list[tuple[str, ...]]) -> None:
    assert list(split(text)) == found
