"""How a learning rate goes over a run."""

from __future__ import annotations

import math


def cosine_share(step: int, steps: int, warmup: int, final_share: float) -> float:
    """The share of the learning rate at a step: a linear warm-up from 1 / (warmup + 1), then half a cosine.

    Args:
        step: from 0 on; from `steps` on the share stays `final_share`.
        steps: of the run.
        warmup: steps until the share is 1; 0 begins with it.
        final_share: what it ends at.
    """
    if step < warmup:
        first = 1 / (warmup + 1)
        return first + (1 - first) * step / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * progress))
