"""What a thought will probably say next: the words of the last thoughts, and how often such words stood.

Consecutive thoughts of one episode are mostly the same text with other numbers. `Drafts` proposes the
continuation of the thought that is being written from the ones before it (prompt lookup, Saxena 2023;
speculative decoding with a draft that costs nothing). It only ever proposes: `dtvla.policy.thinking` keeps
what the model itself would have written.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

KEPT_THOUGHTS = 4
LONGEST_MATCH, SHORTEST_MATCH = 4, 2  # tokens that must agree before another place of a thought is copied
Context = tuple[int, int]  # the last two tokens; -1 where there is none
# What a context counts as before anything was seen in it: this many proposals, of which so many stood.
_PRIOR, _WORD_STANDS, _NUMBER_STANDS = 1.0, 1.0, 0.3


class Drafts:
    """The last thoughts of an episode, newest first, and the record of what stood.

    Whether a proposed token stands depends most on the tokens before it: behind "right," comes a number
    that changes, behind "can," a name that does not. That record is kept per `Context`.

    Args:
        numbers: ids of tokens with digits (see `number_tokens`): distances and places change from one
            decision to the next (28 % stood in recorded episodes), so they are doubted from the start.
    """

    def __init__(self, numbers: Collection[int] = ()) -> None:
        self._numbers = numbers
        self._thoughts: deque[tuple[int, ...]] = deque(maxlen=KEPT_THOUGHTS)
        self._stood: Counter[Context] = Counter()
        self._proposed: Counter[Context] = Counter()

    def clear(self) -> None:
        """Forgets everything: the next thought is of another episode."""
        self._thoughts.clear()
        self._stood.clear()
        self._proposed.clear()

    def remember(self, thought: Sequence[int] | NDArray[np.int64]) -> None:
        """Adds a finished thought (ids with tags)."""
        self._thoughts.appendleft(tuple(int(token) for token in thought))

    def record(self, before: Context, stood: bool) -> None:
        """Notes whether a token that was proposed behind the tokens `before` stood."""
        self._proposed[before] += 1
        self._stood[before] += stood

    def chance(self, before: Context, token: int) -> float:
        """How likely `token` stands behind the tokens `before`."""
        guess = _NUMBER_STANDS if token in self._numbers else _WORD_STANDS
        return (self._stood[before] + _PRIOR * guess) / (self._proposed[before] + _PRIOR)

    def rest_of_newest(self, position: int) -> tuple[int, ...]:
        """The newest thought from `position` on."""
        return self._thoughts[0][position:] if self._thoughts else ()

    def lookup(self, written: Sequence[int]) -> tuple[int, ...]:
        """What followed the last words of `written` in the newest thought that holds them, else ()."""
        for length in range(min(LONGEST_MATCH, len(written)), SHORTEST_MATCH - 1, -1):
            wanted = tuple(written[-length:])
            for thought in self._thoughts:
                for start in range(len(thought) - length):
                    if thought[start : start + length] == wanted:
                        return thought[start + length :]
        return ()


def number_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    """Ids of all tokens with a digit in them."""
    vocabulary = tokenizer.get_vocab()
    return frozenset(token for text, token in vocabulary.items() if any(c.isdecimal() for c in text))
