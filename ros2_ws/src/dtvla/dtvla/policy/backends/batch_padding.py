"""Passes of several sequences side by side, for one pass over all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dtvla.policy.backends.protocol import Pass
from dtvla.policy.token_layout import NEVER, Bounds

_IDLE = Bounds(1, NEVER, 1, 0)


def pad_batch(
    passes: Sequence[Pass | None], size: int, cache_length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids [size, rows] and bounds [size, 4]; shorter passes are filled up, and so is who is not asked.

    Args:
        passes: one entry per sequence, None for one that is not asked.
        size: number of sequences.
        cache_length: positions of each.

    Raises:
        ValueError: not one entry per sequence, or rows that do not fit into the cache.
    """
    if len(passes) != size:
        raise ValueError(f"{len(passes)} passes for {size} sequences.")
    rows = max(len(step.ids) for step in passes if step is not None)
    ids = np.zeros((size, rows), np.int64)
    bounds = np.tile(np.array(_IDLE, np.int64), (size, 1))
    for b, step in enumerate(passes):
        if step is None:
            continue
        if step.bounds.q_start + rows > cache_length:
            raise ValueError(
                f"{rows} rows from position {step.bounds.q_start} on exceed the cache of {cache_length}."
            )
        ids[b, : len(step.ids)] = step.ids
        bounds[b] = step.bounds
    return ids, bounds
