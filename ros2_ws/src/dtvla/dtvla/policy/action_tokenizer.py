"""From numbers to action tokens and back: uniform bins, quantile normalisation. All in float64.

The published model has 2,048 bins over [-1, 1]; any count of 3 or more works the same way. Ids
run against values: bin b has id `action_begin + bins - 1 - b`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dtvla.errors import InputError

SPAN_EPSILON = 1e-8  # added to q99 - q01 by the reference


@dataclass(frozen=True)
class ActionTokenizer:
    """Values in [-1, 1] as action token ids `action_begin` .. `action_begin + bins - 1`.

    Args:
        bins: number of action ids.
        action_begin: the first of them.
        decode_shift: 0 decodes as the reference does, one bin too high (mean bias +1/(bins-1) of the
            half range); 1 removes that bias (docs/fidelity.md).
    """

    bins: int
    action_begin: int
    decode_shift: int = 0

    def __post_init__(self) -> None:
        if self.bins < 3:
            raise InputError(f"An action codec needs at least 3 bins, not {self.bins}.")
        if self.decode_shift not in (0, 1):
            raise InputError(f"decode_shift is 0 (reference) or 1 (unbiased), not {self.decode_shift!r}.")

    @cached_property
    def edges(self) -> NDArray[np.float64]:
        """Bin edges [bins] from -1 to 1, bit for bit those of `torch.linspace` in float32.

        It counts with a float32 step from the nearer end; numpy's own linspace differs in the last bit
        of some edges, which moves values that lie on them into another bin.
        """
        step = float(np.float32(2.0) / np.float32(self.bins - 1))
        index = np.arange(self.bins)
        low, high = -1.0 + index * step, 1.0 - (self.bins - 1 - index) * step
        return np.where(index < self.bins // 2, low, high).astype(np.float32).astype(np.float64)

    @cached_property
    def centres(self) -> NDArray[np.float64]:
        """Values [bins - 1] halfway between neighbouring edges."""
        return -1.0 + (2.0 * np.arange(self.bins - 1) + 1.0) / (self.bins - 1)

    def bin_of(self, values: ArrayLike) -> NDArray[np.int64]:
        """Bin 0 .. bins - 1 of each value: the number of edges strictly below it, after clamping.

        Raises:
            ValueError: a value is NaN or infinite.
        """
        array = np.asarray(values, np.float64)
        if not np.isfinite(array).all():
            raise InputError("An action to encode holds NaN or infinity; check the episode it comes from.")
        return np.searchsorted(self.edges, np.clip(array, -1.0, 1.0), side="left").astype(np.int64)

    def value_of(self, bin_indices: ArrayLike) -> NDArray[np.float64]:
        """Value of each bin: the centre the reference gives (shift 0) or the bin's own (shift 1)."""
        shifted = np.asarray(bin_indices, np.int64) - self.decode_shift
        return self.centres[np.clip(shifted, 0, self.bins - 2)]

    def encode(self, values: ArrayLike) -> NDArray[np.int64]:
        """Token id of each value (higher values have lower ids)."""
        return self.action_begin + self.bins - 1 - self.bin_of(values)

    def decode(self, ids: ArrayLike) -> NDArray[np.float64]:
        """Value of each action token id.

        Raises:
            ValueError: an id is not an action id.
        """
        return self.decode_columns(np.asarray(ids, np.int64) - self.action_begin)

    def decode_columns(self, columns: ArrayLike) -> NDArray[np.float64]:
        """Value of each column of the action head (column k is id `action_begin + k`)."""
        array = np.asarray(columns, np.int64)
        if array.size and (array.min() < 0 or array.max() >= self.bins):
            raise InputError("A token to decode is not one of the action ids.")
        return self.value_of(self.bins - 1 - array)


@dataclass(frozen=True)
class Normaliser:
    """Quantile normalisation to [-1, 1] per action dimension.

    Dimensions whose `mask` is False (the gripper) pass unchanged, which is a statement in the data,
    never a fallback. A zero span is legal arithmetic here (the reference's epsilon carries it) but is
    refused by `from_stats`, which everything that is deployed goes through.

    Attributes:
        q01: what becomes -1: the quantile of 1 % of the training data, per dimension.
        q99: what becomes 1: the quantile of 99 %, per dimension.
        mask: whether the dimension is normalised.
    """

    q01: NDArray[np.float64]
    q99: NDArray[np.float64]
    mask: NDArray[np.bool_]

    @classmethod
    def from_stats(cls, stats: dict[str, Any], action_dim: int, where: str = "norm_stats") -> Normaliser:
        """Reads and checks `{"q01": [...], "q99": [...], "mask": [...]}`.

        Raises:
            ValueError: a statistic is missing, has the wrong length, is not finite, or q99 <= q01.
        """
        arrays = []
        for name in ("q01", "q99", "mask"):
            if name not in stats:
                raise InputError(
                    f"{where}.{name} is missing: actions cannot be brought back to robot units without it. "
                    "Take the statistics from the data set the policy was trained on."
                )
            value = np.asarray(stats[name])
            if value.shape != (action_dim,):
                raise InputError(f"{where}.{name} has shape {list(value.shape)}, expected [{action_dim}].")
            arrays.append(value)
        if arrays[2].dtype != np.bool_:
            raise InputError(f"{where}.mask must hold true or false for each of the {action_dim} dimensions.")
        if not all(np.issubdtype(a.dtype, np.number) and np.isfinite(a).all() for a in arrays[:2]):
            raise InputError(f"{where}.q01 and {where}.q99 must be finite numbers.")
        q01, q99 = (a.astype(np.float64) for a in arrays[:2])
        narrow = np.flatnonzero(arrays[2] & (q99 <= q01))
        if narrow.size:
            raise InputError(
                f"{where}: q99 is not above q01 in dimension {int(narrow[0])} "
                f"({q99[narrow[0]]} and {q01[narrow[0]]}); recompute the statistics on moving data."
            )
        return cls(q01, q99, arrays[2])

    def to_stats(self) -> dict[str, list[float] | list[bool]]:
        """The form `from_stats` reads."""
        return {"q01": self.q01.tolist(), "q99": self.q99.tolist(), "mask": self.mask.tolist()}

    @property
    def _span(self) -> NDArray[np.float64]:
        return self.q99 - self.q01 + SPAN_EPSILON

    def normalise(self, raw: ArrayLike) -> NDArray[np.float64]:
        """Robot units [..., dim] to [-1, 1]."""
        array = np.asarray(raw, np.float64)
        scaled = np.clip(2.0 * (array - self.q01) / self._span - 1.0, -1.0, 1.0)
        return np.where(self.mask, scaled, array)

    def unnormalise(self, normalised: ArrayLike) -> NDArray[np.float64]:
        """Values in [-1, 1] [..., dim] to robot units."""
        array = np.asarray(normalised, np.float64)
        return np.where(self.mask, 0.5 * (array + 1.0) * self._span + self.q01, array)
