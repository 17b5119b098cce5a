"""Writes the table of rooms, with files and lines before and now, into docs/architecture.md.

python -m tools.docs.measures
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from tools.docs.markdown import table

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "dtvla": ROOT / "ros2_ws/src/dtvla/dtvla",
    "training": ROOT / "training",
    "model_export": ROOT / "model_export",
    "tools": ROOT / "tools",
}
LOOSE = "loose modules"
# Files and lines at commit e9f79f6, the last one before.
BEFORE = {
    "dtvla, loose modules": (22, 3732),
    "dtvla/control": (26, 3069),
    "dtvla/nodes": (37, 5223),
    "dtvla/policy": (30, 4278),
    "dtvla/sim": (38, 5309),
    "training, loose modules": (29, 4120),
    "training/datasets": (13, 2234),
    "training/golden": (6, 814),
    "training/rl": (12, 2326),
    "training/sft": (10, 1337),
    "model_export, loose modules": (20, 2382),
    "model_export/gpu_check": (11, 1138),
    "model_export/plugin": (7, 1132),
}
BEGIN, END = "<!-- rooms: python -m tools.docs.measures -->", "<!-- end of rooms -->"


def now() -> dict[str, tuple[int, int]]:
    """Python files and their lines in every room."""
    found: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for package, base in PACKAGES.items():
        for path in sorted(base.rglob("*.py")):
            parts = path.relative_to(base).parts
            room = f"{package}/{parts[0]}" if len(parts) > 1 else f"{package}, {LOOSE}"
            files, lines = found[room]
            found[room] = (files + 1, lines + len(path.read_text().splitlines()))
    return dict(found)


def rooms() -> str:
    """The table: each room with files and lines before and now."""
    after = now()
    names = sorted({*BEFORE, *after}, key=lambda name: (list(PACKAGES).index(_package(name)), name))
    rows = [(name, *_cells(BEFORE, name), *_cells(after, name)) for name in names]
    total = ("**all**", *_total(BEFORE), *_total(after))
    return table(("room", "files before", "lines before", "files now", "lines now"), [*rows, total])


def _package(name: str) -> str:
    return name.split("/")[0].split(",")[0]


def _cells(measured: dict[str, tuple[int, int]], name: str) -> tuple[str, str]:
    if name not in measured:
        return "–", "–"
    files, lines = measured[name]
    return str(files), f"{lines:,}"


def _total(measured: dict[str, tuple[int, int]]) -> tuple[str, str]:
    files, lines = (sum(each) for each in zip(*measured.values(), strict=True))
    return str(files), f"{lines:,}"


def write(page: Path) -> None:
    """Puts the table between its marks."""
    head, _, rest = page.read_text().partition(BEGIN)
    tail = rest.partition(END)[2]
    page.write_text(f"{head}{BEGIN}\n\n{rooms()}\n\n{END}{tail}")


if __name__ == "__main__":
    write(ROOT / "docs/architecture.md")
