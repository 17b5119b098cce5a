"""What a thought will probably say next: the words of other thoughts, and how often such words stood.

Consecutive thoughts of one episode are mostly the same text with other numbers, and those of all episodes are
made of the same sentences. `Drafts` proposes the continuation of the thought that is being written from
the ones before it, and from typical ones that came with the policy (prompt lookup, Saxena 2023;
speculative decoding with a draft that costs nothing). Where a pass found a word wrong, the rows behind it
have already said how the model goes on after the old words: mostly with the numbers of the new picture, as a
distance hangs on what is seen and hardly on the number before it (Jacobi decoding, Santilli et al. 2023).
It only ever proposes: `dtvla.policy.speculative_decoding` keeps what the model itself would have written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

KEPT_THOUGHTS = 4
LONGEST_MATCH, SHORTEST_MATCH = 6, 2  # tokens that must agree before another place of a thought is copied
Context = tuple[int, int]  # the last two tokens; -1 where there is none
Thought = tuple[int, ...]  # ids with tags
# What a context counts as before anything was seen in it: this many proposals, of which so many stood.
_PRIOR, _WORD_STANDS, _NUMBER_STANDS, _GUESS_STANDS = 1.0, 1.0, 0.3, 0.8


class Proposal(NamedTuple):
    """A token that may come next."""

    token: int
    guessed: bool  # by the model, from a row behind a wrong word; False: another thought said it


class Drafts:
    """The last thoughts of an episode, newest first, and the record of what stood.

    Whether a proposed token stands depends most on the tokens before it: behind "right," comes a number
    that changes, behind "can," a name that does not. That record is kept per `Context`, for old words and
    guesses apart.

    Args:
        numbers: ids of tokens with digits (see `number_tokens`): distances and places change from one
            decision to the next (28 % stood in recorded episodes), so they are doubted from the start.
        typical: thoughts that the policy often has, the commonest first: the first draft of an episode,
            and what is looked up where the last thoughts have nothing.
    """

    def __init__(self, numbers: Collection[int] = (), typical: Iterable[Sequence[int]] = ()) -> None:
        self._numbers = numbers
        self._typical = _Said(typical)
        self._thoughts: deque[_Said] = deque(maxlen=KEPT_THOUGHTS)
        # By context and kind: how many were proposed, and how many of them stood.
        self._record: dict[tuple[int, int, bool], tuple[int, int]] = {}

    def clear(self) -> None:
        """Forgets everything of an episode: the next thought is of another one."""
        self._thoughts.clear()
        self._record.clear()

    def remember(self, thought: Sequence[int] | NDArray[np.int64]) -> None:
        """Adds a finished thought (ids with tags)."""
        self._thoughts.appendleft(_Said([[int(token) for token in thought]]))

    def record(self, before: Context, tried: Sequence[Proposal], stood: int) -> None:
        """Notes that of what was tried behind the tokens `before` so many stood, and the next did not."""
        (last, newest), record = before, self._record
        for place, (token, guessed) in enumerate(tried[: stood + 1]):
            key = last, newest, guessed
            proposed, kept = record.get(key, (0, 0))
            record[key] = proposed + 1, kept + (place < stood)
            last, newest = newest, token

    def chances(self, before: Context, ahead: Iterable[Proposal]) -> list[float]:
        """How likely each of the proposals in a row stands behind the tokens `before` and the others."""
        (last, newest), record, numbers = before, self._record, self._numbers
        chances = []
        for token, guessed in ahead:
            prior = _WORD_STANDS
            if token in numbers:
                prior = _GUESS_STANDS if guessed else _NUMBER_STANDS
            proposed, stood = record.get((last, newest, guessed), (0, 0))
            chances.append((stood + _PRIOR * prior) / (proposed + _PRIOR))
            last, newest = newest, token
        return chances

    def newest(self) -> list[Proposal]:
        """The newest thought, whole; before there is one, what the policy thinks most often."""
        said = self._thoughts[0] if self._thoughts else self._typical
        return [Proposal(token, guessed=False) for token in said.first]

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

    def lookup(self, written: Sequence[int]) -> Thought:
        """What followed the last words of `written` in the newest thought that holds them, else ()."""
        for length in range(min(LONGEST_MATCH, len(written)), SHORTEST_MATCH - 1, -1):
            wanted = tuple(written[-length:])
            for said in (*self._thoughts, self._typical):
                if found := said.behind(wanted):
                    return found
        return ()


class _Said:
    """Thoughts that may be copied, and where in them a few tokens stand."""

    def __init__(self, thoughts: Iterable[Sequence[int]]) -> None:
        self._thoughts = [tuple(thought) for thought in thoughts]
        self._places: dict[Thought, tuple[Thought, int]] | None = None  # made when it is first asked

    @property
    def first(self) -> Thought:
        """The first of the thoughts; () if there is none."""
        return self._thoughts[0] if self._thoughts else ()

    def behind(self, tokens: Thought) -> Thought:
        """What follows these tokens where they stand first; () where nothing does."""
        if self._places is None:
            self._places = {
                thought[end - length : end]: (thought, end)
                for thought in reversed(self._thoughts)
                for length in range(SHORTEST_MATCH, LONGEST_MATCH + 1)
                for end in range(len(thought) - 1, length - 1, -1)
            }
        thought, end = self._places.get(tokens, ((), 0))
        return thought[end:]


def number_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    """Ids of all tokens with a digit in them."""
    vocabulary = tokenizer.get_vocab()
    return frozenset(token for text, token in vocabulary.items() if any(c.isdecimal() for c in text))
