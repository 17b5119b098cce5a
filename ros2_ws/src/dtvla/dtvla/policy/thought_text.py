"""A thought in lines, and which of its words stood in the thought before. No ROS."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher


@dataclass(frozen=True)
class Line:
    """Words that stand side by side, and for each whether it is kept (see `kept_words`)."""

    words: tuple[str, ...]
    kept: tuple[bool, ...]

    @property
    def text(self) -> str:
        return " ".join(self.words)

    @property
    def all_kept(self) -> bool:
        return all(self.kept)


def kept_words(before: str, now: str, most: int | None = None) -> list[bool]:
    """For each of the first `most` words of `now`, whether `before` has it as well, in the same order."""
    words = now.split()[:most]
    kept = [False] * len(words)
    matcher = SequenceMatcher(None, before.split()[:most], words, autojunk=False)
    for block in matcher.get_matching_blocks():
        kept[block.b : block.b + block.size] = [True] * block.size
    return kept


def lines(text: str, columns: int, most: int, before: str = "") -> list[Line]:
    """`text` in at most `most` lines of at most `columns` characters; "..." ends one that had more to say.

    Args:
        text: what is said.
        columns: at least 4.
        most: at least 1.
        before: the thought before, from which words are kept.
    """
    letters = columns * most + 1  # more than fit; what comes behind so many letters or words is not seen
    words = [
        (word, index == 0) for paragraph in text.splitlines() for index, word in enumerate(paragraph.split())
    ]
    found: list[list[tuple[str, bool]]] = []
    used = columns
    for (word, begins), kept in zip(words, kept_words(before, text, letters), strict=False):
        used = columns if begins else used
        for piece in textwrap.wrap(word[:letters], columns, break_on_hyphens=False):
            if used + 1 + len(piece) > columns:
                found.append([])
                used = -1
            found[-1].append((piece, kept))
            used += 1 + len(piece)
        if len(found) > most:
            break
    if len(found) > most:
        del found[most:]
        found[-1] = _with_ellipsis(found[-1], columns)
    return [Line(tuple(word for word, _ in line), tuple(kept for _, kept in line)) for line in found]


def _with_ellipsis(line: Sequence[tuple[str, bool]], columns: int) -> list[tuple[str, bool]]:
    """The line with "..." at its end, words taken off until that fits."""
    words = list(line)
    while words and sum(len(word) + 1 for word, _ in words) + 3 > columns:
        words.pop()
    return [*words, ("...", False)]


def drawable(text: str) -> str:
    """`text` in ASCII: rviz draws other letters as gaps. Letters lose their accents, the rest becomes "?"."""
    spread = unicodedata.normalize("NFKD", text)
    bare = "".join(
        letter
        for before, letter in zip(f" {spread}", spread, strict=False)
        if before.isspace() or not unicodedata.combining(letter)
    )
    return "".join(letter if " " <= letter <= "~" or letter == "\n" else "?" for letter in bare)
