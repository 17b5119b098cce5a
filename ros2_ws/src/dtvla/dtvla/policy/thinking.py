"""Writes a thought pass by pass: many tokens per pass where the drafts are right, one where they are not.

One pass runs [prefix | draft | action block] under the hybrid mask. The rows of the draft are causal, so
each of them says what the model itself writes after the words before it: the draft stands up to the first
word that differs, whose keys, and those behind it, are cut off by moving an integer. The model's own word is
taken and the rest of the old thought is tried again. If the whole draft stands, the pass has decided: its
action rows saw exactly the thought that the model would have written. Greedy and sampled words are the same
as without drafts, up to ties of the arithmetic (a row computed beside others may differ in its last bits).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtvla.policy.backends import Backend, Features, Logits, Pass
from dtvla.policy.decoding import Chooser, is_complete
from dtvla.policy.drafts import Context, Drafts
from dtvla.policy.layout import NEVER, Bounds, TokenLayout

CERTAIN = 0.9  # a token that stands less often than this is doubtful


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
        chooser: picks words from logits.
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
        chooser: Chooser,
        limits: ThoughtLimits,
        drafts: Drafts,
        row_cost: float,
        prompt: NDArray[np.int64],
        features: Features | None,
    ) -> None:
        self._layout, self._chooser = layout, chooser
        self._limits, self._drafts, self._row_cost = limits, drafts, row_cost
        self._prompt, self._features = prompt, features
        self._draft_position: int | None = (
            0  # where the newest thought goes on; None: the words left its track
        )
        self._draft: list[int] = []  # what the planned pass tries
        self._decides = False  # the planned pass holds the action block
        self.ids: list[int] = []
        self.kept = 0  # how many of them came from a draft
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
        if self.ids:
            ids = np.array(self.ids[-1:], np.int64)
            position, features = len(self._prompt) + len(self.ids) - 1, None
        else:
            ids, position, features = self._prompt, 0, self._features
        self._draft, self._decides = self._likely(self._candidate())
        feed = self._draft[:-1]  # the last word is only compared; `<action>` is a row of the action block
        block = self._layout.action_block() if self._decides else np.empty(0, np.int64)
        rows = np.concatenate([ids, feed, block]).astype(np.int64)
        first, action_row = len(ids) - 1, len(ids) + len(feed)
        start = position + action_row if self._decides else NEVER
        return Pass(
            rows,
            Bounds(len(self._prompt), start, position + len(rows), position),
            features,
            tuple(range(first, first + max(len(self._draft), 1))),
            tuple(range(action_row, action_row + self._layout.slots)) if self._decides else (),
        )

    def take(self, out: Logits) -> None:
        """Takes the words of the planned pass that stand, and its actions if all of them do.

        Raises:
            PolicyFault: the model's output is not finite.
        """
        self.passes += 1
        if self._take_words(out.think) and self._decides:
            self.action_logits = out.action

    def _candidate(self) -> Sequence[int]:
        """How the thought may go on: as the newest one does, or as one that said the same words."""
        if self._draft_position is not None:
            candidate = self._drafts.rest_of_newest(self._draft_position)
            if candidate:
                return candidate
        self._draft_position = None
        return self._drafts.lookup(self.ids)

    def _likely(self, candidate: Sequence[int]) -> tuple[list[int], bool]:
        """The start of a candidate that is worth its rows, and whether the action block behind it is too.

        A candidate is taken in pieces that end with a doubtful token: up to there the rows are needed anyway,
        beyond they count only if the doubtful token stands.
        """
        room = self._limits.tokens - len(self.ids)
        before = self._context()
        draft: list[int] = []
        piece: list[int] = []
        chance = stands = 1.0  # of all before the piece, of the piece
        for token in candidate[:room]:
            piece.append(token)
            certainty = self._drafts.chance(before, token)
            stands *= certainty
            before = before[1], token
            if certainty < CERTAIN:
                if draft and not self._worth(chance, len(piece)):
                    return draft, False
                draft, chance = draft + piece, chance * stands
                piece, stands = [], 1.0
        if draft and piece and not self._worth(chance, len(piece)):
            return draft, False
        draft, chance = draft + piece, chance * stands
        ends = bool(draft) and is_complete([*self.ids, *draft], self._layout)
        return draft, ends and self._worth(chance, self._layout.slots + 3)

    def _worth(self, chance: float, rows: int) -> bool:
        """Whether rows that count with this chance are better tried now than in a pass of their own."""
        return chance * (1.0 - self._row_cost) > (1.0 - chance) * rows * self._row_cost

    def _take_words(self, logits: NDArray[np.float32]) -> bool:
        """Chooses words row by row until one differs from the draft; True when the whole draft stood."""
        draft = self._draft
        for i, token in enumerate(self._chooser.words(logits)):
            stood = i < len(draft) and token == draft[i]
            if i < len(draft):
                self._drafts.record(self._context(), stood)
            self.ids.append(token)
            self.kept += stood
            if not stood:
                lost = i == 0 and len(draft) > 0 and len(self.ids) > 1
                self._move(None if lost else i + 1)
                return False
            if self.complete:
                break
        self._move(len(draft))
        return True

    def _context(self) -> Context:
        before = [-1, -1, *self.ids[-2:]]
        return before[-2], before[-1]

    def _move(self, steps: int | None) -> None:
        """Moves along the newest thought; None: the words have left its track."""
        if steps is None or self._draft_position is None:
            self._draft_position = None
        else:
            self._draft_position += steps
