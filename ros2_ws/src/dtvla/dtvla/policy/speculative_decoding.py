"""Writes a thought pass by pass: many tokens per pass where the drafts are right, one where they are not.

One pass runs [prefix | draft | action block] under the hybrid mask. The rows of the draft are causal, so
each of them says what the model itself writes after the words before it: the draft stands up to the first
word that differs, whose keys, and those behind it, are cut off by moving an integer. The model's own word is
taken and the rest is tried again, with what the rows behind have guessed in the place of old numbers. If the
whole draft stands, the pass has decided: its action rows saw exactly the thought that the model would have
written. Greedy and sampled words are the same as without drafts, up to ties of the arithmetic (a row
computed beside others may differ in its last bits).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtvla.policy.backends.protocol import Backend, Features, Logits, Pass
from dtvla.policy.decoding import Sampler, is_complete
from dtvla.policy.draft_lookup import Context, Drafts, Proposal
from dtvla.policy.token_layout import NEVER, Bounds, TokenLayout

_NOTHING = np.empty(0, np.int64)
CERTAIN = 0.9  # a token that stands less often than this is doubtful
GUESSED = (
    0.8  # share of the changed numbers that rows behind a wrong word guess right (docs/results/thinking.md)
)


@dataclass(frozen=True)
class ThoughtLimits:
    """When a thought has to end.

    Attributes:
        tokens: most tokens, tags included.
        out_of_time: asked before every pass; True closes the thought there.
    """

    tokens: int
    out_of_time: Callable[[], bool] = lambda: False


class ThoughtWriter:
    """One thought while it is written: `plan` says what the next pass is, `take` reads what it gave.

    Args:
        layout: token ids and sizes.
        sampler: picks words from logits.
        limits: when to end.
        drafts: earlier thoughts; an empty one gives plain decoding, token by token. What stood is recorded.
        row_cost: what one more row costs against one more pass. It decides how far a draft is tried: on a
            GPU rows are almost free, on a CPU they are not.
        prompt: ids of the prompt.
        features: image features [F, H] for its image ids.
    """

    def __init__(
        self,
        layout: TokenLayout,
        sampler: Sampler,
        limits: ThoughtLimits,
        drafts: Drafts,
        row_cost: float,
        prompt: NDArray[np.int64],
        features: Features | None,
    ) -> None:
        self._layout, self._sampler = layout, sampler
        self._limits, self._drafts, self._row_cost = limits, drafts, row_cost
        self._prompt, self._features = prompt, features
        self._ahead = drafts.newest()  # how the thought may go on
        self._draft: list[Proposal] = []  # what the planned pass tries of it
        self._decides = False  # the planned pass holds the action block
        self.ids: list[int] = []
        self.accepted = 0  # how many of them came from a draft
        self.passes = 0
        self.action_logits: NDArray[np.float32] | None = None  # when the last pass has decided as well

    @property
    def complete(self) -> bool:
        """The thought ends with `</think><action>`."""
        return is_complete(self.ids, self._layout)

    @property
    def finished(self) -> bool:
        """Nothing more is to be written: the thought is complete or a limit is reached."""
        return bool(self.ids) and (
            self.complete or len(self.ids) >= self._limits.tokens or self._limits.out_of_time()
        )

    def write(self, backend: Backend) -> list[int]:
        """Writes the whole thought with one backend; returns its ids.

        Raises:
            PolicyFault: the model's output is not finite.
        """
        while not self.finished:
            self.take(self.plan().run(backend))
        return self.ids

    def plan(self) -> Pass:
        """The next pass: first the prompt and the newest thought, then the last word and how it may go on."""
        self._ahead = self._ahead or self._said_before()
        self._draft, self._decides = self._likely(self._ahead)
        feed = [p.token for p in self._draft[:-1]]  # the last word is only compared
        block = self._layout.action_block() if self._decides else _NOTHING  # `<action>` is one of its rows
        if self.ids:
            known = np.array(self.ids[-1:], np.int64)
            position, features = len(self._prompt) + len(self.ids) - 1, None
        else:
            known, position, features = self._prompt, 0, self._features
        rows = np.concatenate([known, np.array(feed, np.int64), block])
        first, action_row = len(known) - 1, len(known) + len(feed)
        start = position + action_row if self._decides else NEVER
        return Pass(
            rows,
            Bounds(len(self._prompt), start, position + len(rows), position),
            features,
            range(first, first + max(len(self._draft), 1)),
            range(action_row, action_row + self._layout.slots) if self._decides else (),
        )

    def take(self, out: Logits) -> None:
        """Takes the words of the planned pass that stand, and its actions if all of them do.

        Raises:
            PolicyFault: the model's output is not finite.
        """
        self.passes += 1
        if self._take_words(out.think) and self._decides:
            self.action_logits = out.action

    def _said_before(self) -> list[Proposal]:
        """How an earlier thought went on behind the same words."""
        return [Proposal(token, guessed=False) for token in self._drafts.lookup(self.ids)]

    def _likely(self, ahead: Sequence[Proposal]) -> tuple[list[Proposal], bool]:
        """The start of what may come that is worth its rows, and whether the action block behind it is too.

        It is taken in pieces that end with a doubtful token: up to there the rows are needed anyway,
        beyond they count only if the doubtful token stands, or if what they guess saves passes.
        """
        ahead = ahead[: self._limits.tokens - len(self.ids)]
        chances = self._drafts.chances(self._context(), ahead)
        taken, chance = 0, 1.0  # how many, and the chance that all of them stand
        while taken < len(ahead):
            end = taken + 1
            while end < len(ahead) and chances[end - 1] >= CERTAIN:
                end += 1
            if taken and not (self._worth(chance, end - taken) or self._tells(chances[taken:])):
                break
            chance *= math.prod(chances[taken:end])
            taken = end
        draft = list(ahead[:taken])
        ends = bool(draft) and is_complete([*self.ids, *(p.token for p in draft)], self._layout)
        return draft, ends and self._worth(chance, self._layout.slots + 3)

    def _tells(self, chances: Sequence[float]) -> bool:
        """Whether rows behind a doubtful token are worth what they guess: a wrong word there costs a pass."""
        return GUESSED * sum(1.0 - chance for chance in chances) > len(chances) * self._row_cost

    def _worth(self, chance: float, rows: int) -> bool:
        """Whether rows that count with this chance are better tried now than in a pass of their own."""
        return chance * (1.0 - self._row_cost) > (1.0 - chance) * rows * self._row_cost

    def _take_words(self, logits: NDArray[np.float32]) -> bool:
        """Chooses words row by row until one differs from the draft; True when the whole draft stood."""
        draft, ahead, before = self._draft, self._ahead, self._context()
        ids, action = self.ids, self._layout.action
        begin = len(ids)
        for i, token in enumerate(self._sampler.words(logits)):
            ids.append(token)
            if i == len(draft) or token != draft[i].token:
                self._drafts.record(before, draft, stood=i)
                self.accepted += i
                lost = i == 0 or i >= len(ahead)  # a second word in succession, or nothing was known
                guesses = [] if lost else self._sampler.guesses(logits[i + 1 : len(draft)])
                self._ahead = [] if lost else self._drafts.after(ids, ahead[i:], guesses, self._ended)
                return False
            if token == action and self.complete:
                break
        stood = len(ids) - begin
        self._drafts.record(before, draft[:stood], stood)
        self.accepted += stood
        self._ahead = ahead[len(draft) :]
        return True

    def _ended(self, ids: Sequence[int]) -> bool:
        return is_complete(ids, self._layout)

    def _context(self) -> Context:
        before = [-1, -1, *self.ids[-2:]]
        return before[-2], before[-1]
