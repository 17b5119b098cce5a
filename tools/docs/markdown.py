"""Small pieces of Markdown, for pages that are made from the code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; a line break or a bar in a cell stays in its cell."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell(words) for words in row) + " |" for row in rows]
    return "\n".join(lines)


def cell(words: str) -> str:
    """Words as they may stand in a cell of a table."""
    return " ".join(words.split()).replace("|", "\\|")


def escaped(words: str) -> str:
    """Words as text: what Markdown or HTML would read as markup is shown as it is; `code` stays code."""
    parts = words.split("`")
    if len(parts) % 2 == 0:  # a single backtick is no code
        return _plain(words)
    return "`".join(part if index % 2 else _plain(part) for index, part in enumerate(parts))


def _plain(words: str) -> str:
    for mark in ("\\", "<", "*", "_", "[", "`"):
        words = words.replace(mark, "&lt;" if mark == "<" else f"\\{mark}")
    return words


def page(title: str, intro: str, *sections: str) -> str:
    """A page of the reference."""
    return "\n\n".join([f"# {title}", intro, *sections]) + "\n"
