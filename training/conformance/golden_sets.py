"""Golden sets on disk: arrays by case, with a record of what a check has used."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dtvla.policy.token_layout import TokenLayout
from training.model.deepthinkvla import DeepThinkVLA
from training.model.hf_checkpoint import load_model

# Cases that share another case's images (golden README, "Cases").
PIXELS_OF = {"c5_padinside": "c4_given", "c6_cap": "c2_free_2img", "c9_rl_single": "c2_free_2img"}
PIXELS = "pixel_values"
ARRAYS = ("golden.npz", "codec.npz", "rl.npz")
INDEX = "index.json"  # name, shape and dtype of every array of golden.npz
HIDDEN = -1e30  # an additive mask hides with the lowest float32


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

    def temperatures(self, case: str) -> tuple[float, float]:
        """Of thought and action. A case that states none (c9) shares the pair of the one that does."""
        names = [case, *self.cases()]
        stated = next((name for name in names if "cot_temperature" in self.case(name)), case)
        arrays = self.case(stated)
        return float(arrays["cot_temperature"]), float(arrays["action_temperature"])

    def contradictions(self) -> Iterator[str]:
        """Where golden.npz differs from the set's own list of its arrays: nothing may go missing unseen."""
        path = self.folder / INDEX
        try:
            listed = json.loads(path.read_text(encoding="utf-8"))
            index = {name: (list(shape), dtype) for name, shape, dtype in listed}
        except (OSError, ValueError, TypeError) as error:
            yield f"{INDEX} cannot be read ({error!r})"
            return
        data, _ = self._used["golden.npz"]
        found = {name: (list(array.shape), str(array.dtype)) for name, array in data.items()}
        for name in sorted(index.keys() | found.keys()):
            if index.get(name) != found.get(name):
                yield f"{name}: {INDEX} says {index.get(name)}, golden.npz holds {found.get(name)}"

    def unused(self) -> Iterator[tuple[str, str]]:
        """(file, array) pairs that no check has read."""
        for file, (data, used) in self._used.items():
            for name in sorted(set(data) - used):
                yield file, name


def visible(additive: NDArray[np.float32]) -> NDArray[np.bool_]:
    """An additive mask as booleans.

    Raises:
        GoldenError: a value that neither shows (0) nor hides (the lowest float32).
    """
    strange = (additive != 0) & ~(additive < HIDDEN)
    if strange.any():
        raise GoldenError(f"the additive mask holds {additive[strange][0]}, which neither shows nor hides")
    return np.asarray(additive == 0)


def find_sets(folder: Path) -> list[Path]:
    """The sets in a directory: itself and what lies one or two levels below.

    A folder counts as a set when it holds any file of one, so that an incomplete set is reported.

    Raises:
        GoldenError: there is none.
    """
    places = ("", "*/", "*/*/")
    found = sorted({path.parent for place in places for file in ARRAYS for path in folder.glob(place + file)})
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
    for file in ARRAYS:
        try:
            with np.load(folder / file, allow_pickle=False) as data:
                used[file] = (dict(data), set())
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise GoldenError(f"{folder / file} cannot be read: {error}") from None
    golden, codec, rl = (Arrays(*used[file]) for file in ARRAYS)
    return GoldenSet(folder, load_model(folder), golden, codec, rl, used)
