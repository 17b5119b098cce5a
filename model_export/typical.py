"""Thoughts that a policy often has, as first drafts: an episode's first thought costs six passes, not forty.

    python -m model_export.typical BUNDLE --episodes data/embedded     # a bundle made without them, in place

Drafts change no word and no action (`dtvla.policy.drafts`), so that any thoughts may be given, also those of
demonstrations: what the policy does not think costs a pass or two.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from tokenizers import Tokenizer
from tyro.conf import Positional

from dtvla.policy.bundle import Bundle, write_bundle
from dtvla.policy.drafts import number_tokens
from dtvla.policy.errors import BundleError
from model_export.bundle import new_bundle
from model_export.calibration import recorded_files
from model_export.errors import ExportError

COUNT = 32  # most typical thoughts of a bundle
_RUN = 4  # tokens that make a piece of a sentence


def recorded_thoughts(episodes: Path) -> Iterator[str]:
    """All thoughts of a folder of recorded episodes.

    Raises:
        ExportError: there are none.
    """
    for path in recorded_files(episodes):
        with np.load(path) as data:
            yield from map(str, data.get("thoughts", ()))


def typical_thoughts(said: Iterable[str], tokenizer: Tokenizer, count: int = COUNT) -> tuple[str, ...]:
    """The thoughts that together hold most of what was said, the one that holds most of it first.

    Numbers count as one word. Each next thought is the one whose pieces of four tokens, weighted with how
    often they were said, are least in those before it; it ends when every piece is there.

    Args:
        said: recorded thoughts, without tags.
        tokenizer: of the policy.
        count: how many at most.
    """
    numbers = number_tokens(tokenizer)
    often = Counter(words for words in said if words)
    encoded = {words: tokenizer.encode(words, add_special_tokens=False).ids for words in often}
    pieces = {words: _pieces(ids, numbers) for words, ids in encoded.items()}
    weights: Counter[tuple[int, ...]] = Counter()
    for words, times in often.items():
        for piece in pieces[words]:
            weights[piece] += times
    chosen: list[str] = []
    missing = set(weights)
    while missing and len(chosen) < count:
        best = max(pieces, key=lambda words: sum(weights[piece] for piece in pieces[words] & missing))
        chosen.append(best)
        missing -= pieces[best]
    return tuple(chosen)


def _pieces(ids: Sequence[int], numbers: frozenset[int]) -> set[tuple[int, ...]]:
    shape = [-1 if token in numbers else token for token in ids]
    return {tuple(shape[start : start + _RUN]) for start in range(max(1, len(shape) - _RUN + 1))}


def add_typical(bundle: Path, episodes: Path) -> int:
    """Gives a bundle the typical thoughts of recorded episodes, in place of those it had; returns how many.

    Raises:
        BundleError: the bundle must not be run.
        ExportError: there are no episodes.
    """
    source = Bundle.load(bundle)
    thoughts = typical_thoughts(recorded_thoughts(episodes), source.tokenizer)
    with new_bundle(bundle) as folder:
        for name in source.files:
            shutil.copy(bundle / name, folder)
        write_bundle(folder, replace(source.spec, typical_thoughts=thoughts), source.engines)
    return len(thoughts)


def main(bundle: Positional[Path], episodes: Path) -> int:
    """Adds typical thoughts to a bundle; returns the exit code.

    Args:
        bundle: its folder; a signature is void afterwards and removed.
        episodes: folder of `python -m training.collect`.
    """
    try:
        count = add_typical(bundle, episodes)
    except (BundleError, ExportError) as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}", highlight=False)
        return 1
    Console().print(f"{bundle}: {count} typical thoughts", highlight=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main, description=__doc__))
