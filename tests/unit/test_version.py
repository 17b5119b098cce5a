"""The version has one home, package.xml of dtvla; everything that names one follows it."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from importlib import metadata
from pathlib import Path

import pytest

import dtvla
from dtvla.cli import main as cli

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "ros2_ws/src/dtvla"
CHANGELOG = ROOT / "CHANGELOG.md"


def _manifest(package: str) -> str | None:
    return ET.parse(ROOT / f"ros2_ws/src/{package}/package.xml").getroot().findtext("version")


def test_the_package_says_what_its_manifest_says() -> None:
    assert dtvla.__version__ == _manifest("dtvla")


def test_the_messages_are_of_the_same_version() -> None:
    assert _manifest("dtvla_msgs") == _manifest("dtvla")


def test_what_pip_and_colcon_install_is_of_that_version() -> None:
    command = [sys.executable, "setup.py", "--version"]
    said = subprocess.run(command, cwd=PACKAGE, capture_output=True, text=True, check=True).stdout
    assert said.split()[-1] == dtvla.__version__


def test_without_the_source_tree_the_installed_metadata_say_it(tmp_path: Path) -> None:
    assert dtvla._version(tmp_path / "package.xml") == metadata.version("dtvla")


def test_a_manifest_without_a_version_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "package.xml").write_text("<package/>")
    with pytest.raises(ValueError, match=r"package\.xml has no <version>"):
        dtvla._version(tmp_path / "package.xml")


def test_the_command_prints_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["dtvla", "--version"])
    assert cli.main() == 0
    assert capsys.readouterr().out == f"dtvla {dtvla.__version__}\n"


def test_no_python_file_repeats_it() -> None:
    literal = re.compile(r"""version\w*\s*=\s*["']\d+\.\d+\.\d+["']""")
    files = [PACKAGE / "setup.py", *(PACKAGE / "dtvla").rglob("*.py")]
    assert [str(path) for path in files if literal.search(path.read_text())] == []


def test_the_newest_entry_of_the_changelog_is_of_that_version() -> None:
    headings = re.findall(r"^## \[?v?(\d+\.\d+\.\d+)", CHANGELOG.read_text(), re.MULTILINE)
    assert headings[:1] == [dtvla.__version__]
