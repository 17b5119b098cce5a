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

from dtvla.policy.backends import Backend, Logits
from dtvla.policy.decoding import Chooser, require_finite
from dtvla.policy.drafts import Drafts
from dtvla.policy.layout import NEVER, Bounds, TokenLayout


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
    """One thought while it is written. `start` is the prefill, `go_on` every further pass.

    Args:
        backend: its cache is filled with the prompt and the thought.
        layout: token ids and sizes.
        chooser: picks words from logits.
        limits: when to end.
        drafts: earlier thoughts; an empty one gives plain decoding, token by token. What stood is recorded.
        row_cost: what one more row costs against one more pass. It decides how far a draft is tried: on a
            GPU rows are almost free, on a CPU they are not.
    """

    def __init__(
        self,
        backend: Backend,
        layout: TokenLayout,
        chooser: Chooser,
        limits: ThoughtLimits,
        drafts: Drafts,
        row_cost: float,
    ) -> None:
        self._backend, self._layout, self._chooser = backend, layout, chooser
        self._limits, self._drafts, self._row_cost = limits, drafts, row_cost
        self._prefix_len = 0
        self._draft_position: int | None = (
            0  # where the newest thought goes on; None: the words left its track
        )
        self.ids: list[int] = []
        self.kept = 0  # how many of them came from a draft
        self.passes = 0
        self.action_logits: NDArray[np.float32] | None = None  # when the last pass has decided as well

    @property
    def complete(self) -> bool:
        """The thought ends with `</think><action>`."""
        return self._ends(self.ids)

    @property
    def finished(self) -> bool:
        """Nothing more is to be written: the thought is complete or a limit is reached."""
        return bool(self.ids) and (
            self.complete or len(self.ids) >= self._limits.tokens or self._limits.out_of_time()
        )

    def start(self, prompt: NDArray[np.int64], features: NDArray[np.float32] | None) -> None:
        """The first pass: the prompt, and behind it the newest thought as far as it is likely to stand.

        Raises:
            PolicyFault: the model's output is not finite.
        """
        self._prefix_len = len(prompt)
        self._run(prompt, 0, features, self._drafts.rest_of_newest(0))

    def go_on(self) -> None:
        """One more pass: at least one more token.

        Raises:
            PolicyFault: the model's output is not finite.
        """
        candidate: Sequence[int] = ()
        if self._draft_position is not None:
            candidate = self._drafts.rest_of_newest(self._draft_position)
        if not candidate:
            self._draft_position = None
            candidate = self._drafts.lookup(self.ids)
        known = len(self.ids) - 1
        self._run(np.array(self.ids[-1:], np.int64), self._prefix_len + known, None, candidate)

    def _run(
        self,
        ids: NDArray[np.int64],
        position: int,
        features: NDArray[np.float32] | None,
        candidate: Sequence[int],
    ) -> None:
        """Runs `ids` and the likely part of `candidate` from `position` on; takes the words that stand."""
        draft, decides = self._likely(candidate)
        feed = draft[
            :-1
        ]  # the last word of a draft is only compared; `<action>` is a row of the action block
        block = self._layout.action_block() if decides else np.empty(0, np.int64)
        rows = np.concatenate([ids, feed, block]).astype(np.int64)
        first = len(ids) - 1
        think_rows = range(first, first + max(len(draft), 1))
        action_row = len(ids) + len(feed)
        bounds = Bounds(
            self._prefix_len, position + action_row if decides else NEVER, position + len(rows), position
        )
        action_rows = range(action_row, action_row + self._layout.slots) if decides else ()
        out = self._backend.decode(
            rows, bounds, features=features, think_rows=tuple(think_rows), action_rows=tuple(action_rows)
        )
        self.passes += 1
        stands = self._take(draft, out)
        if decides and stands:
            require_finite(out.action)
            self.action_logits = out.action

    def _likely(self, candidate: Sequence[int]) -> tuple[list[int], bool]:
        """The start of a candidate that is worth its rows, and whether the action block behind it is too."""
        room = self._limits.tokens - len(self.ids)
        before = self.ids[-1] if self.ids else -1
        draft: list[int] = []
        chance = 1.0
        for token in candidate[:room]:
            if chance < self._row_cost:
                return draft, False
            draft.append(token)
            chance *= self._drafts.chance(before)
            before = token
        block = self._row_cost * (self._layout.slots + 3)
        return draft, bool(draft) and self._ends([*self.ids, *draft]) and chance > block / (1.0 + block)

    def _take(self, draft: list[int], out: Logits) -> bool:
        """Chooses words row by row until one differs from the draft; True when the whole draft stood."""
        for i, logits in enumerate(out.think):
            token = self._chooser.word(logits)
            stood = i < len(draft) and token == draft[i]
            if i < len(draft):
                self._drafts.record(self.ids[-1] if self.ids else -1, stood)
            self.ids.append(token)
            self.kept += stood
            if not stood:
                lost = i == 0 and len(draft) > 0 and len(self.ids) > 1
                self._move(None if lost else i + 1)
                return False
            if self._ends(self.ids):
                break
        self._move(len(draft))
        return True

    def _move(self, steps: int | None) -> None:
        """Moves along the newest thought; None: the words have left its track."""
        if steps is None or self._draft_position is None:
            self._draft_position = None
        else:
            self._draft_position += steps

    def _ends(self, ids: Sequence[int]) -> bool:
        return len(ids) >= 2 and (ids[-2], ids[-1]) == (self._layout.end_think, self._layout.action)
