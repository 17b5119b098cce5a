"""Reference pages of the ROS graph: its messages, and what each node takes, says and serves."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

from dtvla.bringup.graph import EXECUTABLES
from dtvla.bringup.ports import EVERY_NODE, LIFECYCLE, OWN, Ports
from dtvla.nodes.common.parameters import SCHEMAS, Parameter
from tools.docs.markdown import escaped, page, table

ROOT = Path(__file__).resolve().parents[2]
INTERFACES = ROOT / "ros2_ws/src/dtvla_msgs"
KINDS = {"msg": "Messages", "srv": "Services", "action": "Actions"}
PARTS = {"msg": ("",), "srv": ("Request", "Response"), "action": ("Goal", "Result", "Feedback")}
USES = {
    "publishes": "publishes",
    "subscribes": "subscribes to",
    "serves": "serves",
    "calls": "calls",
    "executes": "executes the action",
    "sends": "sends goals to",
}


def messages() -> str:
    """Every message, service and action of `dtvla_msgs`, from its file."""
    sections = []
    for kind, title in KINDS.items():
        sections.append(f"## {title}")
        for path in sorted((INTERFACES / kind).glob(f"*.{kind}")):
            sections += [f"### dtvla_msgs/{kind}/{path.stem}", *interface(path.read_text(), PARTS[kind])]
    return page(
        "Messages, services and actions",
        "Made from the files in `ros2_ws/src/dtvla_msgs`. Lengths are in metres, angles in radians, times in "
        "seconds; each field says which frame it is in.",
        *sections,
    )


def interface(text: str, parts: tuple[str, ...]) -> list[str]:
    """The sections of one interface file: what it is for, and a table of fields for each of its parts."""
    head, _, rest = text.partition("\n\n")
    if not all(line.startswith("#") for line in head.splitlines()):
        raise ValueError(f"An interface begins with a comment that says what it is for, not with: {head}")
    sections = [escaped(_comment(head.splitlines()))]
    for part, body in zip(parts, rest.split("\n---"), strict=True):
        rows = [(f"`{name}`", f"`{kind}`", escaped(words)) for kind, name, words in _fields(body)]
        sections += [f"**{part}**"] if part else []
        sections.append(table(("field", "type", "what it is"), rows))
    return sections


def _fields(body: str) -> Iterator[tuple[str, str, str]]:
    """(type, name, comment) of every field."""
    comment: list[str] = []
    for line in body.splitlines():
        if line.startswith("#"):
            comment.append(line)
        elif line.strip():
            kind, name = line.split()
            yield kind, name, _comment(comment)
            comment = []


def _comment(lines: list[str]) -> str:
    return " ".join(line.lstrip("# ").strip() for line in lines)


def nodes() -> str:
    """Every node: what it is for, its topics and services, and its parameters with their bounds."""
    sections = [
        "## Every node\n\n" + _uses(EVERY_NODE) + "\n\nA lifecycle node besides:\n\n" + _uses(LIFECYCLE)
    ]
    for node in EXECUTABLES:
        sections += [f"## {node.name}", _purpose(node.module), _uses(OWN[node.name])]
        if schema := SCHEMAS.get(node.name):
            sections += [f"### Parameters of {node.name}", parameters(schema)]
    return page(
        "Nodes and their parameters",
        "Made from `dtvla.bringup.graph`, `dtvla.bringup.ports` and `dtvla.nodes.common.parameters`. "
        "Parameters are read when a node is configured; one out of its bounds is refused in a sentence, and "
        "the node stays unconfigured. Names without a leading `/` lie in the node's namespace, those with "
        "`~` below its name.",
        *sections,
    )


def parameters(schema: Sequence[Parameter]) -> str:
    """The parameters of one node as a table."""
    return "\n".join(
        ["| parameter | default | what it does |", "|---|---|---|", *(_parameter(each) for each in schema)]
    )


def _parameter(parameter: Parameter) -> str:
    default = parameter.default
    shown = str(default).lower() if isinstance(default, bool) else str(default)
    unit = f" {parameter.unit}" if parameter.unit else ""
    words = f"{parameter.sentence} [{parameter.bounds}{unit}]"
    return f"| `{parameter.name}` | {f'`{shown}`' if shown else 'empty'} | {words} |"


def _uses(ports: Ports) -> str:
    lines = []
    for field in fields(ports):
        names = getattr(ports, field.name)
        if names:
            lines.append(f"- {USES[field.name]}: " + ", ".join(f"`{name}`" for name in names))
    return "\n".join(lines)


def _purpose(module: str) -> str:
    """The docstring of a node's module, read without importing it."""
    path = ROOT / "ros2_ws/src/dtvla" / (module.replace(".", "/") + ".py")
    return ast.get_docstring(ast.parse(path.read_text())) or ""
