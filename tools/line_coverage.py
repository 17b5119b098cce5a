"""Runs the tests and measures which lines they execute: `make test COVERAGE=1`.

    python -m tools.line_coverage [ARGUMENTS OF PYTEST]

Prints the share per room and in all, and writes coverage.xml (Cobertura) and coverage.json to runs/coverage.
What is measured stands in pyproject.toml. The exit status is that of the tests: no share is asked for.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "runs/coverage"
RUNTIME = PurePath("ros2_ws/src/dtvla")


def room(path: str) -> str:
    """The room of a file of the repository, as in `dtvla.policy`; a loose file belongs to its package."""
    parts = PurePath(path)
    if parts.is_relative_to(RUNTIME):
        parts = parts.relative_to(RUNTIME)
    return ".".join(parts.parent.parts[:2])


def shares(files: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """(executed lines, all lines) per room, and of all under `total`; `files` as in coverage.json."""
    rooms: dict[str, tuple[int, int]] = {}
    for path, facts in sorted(files.items()):
        for name in (room(path), "total"):
            executed, lines = rooms.get(name, (0, 0))
            summary = facts["summary"]
            rooms[name] = executed + summary["covered_lines"], lines + summary["num_statements"]
    rooms["total"] = rooms.pop("total", (0, 0))  # the last line
    return rooms


def table(rooms: Mapping[str, tuple[int, int]]) -> str:
    """One line per room: its share, and how many of its lines ran."""
    return "\n".join(
        f"{name:24} {100 * executed / max(lines, 1):5.1f} %  {executed:6} of {lines:6} lines"
        for name, (executed, lines) in rooms.items()
    )


def main(arguments: Sequence[str]) -> int:
    """Tests, then the shares; returns the status of the tests."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    environment = dict(os.environ)
    if sys.version_info >= (3, 12):
        environment.setdefault("COVERAGE_CORE", "sysmon")  # of the interpreter: costs next to nothing

    def coverage(*command: str) -> int:
        return subprocess.run(
            [sys.executable, "-m", "coverage", *command], cwd=ROOT, env=environment
        ).returncode

    status = coverage("run", "-m", "pytest", *arguments)
    for command in ("combine", "json", "xml"):
        if coverage(command, "--quiet"):
            return status or 1  # it has said why
    files = json.loads((FOLDER / "coverage.json").read_text())["files"]
    print(f"\nLines that the tests executed ({FOLDER.relative_to(ROOT)}/coverage.xml has each):")
    print(table(shares(files)))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
