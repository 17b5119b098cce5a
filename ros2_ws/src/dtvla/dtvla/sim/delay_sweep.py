"""Success and smoothness against delay, for every way to execute chunks: points, figures, table and plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dtvla.sim.results import ChunkMode, ChunkSeam, EvalOptions

DELAYS_S = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)


@dataclass(frozen=True)
class Way:
    """One way to execute chunks, as the controller node's `chunk_mode` and `chunk_seam`."""

    mode: ChunkMode
    seam: ChunkSeam


WAYS: Mapping[str, Way] = {
    "open_loop": Way("open_loop", "cut"),
    "receding": Way("receding", "cut"),
    "receding-spline": Way("receding", "spline"),
    "ensembled": Way("ensembled", "cut"),
    "ensembled-spline": Way("ensembled", "spline"),
}


def points(
    base: EvalOptions, delays_s: Sequence[float] = DELAYS_S, ways: Sequence[str] = tuple(WAYS)
) -> dict[str, EvalOptions]:
    """The evaluations of a sweep by name, such as `receding_200ms`.

    Args:
        base: what they have in common.
        delays_s: seconds from picture to chunk.
        ways: names of `WAYS`.

    Raises:
        ValueError: no such way, or an impossible delay.
    """
    unknown = [name for name in ways if name not in WAYS]
    if unknown:
        raise ValueError(
            f"There is no way '{unknown[0]}' to execute chunks; there are {', '.join(WAYS)}, or all."
        )
    return {
        f"{name}_{1000 * delay_s:g}ms": replace(
            base, delay=delay_s, chunk_mode=WAYS[name].mode, chunk_seam=WAYS[name].seam
        )
        for delay_s in delays_s
        for name in ways
    }
