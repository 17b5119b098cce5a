"""tools/setup.sh before it installs anything: which Python, and what it must never delete."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder that set-up takes for a fresh clone."""
    for name in ("tools", "requirements"):
        shutil.copytree(ROOT / name, tmp_path / name)
    return tmp_path


def _set_up(project: Path, level: str = "runtime", **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(project / "tools/setup.sh"), level]
    env = os.environ | environment
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


def _python_of_version(folder: Path, version: str) -> Path:
    """A stand-in for an interpreter that is not on this machine; it answers only what set-up asks first."""
    script = folder / f"python{version}"
    script.write_text(
        f"#!/bin/sh\ncase $2 in *'sys.exit('*) exit 1 ;; esac\necho {version.replace('.', ' ')}\n"
    )
    script.chmod(0o755)
    return script


def test_an_unknown_level_is_refused_with_the_known_ones(project: Path) -> None:
    result = _set_up(project, "everything")
    assert result.returncode == 2
    assert "use runtime, dev or gpu" in result.stderr


def test_a_python_that_does_not_fit_is_named_with_the_remedy(project: Path) -> None:
    old = _python_of_version(project, "3.8")
    result = _set_up(project, PYTHON=str(old))
    assert result.returncode == 1
    assert str(old) in result.stderr
    assert "apt-get install" in result.stderr
    assert not (project / ".venv").exists()


def test_a_working_venv_is_never_replaced(project: Path) -> None:
    """Bug: a glob in the version check made set-up delete the .venv that running programs used."""
    tools = project / ".venv/bin"
    tools.mkdir(parents=True)
    (tools / "python").symlink_to(sys.executable)
    (tools / "activate").write_text(f"VIRTUAL_ENV={project / '.venv'}\n")
    result = _set_up(project, PYTHON=str(_python_of_version(project, "3.9")))
    assert result.returncode == 1
    assert "make distclean" in result.stderr
    assert (tools / "python").exists()


def test_the_gpu_level_refuses_a_python_without_wheels_before_it_installs_anything(project: Path) -> None:
    tools = project / ".venv/bin"
    tools.mkdir(parents=True)
    _python_of_version(tools, "3.10").rename(tools / "python")
    (tools / "activate").write_text(f"VIRTUAL_ENV={project / '.venv'}\n")
    result = _set_up(project, "gpu")
    assert result.returncode == 1
    assert "3.11 to 3.13 have" in result.stderr
    assert not list((project / ".venv").glob(".*.stamp"))
