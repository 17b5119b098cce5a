"""Reference pages of the Python side: the file policy.json, and the public names of policy and control."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

from dtvla.policy.bundle.policy_spec import ACTION_DIM, FAMILY, MOST, PRECISIONS, SCHEMA_VERSION
from dtvla.resources import default_bundle
from tools.docs.markdown import escaped, page, table

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "ros2_ws/src/dtvla/dtvla"
ROOMS = {"policy": "from images and an instruction to an action chunk", "control": "from chunks to motion"}
LONGEST_LIST = 2  # of an example's array; the rest is left out
SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Yields")
# Sections of policy.json, and the dataclass that each is read into (a file below dtvla/policy, a class).
SCHEMA = {
    "": ("bundle/policy_spec.py", "PolicySpec"),
    "layout": ("token_layout.py", "TokenLayout"),
    "image": ("images.py", "ImageSpec"),
    "cameras[]": ("images.py", "Camera"),
    "norm_stats.action": ("action_tokenizer.py", "Normaliser"),
    "action_scale": ("bundle/policy_spec.py", "ActionScale"),
    "gripper": ("bundle/policy_spec.py", "Gripper"),
}
JSON_NAMES = {"normaliser": "norm_stats"}  # fields that the file calls otherwise
MANIFEST = (
    ("`schema_version`", "int", "", f"Version of this schema: {SCHEMA_VERSION}."),
    ("`family`", "str", "", f"The policy's family: `{FAMILY}`."),
    ("`files`", "object", "", "SHA-256 of every other file of the bundle, by its name."),
    ("`engines`", "list", "none", "TensorRT engines: file, GPU, TensorRT version, hash of their graph."),
    ("`sha256`", "str", "", "SHA-256 of this file while this field is blank: the bundle's fingerprint."),
)


def bundle() -> str:
    """The schema of policy.json, from the dataclasses that it is read into, with an example."""
    parts = []
    for section, (name, kind) in SCHEMA.items():
        tree = ast.parse((PACKAGE / "policy" / name).read_text())
        source = (PACKAGE / "policy" / name).read_text().splitlines()
        found = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == kind)
        parts.append(f"## `{section}`" if section else "## Fields of the file")
        parts.append(escaped(_first_paragraph(ast.get_docstring(found) or "")))
        rows = [(f"`{JSON_NAMES.get(a, a)}`", b, c, d) for a, b, c, d in _dataclass_fields(found, source)]
        rows = [*rows, *MANIFEST] if not section else rows
        parts.append(table(("field", "type", "default", "what it is"), rows))
    limits = ", ".join(f"{name} {most:,}" for name, most in MOST.items())
    example = json.loads((default_bundle() / "policy.json").read_text())
    return page(
        "The policy bundle",
        "A bundle is a folder: `policy.json`, `tokenizer.json`, `vision.onnx`, `decoder.onnx`, perhaps "
        "TensorRT engines, and `policy.json.sig` when it is signed. Made from the dataclasses that "
        "`policy.json` is read into. Every field is checked when a bundle is loaded: a missing, unknown or "
        "wrong one is an error that names it by its path in the file, such as `norm_stats.action.q99`.",
        *parts,
        f"Precisions: {', '.join(f'`{name}`' for name in PRECISIONS)}. `action_dim` must be {ACTION_DIM}. "
        f"Upper limits: {limits}.",
        "## Example: the bundle that ships",
        "Lists are shortened.",
        "```json\n" + json.dumps(_shortened(example), indent=2) + "\n```",
    )


def _shortened(value: object) -> object:
    if isinstance(value, dict):
        return {key: _shortened(each) for key, each in value.items()}
    if isinstance(value, list) and len(value) > LONGEST_LIST and not isinstance(value[0], dict):
        return [*value[:LONGEST_LIST], "..."]
    return [_shortened(each) for each in value] if isinstance(value, list) else value


def _dataclass_fields(kind: ast.ClassDef, source: list[str]) -> Iterator[tuple[str, str, str, str]]:
    """(name, type, default, meaning) of a dataclass's fields; the meaning is its docstring's or a comment."""
    described = _attributes(ast.get_docstring(kind) or "")
    for node in kind.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
            last = source[(node.end_lineno or node.lineno) - 1]
            comment = re.search(r"\s#\s*(.*)$", last)
            value = "" if node.value is None else ast.unparse(node.value)
            default = f"`{value}`" if value and not value.startswith("field(") else ""
            words = described.get(name) or (comment[1] if comment else "")
            yield name, f"`{ast.unparse(node.annotation)}`", default, escaped(words)


def _attributes(docstring: str) -> dict[str, str]:
    """What a docstring's section "Attributes" says about each name."""
    found: dict[str, str] = {}
    body = docstring.partition("Attributes:\n")[2].partition("\n\n")[0]
    for names, words in re.findall(r"^    (\w[\w, ]*): (.*(?:\n     .*)*)", body, re.MULTILINE):
        for name in names.split(","):
            found[name.strip()] = " ".join(words.split())
    return found


def api() -> str:
    """Signatures and docstrings of what other code may import from dtvla.policy and dtvla.control."""
    parts = []
    for room, words in ROOMS.items():
        parts.append(f"## dtvla.{room}: {words}")
        for path in sorted((PACKAGE / room).rglob("*.py")):
            tree = ast.parse(path.read_text())
            shown = list(_public(tree))
            if shown:
                dotted = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
                intro = escaped(_first_paragraph(ast.get_docstring(tree) or ""))
                parts += [f"### {dotted.removesuffix('.__init__')}", intro, *shown]
    return page(
        "Python API",
        "What `dtvla.policy` and `dtvla.control` offer, by signature and docstring. Neither imports ROS or "
        "torch. Shapes stand in square brackets, units in the names. Made from the source.",
        *parts,
    )


def _public(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            bases = ", ".join(ast.unparse(base) for base in node.bases)
            yield f"#### class `{node.name}`" + (f" ({bases})" if bases else "")
            yield _docstring(node)
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and _is_shown(inner):
                    yield _signature(inner) + "\n\n" + _docstring(inner)
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield f"#### `{node.name}`"
            yield _signature(node)
            yield _docstring(node)


def _is_shown(method: ast.FunctionDef) -> bool:
    return not method.name.startswith("_") or method.name == "__init__"


def _signature(node: ast.FunctionDef) -> str:
    decorators = "".join(f"@{ast.unparse(each)}\n" for each in node.decorator_list)
    returns = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
    arguments = ast.unparse(node.args)
    line = f"{decorators}def {node.name}({arguments}){returns}"
    return f"```python\n{line}\n```"


def _docstring(node: ast.ClassDef | ast.FunctionDef) -> str:
    """A docstring as Markdown: its sections become lists."""
    lines = []
    section = ""
    for line in (ast.get_docstring(node) or "").splitlines():
        if line.rstrip(":") in SECTIONS and line.endswith(":"):
            section = line
            lines += ["", f"**{section}**", ""]
        elif section and line.startswith("    ") and not line.startswith("     "):
            lines.append(f"- {escaped(line.strip())}")
        elif section and line.strip():
            lines.append(f"  {escaped(line.strip())}")
        else:
            section = section if line.strip() == "" else ""
            lines.append(escaped(line.strip()))
    return "\n".join(lines)


def _first_paragraph(words: str) -> str:
    return " ".join(words.split("\n\n")[0].split())
