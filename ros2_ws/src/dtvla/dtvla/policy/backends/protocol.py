"""The two graphs of a policy behind one small protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dtvla.policy.token_layout import Bounds

# Image features [F, hidden] between `encode` and `decode` of one backend; nobody else looks into them. An
# array where they lie in host memory, a token for them where they stay on a GPU (np.asarray copies them).
Features: TypeAlias = Any


# `Backend.row_cost` on a CPU: 0.08 to 0.1 in a loop of nothing else (`make bench` prints it), but a pass
# within a decision finds cold caches and pays for Python too. On a GPU a pass of few rows waits for the
# weights whatever the rows (not measured).
CPU_ROW_COST, GPU_ROW_COST = 0.04, 0.01


class Logits(NamedTuple):
    """What a decoder pass returns. Both may be views of buffers that the next pass overwrites."""

    think: NDArray[np.float32]  # [think rows, vocabulary]
    action: NDArray[np.float32]  # [action rows, bins]


class Pass(NamedTuple):
    """What a decoder pass is asked (see `Backend.decode`)."""

    ids: NDArray[np.int64]
    bounds: Bounds
    features: Features | None = None
    think_rows: Sequence[int] = ()
    action_rows: Sequence[int] = ()

    def run(self, backend: Backend) -> Logits:
        """Runs the pass for the one sequence of a backend."""
        return backend.decode(
            self.ids,
            self.bounds,
            features=self.features,
            think_rows=self.think_rows,
            action_rows=self.action_rows,
        )


class BatchBackend(Protocol):
    """Runs the decoder of several sequences with caches of their own."""

    @property
    def size(self) -> int:
        """Number of sequences."""
        ...

    def encode(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalised images [N, 3, S, S] to features [N * tokens, hidden]."""
        ...

    def clear(self, sequence: int) -> None:
        """Zeroes the cache of one sequence (see `Backend.clear`)."""
        ...

    def decode(self, passes: Sequence[Pass | None]) -> list[Logits | None]:
        """One pass over all sequences; None stands for one that is not asked.

        Raises:
            ValueError: not one entry per sequence, or rows that do not fit into the cache.
        """
        ...


class Backend(Protocol):
    """Runs the vision tower and the decoder of one sequence; the keys and values stay inside."""

    @property
    def cache_length(self) -> int:
        """How many positions the key/value cache holds."""
        ...

    @property
    def row_cost(self) -> float:
        """What one more row of a pass costs against one more pass: how far a draft is worth trying."""
        ...

    def sibling(self) -> Backend:
        """A backend with a cache of its own that shares the weights; both may run at the same time."""
        ...

    def clear(self) -> None:
        """Zeroes the cache. Needed only after NaN: a hidden key of weight 0 still carries it into a sum."""
        ...

    def encode(self, pixels: NDArray[np.float32]) -> Features:
        """Normalised images [N, 3, S, S] to features [N * tokens, hidden]."""
        ...

    def decode(
        self,
        ids: NDArray[np.int64],
        bounds: Bounds,
        *,
        features: Features | None = None,
        think_rows: Sequence[int] = (),
        action_rows: Sequence[int] = (),
    ) -> Logits:
        """One pass over rows `bounds.q_start ..`; their keys and values are written to the cache.

        Args:
            ids: token ids [rows]; `layout.SLOT` marks an action slot.
            bounds: the mask of this pass.
            features: what `encode` returned, for the image ids among `ids`, in order.
            think_rows: rows (0-based, of this pass) at which the whole vocabulary is scored.
            action_rows: rows at which the action ids are scored.
        """
        ...
