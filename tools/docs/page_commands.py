"""Finds the commands that the pages show: blocks of shell code, and commands within a sentence."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHELL = "bash"
LANGUAGES = (SHELL, "text", "python", "yaml", "json", "markdown")
# A piece of code within a sentence that begins so is a command.
PROGRAMS = ("dtvla", "python", "make", "torchrun", "ros2", "docker")
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\S*)\n(?P<body>.*?)^ *```$", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"`([^`\n]+)`")
_SETTING = re.compile(r"[A-Z_][A-Z0-9_]*=.*")
_JOINS = frozenset("&|;")


@dataclass(frozen=True)
class PageCommand:
    """One command of a page.

    Attributes:
        page: its file, from the top of the repository.
        words: the command without comment, settings of the environment and `.venv/bin/`.
        whole: it stands in a block, complete as one would type it; a sentence may leave things out.
    """

    page: str
    words: tuple[str, ...]
    whole: bool

    @property
    def text(self) -> str:
        """The command as one would type it."""
        return shlex.join(self.words)


def page_files() -> list[Path]:
    """Every page of the site that is written by hand, and the texts at the repository's top.

    Without the changelog, which names commands that are gone.
    """
    top = (path for path in sorted(ROOT.glob("*.md")) if path.name != "CHANGELOG.md")
    return [*top, *sorted((ROOT / "docs").rglob("*.md"))]


def untagged_blocks(path: Path) -> list[str]:
    """Blocks of code that do not say in which language they are: such a command would not be found."""
    return [
        block["body"] for block in _FENCE.finditer(path.read_text()) if block["language"] not in LANGUAGES
    ]


def commands(path: Path) -> Iterator[PageCommand]:
    """Every command of a page, in its order."""
    text = path.read_text()
    page = str(path.relative_to(ROOT))
    for block in _FENCE.finditer(text):
        if block["language"] == SHELL:
            for words in split(block["body"]):
                yield PageCommand(page, words, True)
    for span in _SPAN.findall(_FENCE.sub("", text)):
        first = span.removeprefix(".venv/bin/").split()
        if len(first) > 1 and first[0] in PROGRAMS:
            for words in split(span):
                yield PageCommand(page, words, False)


def split(text: str) -> Iterator[tuple[str, ...]]:
    """The commands of a piece of shell code, each as its words."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if not set(word) <= _JOINS:
                words.append(word)
            elif found := _plain(words):
                yield found
                words = []


def _plain(words: list[str]) -> tuple[str, ...]:
    """A command without the settings of the environment in front of it and without `.venv/bin/`."""
    while words and _SETTING.fullmatch(words[0]):
        words = words[1:]
    return (words[0].removeprefix(".venv/bin/"), *words[1:]) if words else ()
