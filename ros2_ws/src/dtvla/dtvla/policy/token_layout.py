"""Token ids, sequence layout and the hybrid mask: the facts every other module of a policy agrees on.

A decision is one sequence, `n` the prompt length, `c` the thought's length with its three tags:

    [images][bos][prompt ... ; newline] [<think> ... </think> <action>] [70 slots] [</action>] [eos]
     0 ............................ n-1  n ................... n+c-1=A   A+1..A+70   A+71      A+72

The action of slot k is read at row A+k (the `<action>` row predicts the first value).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

NEVER = 1 << 30  # an action_start that no row reaches: every row is prefix or causal
SLOT = -1  # the id of an action slot in a decoder input: its embedding is exactly zero

# The tokens that carry structure, by their field of `TokenLayout`, in the order in which a new tokenizer
# numbers them (pad, eos and bos as in Gemma).
SPECIAL_TOKENS = {
    "pad": "<pad>",
    "eos": "<eos>",
    "bos": "<bos>",
    "image": "<image>",
    "think": "<think>",
    "end_think": "</think>",
    "action": "<action>",
    "end_action": "</action>",
}


@dataclass(frozen=True)
class TokenLayout:
    """The ids and sizes of one model family member (published values: design spec section 1).

    Attributes:
        vocab_size: number of token ids.
        image, think, end_think, action, end_action, pad, eos, bos: ids of the tokens that carry structure.
        bins: number of values that an action dimension can take.
        images: pictures per decision.
        horizon: rows of an action chunk.
        action_dim: values of a row.
    """

    vocab_size: int
    image: int
    think: int
    end_think: int
    action: int
    end_action: int
    action_begin: int  # first of `bins` consecutive ids; column k of the action head is id begin + k
    bins: int
    prompt_end: tuple[int, int]  # the ids of ";" and newline
    image_tokens: int  # per image
    images: int = 2
    horizon: int = 10
    action_dim: int = 7
    pad: int = 0
    eos: int = 1
    bos: int = 2

    @property
    def slots(self) -> int:
        """Number of action slots, time-major: slot = step * action_dim + dimension."""
        return self.horizon * self.action_dim

    @property
    def action_end(self) -> int:
        """The last action id."""
        return self.action_begin + self.bins - 1

    @property
    def closing(self) -> tuple[int, int]:
        """What closes a thought: `</think><action>`."""
        return self.end_think, self.action

    @property
    def ending(self) -> tuple[int, int]:
        """What stands behind the slots: `</action>`, eos."""
        return self.end_action, self.eos

    def special_ids(self) -> dict[str, int]:
        """The ids that carry structure, by their token; no instruction may contain one."""
        return {token: int(getattr(self, name)) for name, token in SPECIAL_TOKENS.items()}

    def banned(self) -> NDArray[np.int64]:
        """Ids that are never thought: all action ids and eos (reference: TailVocabMaskProcessor)."""
        actions = np.arange(self.action_begin, self.action_end + 1, dtype=np.int64)
        return np.append(actions, np.int64(self.eos))

    def action_block(self) -> NDArray[np.int64]:
        """Ids of the parallel action pass: `<action>`, the slots, `</action>`, eos."""
        slots = np.full(self.slots, SLOT, np.int64)
        return np.concatenate([[self.action], slots, self.ending]).astype(np.int64)


class Bounds(NamedTuple):
    """The whole mask of one sample in four numbers (indices into the sequence)."""

    prefix_len: int  # the prompt: visible to every row
    action_start: int  # rows from here on (`<action>`) see everything
    kv_len: int  # keys that exist
    q_start: int  # index of the first query row


def visible(i: Any, j: Any, prefix_len: Any, action_start: Any, kv_len: Any) -> Any:
    """The mask rule, written down once: may the query at index `i` look at the key at index `j`?

    Every argument is an integer, a numpy array or a torch tensor; they broadcast. The ONNX operator and the
    GPU kernels compute the same in another form and are compared with this one (tests/unit/
    test_export_kernels.py, test_export_plugin_nodes.py).

    Args:
        i: index of a query in the whole sequence.
        j: index of a key.
        prefix_len, action_start, kv_len: see `Bounds`.
    """
    return ((j < prefix_len) | (j <= i) | (i >= action_start)) & (j < kv_len)


def allowed(bounds: Bounds, rows: int, keys: int) -> NDArray[np.bool_]:
    """The mask [rows, keys] of one pass: True where query row r (at index q_start + r) may look at key j."""
    i = bounds.q_start + np.arange(rows)[:, None]
    j = np.arange(keys)[None, :]
    return np.asarray(visible(i, j, bounds.prefix_len, bounds.action_start, bounds.kv_len))
