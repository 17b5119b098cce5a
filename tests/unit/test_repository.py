"""Rules of the house that a reader would otherwise have to remember."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dtvla.bringup.graph import EXECUTABLES, GraphOptions

ROOT = Path(__file__).resolve().parents[2]
INTERFACES = ROOT / "ros2_ws/src/dtvla_msgs"
MAX_LINES = 600


def _tracked(*suffixes: str) -> list[Path]:
    """Files of the repository, as git sees them, with one of these suffixes (all files without any)."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    ).stdout
    paths = [ROOT / name for name in listed.split("\0") if name]
    return [path for path in paths if path.is_file() and (not suffixes or path.suffix in suffixes)]


def _imports(path: Path) -> Iterator[str]:
    """Dotted names of every module a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_node_of_the_table_is_an_executable_that_ros2_run_finds() -> None:
    scripts = {script.name: script.value for script in entry_points(group="console_scripts")}
    assert {node.name: scripts.get(node.executable) for node in EXECUTABLES} == {
        node.name: f"{node.module}:main" for node in EXECUTABLES
    }


def test_launch_files_choose_options_that_exist() -> None:
    known = set(GraphOptions.__dataclass_fields__)
    for path in sorted((ROOT / "launch").glob("*.launch.py")):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        chosen = [call for call in calls if getattr(call.func, "id", "") == "graph_description"]
        assert {keyword.arg for call in chosen for keyword in call.keywords} <= known


@pytest.mark.parametrize("path", sorted(INTERFACES.glob("*/*.*")), ids=lambda path: path.name)
def test_every_field_of_an_interface_carries_a_comment(path: Path) -> None:
    previous = ""
    for line in path.read_text().splitlines():
        if line and not line.startswith(("#", "---")):
            assert previous.startswith("#"), f"{path.name}: '{line}' has no comment above it"
        previous = line


@pytest.mark.parametrize("path", sorted(INTERFACES.glob("*/*.*")), ids=lambda path: path.name)
def test_every_number_of_an_interface_names_its_unit(path: Path) -> None:
    comment: list[str] = []
    for line in path.read_text().splitlines():
        if line.startswith("#"):
            comment.append(line)
            continue
        if line.startswith("float64"):
            words = re.findall(r"\w+", " ".join(comment))
            assert {"m", "s", "rad", "units"} & set(words), f"{path.name}: '{line}' names no unit"
        comment = []


def _requirements(path: Path) -> list[Requirement]:
    lines = (line.split(" #")[0].strip() for line in path.read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-r"))]


@pytest.mark.parametrize("path", sorted((ROOT / "requirements").glob("*.txt")), ids=lambda path: path.name)
def test_every_requirement_is_pinned(path: Path) -> None:
    for requirement in _requirements(path):
        operators = [specifier.operator for specifier in requirement.specifier]
        assert operators == ["=="], f"{path.name}: {requirement} is not pinned"


def test_the_lock_file_agrees_with_the_other_requirements() -> None:
    def pins(name: str) -> set[tuple[str, str]]:
        found = _requirements(ROOT / f"requirements/{name}.txt")
        return {(canonicalize_name(each.name), str(each.specifier)) for each in found}

    names = ("ros", "sim", "runtime", "dev", "docs", "ray")
    missing = set().union(*map(pins, names)) - pins("lock")
    assert missing == set(), "run tools/lock.sh"


@pytest.mark.parametrize(
    ("folder", "files"),
    [
        ("ros2_ws/src/dtvla/dtvla", ("ros", "sim", "runtime", "sim-nodeps")),
        ("training", ("ros", "sim", "runtime", "sim-nodeps", "dev")),
        ("model_export", ("ros", "sim", "runtime", "sim-nodeps", "dev")),
    ],
)
def test_what_the_code_imports_stands_in_its_requirements(folder: str, files: tuple[str, ...]) -> None:
    """Else it works here, where everything is installed, and fails after `make demo` on a fresh machine."""
    required = {pin.name for name in files for pin in _requirements(ROOT / f"requirements/{name}.txt")}
    required = {canonicalize_name(name) for name in required}
    own = {"dtvla", "dtvla_msgs", "training", "model_export", "launch", "launch_ros"}
    own |= set(sys.stdlib_module_names)
    providers = packages_distributions()
    missing = set()
    for path in (ROOT / folder).rglob("*.py"):
        for name in {name.split(".")[0] for name in _imports(path)} - own:
            # What is for another Python alone (tomli) is not installed here: then the name is the package's.
            names = {canonicalize_name(provider) for provider in providers.get(name, [name])}
            if not names & required and not any(provider.startswith("ros-") for provider in names):
                missing.add(f"{path.relative_to(ROOT)} imports {name}")
    assert missing == set()


def test_no_tracked_file_names_a_folder_of_one_machine() -> None:
    pattern = re.compile(rb"(?<![\w.])/(work|root|home/\w+)/")
    found = [
        f"{path.relative_to(ROOT)}: {match.group().decode()}"
        for path in _tracked()
        if path.name not in ("Dockerfile", Path(__file__).name)
        for match in pattern.finditer(path.read_bytes())
    ]
    assert found == []


def test_python_files_stay_short() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in _tracked(".py")
        if (lines := len(path.read_text().splitlines())) > MAX_LINES
    }
    assert long == {}


@pytest.mark.parametrize("script", ["tools/setup.sh", "tools/lock.sh", "tools/test_extras.sh", ".ci/run"])
def test_shell_scripts_parse(script: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)
