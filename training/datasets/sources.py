"""Where a training run takes its rows from: recorded episodes in memory, or a LeRobot dataset on disk."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from dtvla.policy.action_tokenizer import Normaliser
from training.datasets.batches import TrainingRow
from training.datasets.errors import DatasetError
from training.datasets.lerobot.layout import INFO
from training.datasets.lerobot.reading import DatasetReader
from training.datasets.lerobot.stream import RowStream
from training.datasets.recorded_frames import Frames, load_frames, quantiles

DELTAS = 6  # the gripper passes as it is (reference: sft/dataset.py)


@dataclass(frozen=True)
class Share:
    """Which part of a run's rows a process takes."""

    rank: int = 0
    world: int = 1


class Source(Protocol):
    """Rows of a run; what comes is decided by the seed and the position alone."""

    @property
    def description(self) -> str:
        """One sentence for the log and the checkpoint."""

    @property
    def skipped(self) -> list[str]:
        """Sentences about episodes that could not be used."""

    def normaliser(self, action_dim: int) -> Normaliser:
        """The statistics of its actions."""

    def take(self, step: int, count: int) -> tuple[list[TrainingRow], list[int]]:
        """This process's rows of a step, and their numbers in the whole step's `count` rows."""

    def held_out(self, count: int, seed: int) -> list[TrainingRow]:
        """Rows that are never trained on, the same ones at every call; empty where there are none."""

    def state_dict(self) -> dict[str, Any]:
        """The position after the last row that was taken."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a position."""


def open_source(
    folder: Path, *, image_size: int, horizon: int, tokenizer: Tokenizer, seed: int, share: Share, window: int
) -> Source:
    """The rows of a folder.

    Args:
        folder: of `python -m training.collect`, or of a LeRobot dataset (v2.x or v3.0).
        image_size: of the model's pictures, px.
        horizon: actions of a chunk.
        tokenizer: for datasets that store thoughts as token ids.
        seed: of the order.
        share: this process's part.
        window: episodes of a dataset that are open at a time.

    Raises:
        DatasetError: there is nothing to learn from; the sentence names file, episode and key.
    """
    if (folder / INFO).is_file():
        reader = DatasetReader(folder, thoughts=True, image_size=image_size, tokenizer=tokenizer)
        return Streamed(reader, horizon, seed, share, window)
    return InMemory(folder, image_size, horizon, seed, share)


class InMemory:
    """All recorded episodes in memory; rows of the phases that matter are drawn more often."""

    skipped: list[str] = []  # noqa: RUF012 - a broken episode is refused

    def __init__(self, folder: Path, image_size: int, horizon: int, seed: int, share: Share) -> None:
        self._frames, self._unseen = (
            load_frames(folder, image_size, horizon, held_out=flag) for flag in (False, True)
        )
        self._edges = np.cumsum(self._frames.draw_weights())
        self._seed, self._share = seed, share
        frames = self._frames
        self.description = (
            f"{frames.episodes} episodes of {folder} with the expert's labels ({len(frames.images)} looks, "
            f"{len(frames)} labelled rows)"
        )

    def normaliser(self, action_dim: int) -> Normaliser:
        """From the first action of every training chunk."""
        q01, q99 = quantiles(self._frames.actions)
        return Normaliser(q01, q99, np.arange(action_dim) < DELTAS)

    def take(self, step: int, count: int) -> tuple[list[TrainingRow], list[int]]:
        """See `Source.take`: (seed, step) decides on the rows of all processes together."""
        numbers = _draw(self._edges, np.random.default_rng((self._seed, step)), count)
        places = list(range(self._share.rank, count, self._share.world))
        return [self._frames.row(int(numbers[place])) for place in places], places

    def held_out(self, count: int, seed: int) -> list[TrainingRow]:
        """See `Source.held_out`: drawn uniformly."""
        unseen: Frames = self._unseen
        edges = np.arange(1.0, len(unseen) + 1)
        return [unseen.row(int(i)) for i in _draw(edges, np.random.default_rng(seed), count)]

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a step's rows do not depend on those before."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""
        del state


class Streamed:
    """A LeRobot dataset that is read while the run goes on."""

    def __init__(self, reader: DatasetReader, horizon: int, seed: int, share: Share, window: int) -> None:
        self._reader, self._share = reader, share
        self._stream = RowStream(
            reader, horizon, seed=seed, window=window, rank=share.rank, world=share.world
        )
        self._rows = self._stream.forever()
        frames = sum(entry.length for entry in reader.layout.episodes)
        self.description = f"{len(reader)} episodes of the LeRobot dataset {reader.folder} ({frames} frames)"

    @property
    def skipped(self) -> list[str]:
        return self._stream.skipped

    def normaliser(self, action_dim: int) -> Normaliser:
        """The dataset's own norm_stats.json.

        Raises:
            DatasetError: it has none.
        """
        return self._reader.normaliser([number < DELTAS for number in range(action_dim)])

    def take(self, step: int, count: int) -> tuple[list[TrainingRow], list[int]]:
        """See `Source.take`: the next rows of this process's episodes."""
        del step
        places = list(range(self._share.rank, count, self._share.world))
        return list(islice(self._rows, len(places))), places

    def held_out(self, count: int, seed: int) -> list[TrainingRow]:
        """None: every episode is trained on."""
        del count, seed
        return []

    def state_dict(self) -> dict[str, Any]:
        """The stream's position."""
        return {"stream": json.dumps(self._stream.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to the position.

        Raises:
            DatasetError: it is one in another dataset, or of another number of processes.
        """
        self._stream.load_state_dict(json.loads(state["stream"]))
        self._rows = self._stream.forever()


def _draw(edges: NDArray[np.float64], rng: np.random.Generator, size: int) -> NDArray[np.int64]:
    """Row numbers [size] with the probabilities whose running sum is `edges`."""
    found = np.searchsorted(edges / edges[-1], rng.random(size))
    return np.minimum(found, len(edges) - 1)


__all__ = ["DatasetError", "InMemory", "Share", "Source", "Streamed", "open_source"]
