"""The plan of the house: rooms import only rooms before them, no circle, and every name means one thing."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUNTIME = "dtvla"
SOURCES = {
    RUNTIME: ROOT / "ros2_ws/src/dtvla",
    "training": ROOT,
    "model_export": ROOT,
    "tools": ROOT,
}
# A room imports only itself and rooms before it (docs/architecture.md). The longest name that fits is a
# module's room.
RUNTIME_ROOMS = (
    "dtvla",
    "dtvla.errors",
    "dtvla.structured",
    "dtvla.resources",
    "dtvla.policy",
    "dtvla.control",
    "dtvla.sim",
    "dtvla.evaluation",
    "dtvla.nodes",
    "dtvla.bringup",
    "dtvla.cli",
)
ROOMS = (
    *RUNTIME_ROOMS,
    "training.model",
    "model_export",
    "training.common",
    "training.datasets",
    "training.sft",
    "training.rl",
    "training.conformance",
    "training",
    "tools",
)
ROS = {"rclpy", "dtvla_msgs", "launch", "launch_ros"}
MOST_LOOSE_MODULES = 4
MOST_PARAMETERS = 8


@cache
def modules() -> dict[str, Path]:
    """Every module of the repository's packages, by its dotted name."""
    found = {}
    for package, base in SOURCES.items():
        for path in sorted((base / package).rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported(path: Path) -> Iterator[str]:
    """Dotted names of every module that a file imports: at its top, in a function, or for types alone."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in modules() else node.module


def own_imports(name: str) -> set[str]:
    """The modules of ours that a module imports."""
    return {each for each in imported(modules()[name]) if each in modules() and each != name}


def room_of(name: str) -> str:
    """The room that a module lies in."""
    return max((room for room in ROOMS if name == room or name.startswith(f"{room}.")), key=len)


def test_a_room_imports_only_the_rooms_before_it() -> None:
    wrong = [
        f"{name} imports {other}"
        for name in modules()
        for other in own_imports(name)
        if ROOMS.index(room_of(other)) > ROOMS.index(room_of(name))
    ]
    assert wrong == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Also not inside a function, and not for types alone: what needs each other belongs into one file."""
    circles = list(_circles({name: own_imports(name) for name in modules()}))
    assert circles == []


def _circles(graph: dict[str, set[str]]) -> Iterator[list[str]]:
    """The strongly connected components with more than one member (Tarjan, SIAM J. Comput. 1, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []

    def visit(node: str) -> Iterator[list[str]]:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                yield from visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                yield component

    for node in graph:
        if node not in index:
            yield from visit(node)


def test_the_circle_test_finds_a_circle() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}
    assert [sorted(circle) for circle in _circles(graph)] == [["a", "b", "c"]]


def test_only_nodes_know_ros_and_only_bringup_knows_launch() -> None:
    allowed = {"dtvla.nodes": ROS, "dtvla.bringup": ROS, "dtvla.cli": set()}
    wrong = [
        f"{name} imports {other}"
        for name, path in modules().items()
        if name.startswith(RUNTIME)
        for other in imported(path)
        if other.split(".")[0] in ROS - allowed.get(room_of(name), set())
    ]
    assert wrong == []


def test_the_robot_side_never_imports_torch_or_the_training_code() -> None:
    forbidden = {"torch", "transformers", "training", "model_export", "tools"}
    wrong = [
        f"{name} imports {other}"
        for name, path in modules().items()
        if name.startswith(RUNTIME)
        for other in imported(path)
        if other.split(".")[0] in forbidden
    ]
    assert wrong == []


def test_the_export_needs_nothing_of_the_training_code_but_the_model() -> None:
    wrong = [
        f"{name} imports {other}"
        for name in modules()
        if name.startswith("model_export")
        for other in own_imports(name)
        if room_of(other).startswith("training") and room_of(other) != "training.model"
    ]
    assert wrong == []


def test_hardly_a_module_lies_loose_at_the_top_of_the_runtime() -> None:
    top = ROOT / "ros2_ws/src/dtvla/dtvla"
    loose = [path.name for path in top.glob("*.py")]
    assert len(loose) <= MOST_LOOSE_MODULES, loose


def test_no_two_public_classes_have_one_name() -> None:
    places = defaultdict(list)
    for name, path in modules().items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(name)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


@pytest.mark.parametrize("package", SOURCES)
def test_no_function_takes_more_than_eight_parameters(package: str) -> None:
    """Triton's kernels are the exception: a kernel takes pointers, strides and tile sizes one by one."""
    wrong = [
        f"{name}.{node.name} takes {count}"
        for name, path in modules().items()
        if name.split(".")[0] == package
        for node in ast.walk(tree(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not _is_kernel(node)
        if (count := _parameters(node)) > MOST_PARAMETERS
    ]
    assert wrong == []


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return sum(argument.arg not in ("self", "cls") for argument in every)


def _is_kernel(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)
