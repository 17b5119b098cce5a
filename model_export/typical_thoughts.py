"""Thoughts that a policy often has, chosen from recorded episodes: the first drafts of an episode.

Drafts change no word and no action, so that any thoughts may be given, also those of demonstrations: what the
policy does not think costs a pass or two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from dtvla.policy.bundle.policy_spec import PolicySpec
from dtvla.policy.draft_lookup import number_tokens
from model_export.errors import ExportError

COUNT = 32  # most typical thoughts of a policy
_RUN = 4  # tokens that make a piece of a sentence


def recorded_thoughts(episodes: Path) -> Iterator[str]:
    """All thoughts of a folder of `python -m training.collect`.

    Raises:
        ExportError: it holds no episodes.
    """
    paths = sorted(episodes.glob("*.npz"))
    if not paths:
        raise ExportError(
            f"{episodes} holds no recorded episodes (*.npz). `python -m training.collect --out {episodes}` "
            "makes some."
        )
    for path in paths:
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


def with_typical(spec: PolicySpec, tokenizer: Tokenizer, episodes: Path | None) -> PolicySpec:
    """The spec with the typical thoughts of recorded episodes in place of its own; as it is without episodes.

    Raises:
        ExportError: there are no episodes.
    """
    if episodes is None:
        return spec
    return replace(spec, typical_thoughts=typical_thoughts(recorded_thoughts(episodes), tokenizer))


def _pieces(ids: Sequence[int], numbers: frozenset[int]) -> set[tuple[int, ...]]:
    shape = [-1 if token in numbers else token for token in ids]
    return {tuple(shape[start : start + _RUN]) for start in range(max(1, len(shape) - _RUN + 1))}
