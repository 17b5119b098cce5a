"""Statistics as the ecosystem reads them: LeRobot's per feature, and the reference's norm_stats.json."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.datasets.episode import ACTION, STATE
from training.datasets.errors import DatasetError
from training.datasets.lerobot.layout import NORM_STATS
from training.datasets.lerobot.reading import DatasetReader

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
SAMPLED_PICTURES = 16  # per episode and camera; neighbours look alike
SAMPLED_STRIDE = 4  # of their pixels, both ways

Stats = dict[str, NDArray[np.float64]]


def of_numbers(values: NDArray[Any]) -> Stats:
    """min, max, mean, std and quantiles of [T, ...] over the frames, each [...], and count [1]."""
    array = values.astype(np.float64)
    stats = {"min": array.min(0), "max": array.max(0), "mean": array.mean(0), "std": array.std(0)}
    stats |= {name: np.quantile(array, share, axis=0) for name, share in QUANTILES.items()}
    return stats | {"count": np.array([len(array)])}


def of_pictures(images: NDArray[np.uint8]) -> Stats:
    """The same of pictures [T, H, W, 3] per channel [3, 1, 1], scaled to 0..1, from a sample of them."""
    step = max(len(images) // SAMPLED_PICTURES, 1)
    sample = images[::step, ::SAMPLED_STRIDE, ::SAMPLED_STRIDE]
    stats = of_numbers(sample.reshape(-1, 3))
    scaled = {name: (value / 255.0).reshape(3, 1, 1) for name, value in stats.items() if name != "count"}
    return scaled | {"count": np.array([len(sample)])}


def together(parts: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Stats]:
    """Statistics of all episodes from those of each, as LeRobot adds them up.

    Means and deviations are exact; quantiles are the weighted mean of the episodes' quantiles.
    """
    total: dict[str, Stats] = {}
    for key in parts[0]:
        each = [{name: np.asarray(value, np.float64) for name, value in part[key].items()} for part in parts]
        counts = np.stack([stats["count"] for stats in each]).reshape(-1, *[1] * each[0]["mean"].ndim)
        weights = counts / counts.sum()
        mean = sum_of(weights, [stats["mean"] for stats in each])
        spread = [stats["std"] ** 2 + (stats["mean"] - mean) ** 2 for stats in each]
        total[key] = {
            "min": np.min([stats["min"] for stats in each], axis=0),
            "max": np.max([stats["max"] for stats in each], axis=0),
            "mean": mean,
            "std": np.sqrt(sum_of(weights, spread)),
            "count": np.array([int(counts.sum())]),
        }
        total[key] |= {name: sum_of(weights, [stats[name] for stats in each]) for name in QUANTILES}
    return total


def sum_of(weights: NDArray[np.float64], values: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The weighted sum over the first axis."""
    weighted: NDArray[np.float64] = (weights * np.stack(values)).sum(axis=0)
    return weighted


def exact(reader: DatasetReader) -> dict[str, Stats]:
    """Statistics of actions and state over all frames, with exact quantiles.

    Holds these two columns of the whole dataset in memory (28 MB for a million frames of seven values).

    Raises:
        DatasetError: an episode is broken.
    """
    values: dict[str, list[NDArray[np.float32]]] = {ACTION: [], STATE: []}
    for position in range(len(reader)):
        episode = reader.read(position, pictures=False)
        values[ACTION].append(episode.actions)
        if episode.state is not None:
            values[STATE].append(episode.state)
    return {key: of_numbers(np.concatenate(parts)) for key, parts in values.items() if parts}


def norm_stats(stats: Mapping[str, Stats], mask: Sequence[bool]) -> dict[str, Any]:
    """The content of norm_stats.json: "action" and "state", each with its statistics, and the action's mask.

    The reference's loader takes from "action" the keys that it finds under "state"; a dataset without
    proprioception has none there, and is for us to read.
    """
    width = len(stats[ACTION]["mean"])
    if len(mask) != width:
        raise DatasetError(
            f"The mask has {len(mask)} values for {width} action dimensions; give one for each."
        )
    wanted = ("min", "max", "mean", "std", "q01", "q99")
    action: dict[str, Any] = {name: stats[ACTION][name].tolist() for name in wanted}
    state = {name: stats[STATE][name].tolist() for name in wanted} if STATE in stats else {}
    return {"action": action | {"mask": [bool(each) for each in mask]}, "state": state}


def default_mask(action_dim: int) -> tuple[bool, ...]:
    """LIBERO's: the last dimension is the gripper and stays as it is."""
    return (True,) * (action_dim - 1) + (False,)


def write_norm_stats(folder: Path, mask: Sequence[bool] | None = None) -> Path:
    """Computes norm_stats.json of a dataset that lacks it, from every frame of it.

    Raises:
        DatasetError: an episode is broken.
    """
    reader = DatasetReader(folder, thoughts=False)
    content = norm_stats(exact(reader), default_mask(reader.action_dim) if mask is None else mask)
    path = folder / NORM_STATS
    write_json(path, content)
    return path


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON so that the file is whole or as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".json.part")
    part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, path)


def plain(stats: Mapping[str, Stats]) -> dict[str, dict[str, Any]]:
    """Arrays as nested lists, for JSON and Arrow."""
    return {key: {name: value.tolist() for name, value in each.items()} for key, each in stats.items()}
