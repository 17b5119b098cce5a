"""Nothing that comes in a message, a bundle or a file is executed or unpickled.

Walks the syntax of everything that runs on a robot. Exceptions are named below with their reason; one that is
not needed any more must go from the list.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "ros2_ws/src/dtvla/dtvla"
LAUNCH = ROOT / "launch"

# Modules whose loaders run what they read.
MODULES = {
    "pickle",
    "_pickle",
    "marshal",
    "shelve",
    "dill",
    "joblib",
    "cloudpickle",
    "torch",
    "code",
    "xacro",
}
# Calls by their last name, whatever they are called on.
CALLS = {
    "eval": "runs text",
    "exec": "runs text",
    "compile": "makes code of text",
    "__import__": "imports by a name",
    "import_module": "imports by a name that may come from outside",
    "exec_module": "runs a file",
    "run_path": "runs a file",
    "system": "runs a shell",
    "popen": "runs a shell",
    "unpickle": "unpickles",
    "extractall": "may write outside its folder",
}

# file: {what: why it may be there}
ALLOWED: dict[str, dict[str, str]] = {
    "sim/suites/libero.py": {
        "import pickle": "initial states are pickles; the Unpickler there builds arrays and nothing else, "
        "which test_sim_libero and tests/fuzz hold it to",
        "exec_module": "a file of the installed package hf-libero: a table of task names",
    },
    "policy/backends/cuda_device.py": {
        "import_module": "modules of the installed cuda-bindings, named in the file"
    },
    "control/kinematics.py": {
        "import xacro": "expressions in a robot model; the operator's own file (parameter robot_model), "
        "never one of a bundle or a message",
    },
}


def sources() -> list[Path]:
    return [*sorted(PACKAGE.rglob("*.py")), *sorted(LAUNCH.glob("*.py"))]


def suspicious(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of everything that could execute or unpickle what it is given."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in MODULES:
                    yield node.lineno, f"import {alias.name}"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield node.lineno, f"import {node.module}"
        elif isinstance(node, ast.Call):
            yield from _suspicious_call(node)


def _suspicious_call(call: ast.Call) -> Iterator[tuple[int, str]]:
    owner = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    constant = bool(call.args) and isinstance(call.args[0], ast.Constant)
    if name == "compile" and owner == "re":
        return
    if name == "import_module" and constant:
        module = str(call.args[0].value)  # type: ignore[attr-defined]
        if module.split(".")[0] in MODULES:
            yield call.lineno, f"import {module}"
        return
    if name in CALLS:
        yield call.lineno, name
    if owner == "yaml" and name not in ("safe_load", "safe_dump"):
        yield call.lineno, f"yaml.{name}"
    if owner in ("np", "numpy") and name == "load":
        allow = keywords.get("allow_pickle")
        if not (isinstance(allow, ast.Constant) and allow.value is False):
            yield call.lineno, "np.load"
    if name == "extract" and "filter" not in keywords:
        yield call.lineno, "extract without a filter"
    shell = keywords.get("shell")
    if shell is not None and not (isinstance(shell, ast.Constant) and shell.value is False):
        yield call.lineno, f"{name} with a shell"


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE if path.is_relative_to(PACKAGE) else ROOT).as_posix()


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_nothing_from_outside_is_executed_or_unpickled(path: Path) -> None:
    found = list(suspicious(ast.parse(path.read_text())))
    allowed = ALLOWED.get(name_of(path), {})
    wrong = [f"line {line}: {what} ({CALLS.get(what, 'it runs what it reads')})" for line, what in found]
    wrong = [words for words, (_, what) in zip(wrong, found, strict=True) if what not in allowed]
    assert wrong == [], f"{name_of(path)} could execute what comes from outside: {wrong}"
    assert set(allowed) <= {what for _, what in found}, "an exception that is not needed any more"


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from torch import load",
        "import torch.serialization",
        "eval(message.data)",
        "builtins.exec(text)",
        "compile(text, 'x', 'exec')",
        "importlib.import_module(name)",
        "importlib.import_module('torch')",
        "yaml.load(text)",
        "yaml.full_load(text)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "tar.extract(member, folder)",
        "tar.extractall(folder)",
        "subprocess.run(line, shell=True)",
        "os.system(line)",
    ],
)
def test_the_search_finds_what_it_looks_for(line: str) -> None:
    assert list(suspicious(ast.parse(line)))


@pytest.mark.parametrize(
    "line",
    [
        "re.compile('x')",
        "importlib.import_module('tensorrt')",
        "yaml.safe_load(text)",
        "np.load(path, allow_pickle=False)",
        "json.loads(text)",
        "tar.extract(member, folder, filter='data')",
    ],
)
def test_the_search_leaves_harmless_lines_alone(line: str) -> None:
    assert not list(suspicious(ast.parse(line)))
