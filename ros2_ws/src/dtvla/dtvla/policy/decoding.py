"""The passes of one decision: plain functions over a `Backend`.

The thought is written by `dtvla.policy.speculative_decoding`.

Every pass is a case of one mask rule (`layout.allowed`); the four integers of `Bounds` say which. The
`<action>` row is always computed inside the parallel action pass: it looks at everything, so keys
from a causal step would be wrong ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from dtvla.errors import InputError, PolicyFault, PolicyInputError
from dtvla.policy.backends.protocol import Backend, Features, Pass
from dtvla.policy.options import Decoding
from dtvla.policy.token_layout import NEVER, Bounds, TokenLayout

RANDOM_WORDS, RANDOM_IDS = 128, 220_000
_NOT_FINITE = "The policy's output holds NaN or infinity; check the bundle and its training run."


def check_room(layout: TokenLayout, prompt: NDArray[np.int64], cap: int, cache_length: int) -> None:
    """Refuses a prompt that, with the longest thought and the action block, exceeds the cache.

    Raises:
        PolicyInputError: it does.
    """
    # A thought that the cap has cut is closed; the `<action>` of the block is the one that closes it.
    room = cache_length - cap - len(layout.closing) - layout.slots - len(layout.ending)
    if len(prompt) > room:
        raise PolicyInputError(
            f"The instruction takes the prompt to {len(prompt)} tokens; this policy has room for {room}. "
            "Shorten the instruction."
        )


def prefill(backend: Backend, prompt: NDArray[np.int64], features: Features | None) -> NDArray[np.float32]:
    """Runs the prompt, every row seeing every other; returns the logits [V] of the first thought token."""
    n = len(prompt)
    bounds = Bounds(prefix_len=n, action_start=NEVER, kv_len=n, q_start=0)
    logits: NDArray[np.float32] = backend.decode(
        prompt, bounds, features=features, think_rows=(n - 1,)
    ).think[0]
    return logits


def choose(logits: NDArray[np.float32], layout: TokenLayout) -> list[int]:
    """The best id that may be thought in each row of logits [R, V]; those of banned ids may be overwritten.

    Raises:
        PolicyFault: the logits hold NaN or infinity.
    """
    best = logits.argmax(-1)
    ids: list[int] = best.tolist()
    if any(token == layout.eos or layout.action_begin <= token <= layout.action_end for token in ids):
        ban(logits, layout)
        best = logits.argmax(-1)
        ids = best.tolist()
    # NaN wins an argmax, so looking at the winners is enough.
    if not math.isfinite(logits[np.arange(len(ids)), best].sum()):
        raise PolicyFault(_NOT_FINITE)
    return ids


def ban(logits: NDArray[np.float32], layout: TokenLayout) -> None:
    """Makes the ids that may not be thought impossible, in place."""
    logits[:, layout.action_begin : layout.action_end + 1] = -np.inf
    logits[:, layout.eos] = -np.inf


class Sampler:
    """Picks words and actions from logits: the likeliest, or drawn at a temperature.

    Args:
        layout: says what may not be thought.
        temperature: 0 is greedy; 1 draws from the model's own distribution.
        action_temperature: that of actions, if it is another one.
        seed: of the draws; one number is drawn per word and per action value, in their order, so that the
            same seed gives the same decision however many words a pass has written.
    """

    def __init__(
        self,
        layout: TokenLayout,
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
        action_temperature: float | None = None,
    ) -> None:
        self._temperature = temperature
        self._action_temperature = temperature if action_temperature is None else action_temperature
        for value in (self._temperature, self._action_temperature):
            if not (np.isfinite(value) and value >= 0):
                raise InputError(f"The temperature must be a number from 0 upwards, got {value!r}.")
        self._layout, self._seed = layout, seed
        self.restart()

    def restart(self) -> None:
        """Starts the draws over, for a new episode."""
        self._rng = np.random.default_rng(self._seed)

    def words(self, logits: NDArray[np.float32]) -> Iterator[int]:
        """An id that may be thought for each row of `logits` [R, V], which may be overwritten (see `choose`).

        Rows that are not taken out of the iterator cost no draw.

        Raises:
            PolicyFault: the logits hold NaN or infinity.
        """
        best = choose(logits, self._layout)
        if self._temperature == 0:
            return iter(best)
        ban(logits, self._layout)
        return (int(self.draw(row[None], self._temperature)[0]) for row in logits)

    def guesses(self, logits: NDArray[np.float32]) -> list[int]:
        """The likeliest ids of rows of which `words` has looked at the logits [R, V], at no draw."""
        likeliest: list[int] = logits.argmax(-1).tolist()
        return likeliest

    def columns(self, logits: NDArray[np.float32]) -> NDArray[np.int64]:
        """Action columns [slots] from logits [slots, bins]."""
        if self._action_temperature == 0:
            return np.asarray(logits.argmax(-1))
        return self.draw(logits, self._action_temperature)

    def draw(self, logits: NDArray[np.float32], temperature: float) -> NDArray[np.int64]:
        """An index [R] for each row of logits [R, N], drawn from softmax(logits / temperature)."""
        shifted = (logits - logits.max(-1, keepdims=True)).astype(np.float64) / temperature
        edges = np.cumsum(np.exp(shifted), -1)
        drawn = self._rng.random(len(edges))[:, None] * edges[:, -1:]
        indices = np.asarray((edges <= drawn).sum(-1))
        self.drawn(indices, shifted, edges[:, -1])
        return indices

    def drawn(
        self, indices: NDArray[np.int64], shifted: NDArray[np.float64], sums: NDArray[np.float64]
    ) -> None:
        """Is told what was drawn: index [R] in each row of exp(shifted) / sums; [R, N] and [R]."""


def require_finite(logits: NDArray[np.float32]) -> None:
    """Refuses output that would turn into arbitrary tokens or full-speed motion.

    Raises:
        PolicyFault: NaN or infinity.
    """
    if not np.isfinite(logits).all():
        raise PolicyFault(_NOT_FINITE)


def is_complete(ids: Sequence[int] | NDArray[np.int64], layout: TokenLayout) -> bool:
    """Whether a thought ends with `</think><action>`."""
    return len(ids) >= 2 and (int(ids[-2]), int(ids[-1])) == layout.closing


def given_thought(layout: TokenLayout, decoding: Decoding, rng: np.random.Generator) -> NDArray[np.int64]:
    """The thought of the variants that do not think: empty tags, or tags around random words.

    Args:
        layout: token ids.
        decoding: "masked", "none" or "random".
        rng: for the random words; the published evaluation draws 128 ids below 220,000.
    """
    words = np.empty(0, np.int64)
    if decoding == "random":
        taken = [
            *layout.banned(),
            layout.image,
            layout.think,
            layout.end_think,
            layout.action,
            layout.end_action,
        ]
        usable = np.setdiff1d(np.arange(min(RANDOM_IDS, layout.vocab_size)), [*taken, layout.pad, layout.bos])
        words = rng.choice(usable, RANDOM_WORDS)
    return np.concatenate([[layout.think], words, layout.closing]).astype(np.int64)


def act_pass(
    layout: TokenLayout,
    prefix_len: int,
    thought: NDArray[np.int64],
    *,
    cached: int | None = None,
    close: bool = True,
) -> Pass:
    """The parallel action pass over the cached prompt and thought.

    Args:
        layout: token ids and sizes.
        prefix_len: length of the prompt.
        thought: its ids, at least one.
        cached: how many of their keys are in the cache; None means all but the last, as thinking leaves it.
        close: end a thought that was cut with `</think><action>`. False lets its last token stand for
            `<action>`, as the reference does at its cap (docs/fidelity.md).
    """
    known = len(thought) - 1 if cached is None else cached
    tail = _tail(layout, thought, known, close)
    ids = np.concatenate([tail, layout.action_block()[1:]]).astype(np.int64)
    start = prefix_len + known
    action_row = len(tail) - 1
    bounds = Bounds(prefix_len, start + action_row, start + len(ids), start)
    return Pass(ids, bounds, action_rows=range(action_row, action_row + layout.slots))


def whole_pass(
    layout: TokenLayout,
    prompt: NDArray[np.int64],
    features: Features | None,
    thought: NDArray[np.int64],
) -> Pass:
    """A whole decision in one pass, with a thought that is known before."""
    block = act_pass(layout, len(prompt), thought, cached=0)
    rows = range(len(prompt) + block.action_rows[0], len(prompt) + block.action_rows[-1] + 1)
    return Pass(
        np.concatenate([prompt, block.ids]), block.bounds._replace(q_start=0), features, action_rows=rows
    )


def act(
    backend: Backend,
    layout: TokenLayout,
    prefix_len: int,
    thought: NDArray[np.int64],
    *,
    cached: int | None = None,
    close: bool = True,
) -> NDArray[np.float32]:
    """Runs `act_pass`: logits [slots, bins].

    Raises:
        PolicyFault: the model's output is not finite.
    """
    logits = act_pass(layout, prefix_len, thought, cached=cached, close=close).run(backend).action
    require_finite(logits)
    return logits


def act_one_by_one(
    backend: Backend, layout: TokenLayout, prefix_len: int, thought: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The baseline the hybrid decoder is compared with: every action token after the other, causally.

    Each token is fed back with its own embedding; only action ids can be chosen. Returns logits
    [slots, bins]. A policy must have been trained this way to act well.

    Raises:
        PolicyFault: the model's output is not finite.
    """
    known = len(thought) - 1
    ids = np.array(_tail(layout, thought, known, close=True), np.int64)
    position, logits = prefix_len + known, np.empty((layout.slots, layout.bins), np.float32)
    for slot in range(layout.slots):
        bounds = Bounds(prefix_len, NEVER, position + len(ids), position)
        logits[slot] = backend.decode(ids, bounds, action_rows=(len(ids) - 1,)).action[0]
        require_finite(logits[slot])
        position += len(ids)
        ids = np.array([layout.action_begin + int(logits[slot].argmax())], np.int64)
    return logits


def _tail(layout: TokenLayout, thought: NDArray[np.int64], known: int, close: bool) -> list[int]:
    """Thought tokens that are not in the cache yet, closed with the tags that are missing."""
    tail = [int(token) for token in thought[known:]]
    if close and not is_complete(thought, layout):
        tail += [layout.action] if tail[-1] == layout.end_think else layout.closing
    return tail
