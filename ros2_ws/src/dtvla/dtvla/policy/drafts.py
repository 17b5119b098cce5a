"""What a thought will probably say next: the words of the last thoughts, and how often such words stood.

Consecutive thoughts of one episode are mostly the same text with other numbers. `Drafts` proposes the
continuation of the thought that is being written from the ones before it (prompt lookup, Saxena 2023;
speculative decoding with a draft that costs nothing). Where a pass found a word wrong, the rows behind it
have already said how the model goes on after the old words: mostly with the numbers of the new picture, as a
distance hangs on what is seen and hardly on the number before it (Jacobi decoding, Santilli et al. 2023).
It only ever proposes: `dtvla.policy.thinking` keeps what the model itself would have written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

KEPT_THOUGHTS = 4
LONGEST_MATCH, SHORTEST_MATCH = 4, 2  # tokens that must agree before another place of a thought is copied
Context = tuple[int, int]  # the last two tokens; -1 where there is none
# What a context counts as before anything was seen in it: this many proposals, of which so many stood.
_PRIOR, _WORD_STANDS, _NUMBER_STANDS, _GUESS_STANDS = 1.0, 1.0, 0.3, 0.8


class Proposal(NamedTuple):
    """A token that may come next."""

    token: int
    guessed: bool  # by the model, from a row behind a wrong word; False: an earlier thought said it


class Drafts:
    """The last thoughts of an episode, newest first, and the record of what stood.

    Whether a proposed token stands depends most on the tokens before it: behind "right," comes a number
    that changes, behind "can," a name that does not. That record is kept per `Context`, for old words and
    guesses apart.

    Args:
        numbers: ids of tokens with digits (see `number_tokens`): distances and places change from one
            decision to the next (28 % stood in recorded episodes), so they are doubted from the start.
    """

    def __init__(self, numbers: Collection[int] = ()) -> None:
        self._numbers = numbers
        self._thoughts: deque[tuple[int, ...]] = deque(maxlen=KEPT_THOUGHTS)
        self._record: dict[tuple[Context, bool], tuple[int, int]] = {}  # how many were proposed, and stood

    def clear(self) -> None:
        """Forgets everything: the next thought is of another episode."""
        self._thoughts.clear()
        self._record.clear()

    def remember(self, thought: Sequence[int] | NDArray[np.int64]) -> None:
        """Adds a finished thought (ids with tags)."""
        self._thoughts.appendleft(tuple(int(token) for token in thought))

    def record(self, before: Context, proposal: Proposal, stood: bool) -> None:
        """Notes whether what was proposed behind the tokens `before` stood."""
        proposed, kept = self._record.get((before, proposal.guessed), (0, 0))
        self._record[before, proposal.guessed] = proposed + 1, kept + stood

    def chance(self, before: Context, proposal: Proposal) -> float:
        """How likely a proposal stands behind the tokens `before`."""
        prior = _WORD_STANDS
        if proposal.token in self._numbers:
            prior = _GUESS_STANDS if proposal.guessed else _NUMBER_STANDS
        proposed, stood = self._record.get((before, proposal.guessed), (0, 0))
        return (stood + _PRIOR * prior) / (proposed + _PRIOR)

    def newest(self) -> list[Proposal]:
        """The newest thought, whole."""
        return [Proposal(token, guessed=False) for token in self._thoughts[0]] if self._thoughts else []

    def after(
        self,
        written: Sequence[int],
        old: Sequence[Proposal],
        guesses: Sequence[int],
        end: Callable[[Sequence[int]], bool],
    ) -> list[Proposal]:
        """How a thought goes on whose last word was not the one proposed.

        As before, with the model's guesses in the places of the old words. A word that is no number may turn
        the sentence ("lift it." to "carry it to the basket."): what an earlier thought said behind it then
        counts more, as the guesses were made behind the old word.

        Args:
            written: the thought so far, with the new word.
            old: what was proposed for its place and for the places behind it.
            guesses: the model's own words for the places behind, as far as the pass had rows for them.
            end: whether a thought ends there.
        """
        behind = old[1:]
        rest = [*(Proposal(token, guessed=True) for token in guesses), *behind[len(guesses) :]]
        said, ahead = list(written), list[Proposal]()
        for was, new in zip(old, rest, strict=False):
            if self._turns(was.token, said[-1]):
                found = self.lookup(said)
                if found and self._shape(found) != self._shape([p.token for p in rest[len(ahead) :]]):
                    return [*ahead, *(Proposal(token, guessed=False) for token in found)]
            ahead.append(new)
            said.append(new.token)
            if end(said):
                break
        return ahead

    def _turns(self, old: int, new: int) -> bool:
        """Whether a sentence may go another way with `new` in the place of `old`."""
        return old != new and not (old in self._numbers and new in self._numbers)

    def _shape(self, tokens: Sequence[int]) -> list[int]:
        """The tokens with one mark for every number."""
        return [-1 if token in self._numbers else token for token in tokens]

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
