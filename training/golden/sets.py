"""Golden sets on disk: arrays by case, with a record of what a check has used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dtvla.policy.layout import TokenLayout
from training.checkpoint import load_model
from training.model import DeepThinkVLA

# Cases that share another case's images (golden README, "Cases").
PIXELS_OF = {"c5_padinside": "c4_given", "c6_cap": "c2_free_2img", "c9_rl_single": "c2_free_2img"}
PIXELS = "pixel_values"


class GoldenError(ValueError):
    """Golden data that cannot be read."""


class Arrays:
    """The arrays of one .npz under an optional prefix; remembers which were read."""

    def __init__(self, data: dict[str, NDArray[Any]], used: set[str], prefix: str = "") -> None:
        self._data, self._used, self._prefix = data, used, prefix

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._data

    def __getitem__(self, name: str) -> NDArray[Any]:
        key = self._prefix + name
        if key not in self._data:
            raise GoldenError(f"the array {key} is missing")
        self._used.add(key)
        return self._data[key]

    def ids(self, name: str) -> Tensor:
        """An integer array as int64 tensor."""
        return torch.from_numpy(self[name].astype(np.int64))

    def names(self) -> list[str]:
        """All array names behind the prefix."""
        return [key.removeprefix(self._prefix) for key in self._data if key.startswith(self._prefix)]


@dataclass
class GoldenSet:
    """One directory: a model and what the reference computes with it."""

    folder: Path
    model: DeepThinkVLA
    golden: Arrays
    codec: Arrays
    rl: Arrays
    _used: dict[str, tuple[dict[str, NDArray[Any]], set[str]]]

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.folder.name

    @property
    def layout(self) -> TokenLayout:
        """Token ids and sizes."""
        return self.model.config.layout

    def cases(self) -> list[str]:
        """Case names in the order of their numbers."""
        names = {key.split("__")[0] for key in self.golden.names()}
        return sorted(names, key=lambda name: (len(name.split("_")[0]), name))

    def case(self, name: str) -> Arrays:
        """The arrays of a case."""
        data, used = self._used["golden.npz"]
        return Arrays(data, used, f"{name}__")

    def pixels(self, case: str) -> Tensor:
        """The images of a case, its own or those it shares."""
        own = self.case(case)
        return torch.from_numpy((own if PIXELS in own else self.case(PIXELS_OF.get(case, case)))[PIXELS])

    def unused(self) -> Iterator[tuple[str, str]]:
        """(file, array) pairs that no check has read."""
        for file, (data, used) in self._used.items():
            for name in sorted(set(data) - used):
                yield file, name


def find_sets(folder: Path) -> list[Path]:
    """The sets in a directory: itself, or its children that hold golden.npz.

    Raises:
        GoldenError: there is none.
    """
    if (folder / "golden.npz").is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob("*/golden.npz"))
    if not found:
        raise GoldenError(
            f"{folder} holds no golden set (a folder with golden.npz, model.safetensors, config.json)."
        )
    return found


def load_set(folder: Path) -> GoldenSet:
    """Reads a set; its model is float32.

    Raises:
        GoldenError: a file is missing or not readable.
        CheckpointError: the checkpoint is not one of this family.
    """
    used: dict[str, tuple[dict[str, NDArray[Any]], set[str]]] = {}
    for file in ("golden.npz", "codec.npz", "rl.npz"):
        try:
            with np.load(folder / file, allow_pickle=False) as data:
                used[file] = (dict(data), set())
        except (OSError, ValueError) as error:
            raise GoldenError(f"{folder / file} cannot be read: {error}") from None
    golden, codec, rl = (Arrays(*used[file]) for file in ("golden.npz", "codec.npz", "rl.npz"))
    return GoldenSet(folder, load_model(folder), golden, codec, rl, used)
