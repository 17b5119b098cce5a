"""Training rows of a dataset larger than memory: shuffled, sharded, and resumed in the middle of an epoch.

A window of whole episodes is open at a time. Each draw takes one of their frames that are left, all equally
likely; when an episode is used up the next one of the epoch's order takes its place. What comes is decided by
the seed, the epoch, the rank and the draw's number alone, so a position is a few whole numbers, and nothing
has to be read twice to come back to it but the window.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.datasets.episode import Episode, action_chunks
from training.datasets.errors import DatasetError
from training.datasets.lerobot.reading import DatasetReader

_LOG = logging.getLogger(__name__)
_STATE = 1  # version of the state's form
# Random numbers are drawn for (seed, epoch, purpose, ...), so that no purpose disturbs another.
_ORDER, _FRAMES, _DRAW = 0, 1, 2


@dataclass(frozen=True, eq=False)
class DatasetRow:
    """One frame to learn from.

    Attributes:
        images: uint8 [cameras, H, W, 3], RGB.
        actions: float32 [horizon, A], raw robot units, from this frame on.
        thought: the thought at this frame, without tags; empty when the dataset has none.
        instruction: the task.
        episode: LeRobot's episode_index.
        frame: LeRobot's frame_index.
    """

    images: NDArray[np.uint8]
    actions: NDArray[np.float32]
    thought: str
    instruction: str
    episode: int
    frame: int


@dataclass(eq=False)
class _Open:
    """An episode of the window: which frames come in which order, and how many have come."""

    position: int
    order: NDArray[np.int64]
    taken: int = 0
    episode: Episode | None = None
    chunks: NDArray[np.float32] | None = None

    @property
    def left(self) -> int:
        return len(self.order) - self.taken


class RowStream:
    """An iterable over one rank's rows; every `iter` goes on where the last stopped, to the epoch's end.

        stream = RowStream(DatasetReader(folder, thoughts=True), horizon=10, seed=429, rank=rank, world=world)
        for row in stream.forever(): ...

    Held in memory: `window` decoded episodes and one that is read ahead in a thread. Nine episodes of 150
    frames from two cameras of 224 pixels are 410 MB; `image_size` of the reader makes them smaller.

    Ranks get whole episodes, in every epoch others, so that no frame comes twice or is lost. Their numbers of
    rows differ by the longest episode at most (`rows_per_rank`): ranks that must take the same number of
    steps use `forever`. One iteration at a time.

    Args:
        reader: the dataset.
        horizon: actions of a chunk; the last one is repeated at an episode's end.
        seed: of everything random.
        window: open episodes; more mix better and take more memory.
        rank, world: this process, and how many there are.
        epoch: the first one.
        strict: True raises at a broken episode, False leaves it out, logs it, and names it in `skipped`.

    Attributes:
        epoch: the epoch at hand.
        skipped: a sentence for each broken episode that this rank has met, with its file, episode and key.

    Raises:
        DatasetError: fewer episodes than ranks. While iterating: a broken episode if `strict`, or all broken.
    """

    def __init__(
        self,
        reader: DatasetReader,
        horizon: int,
        *,
        seed: int = 0,
        window: int = 8,
        rank: int = 0,
        world: int = 1,
        epoch: int = 0,
        strict: bool = False,
    ) -> None:
        if horizon < 1 or window < 1 or not 0 <= rank < world:
            raise ValueError(
                f"horizon ({horizon}) and window ({window}) must be 1 or more, and rank ({rank}) below world "
                f"({world})."
            )
        if len(reader) < world:
            raise DatasetError(
                f"{reader.folder} has {len(reader)} episodes for {world} processes, and each needs one at "
                "least. Start fewer processes."
            )
        self.epoch, self.skipped = epoch, list[str]()
        self._reader, self._horizon, self._seed, self._window = reader, horizon, seed, window
        self._rank, self._world, self._strict = rank, world, strict
        self._lengths = [entry.length for entry in reader.layout.episodes]
        self._begin(epoch)

    def _begin(self, epoch: int) -> None:
        self.epoch = epoch
        self._queue = self._shards(epoch)[self._rank]
        self._next = self._drawn = 0
        self._open: list[_Open] = []

    def _random(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, self.epoch, *purpose])

    def _shards(self, epoch: int) -> list[list[int]]:
        """Positions of the episodes of every rank, in the order in which they are opened."""
        order = np.random.default_rng([self._seed, epoch, _ORDER]).permutation(len(self._lengths))
        shards: list[list[int]] = [[] for _ in range(self._world)]
        rows = [0] * self._world
        for position in order.tolist():
            # The one with the fewest rows; between equals the one with the fewest episodes: none stays empty.
            rank = min(range(self._world), key=lambda r: (rows[r], len(shards[r])))
            shards[rank].append(position)
            rows[rank] += self._lengths[position]
        return shards

    def rows_per_rank(self) -> list[int]:
        """How many rows each rank has in this epoch, if no episode is broken [world]."""
        return [sum(self._lengths[i] for i in shard) for shard in self._shards(self.epoch)]

    def forever(self) -> Iterator[DatasetRow]:
        """Rows without end, epoch after epoch."""
        while True:
            yield from self

    def __iter__(self) -> Iterator[DatasetRow]:
        with ThreadPoolExecutor(1, "episode-reader") as pool:
            for opened in self._open:
                if opened.episode is None:  # of a state that was loaded
                    self._load(opened, self._reader.read(opened.position))
            ahead = self._read_ahead(pool)
            while True:
                while len(self._open) < self._window and ahead is not None:
                    self._open_next(ahead)
                    ahead = self._read_ahead(pool)
                if not self._open:
                    break
                yield self._draw()
        if self._drawn == 0:
            raise DatasetError(
                f"{self._reader.folder}: all {len(self._queue)} episodes of rank {self._rank} are broken; "
                f"the first: {self.skipped[0]}"
            )
        self._begin(self.epoch + 1)

    def _read_ahead(self, pool: ThreadPoolExecutor) -> Future[Episode] | None:
        if self._next == len(self._queue):
            return None
        return pool.submit(self._reader.read, self._queue[self._next])

    def _open_next(self, reading: Future[Episode]) -> None:
        """Adds the next episode of the order to the window, or notes that it is broken."""
        position = self._queue[self._next]
        try:
            episode = reading.result()
        except DatasetError as error:
            if self._strict:
                raise
            if str(error) not in self.skipped:
                self.skipped.append(str(error))
                _LOG.warning("left out: %s", error)
            self._next += 1
            return
        self._next += 1
        opened = _Open(position, self._random(_FRAMES, position).permutation(len(episode)))
        self._load(opened, episode)
        self._open.append(opened)

    def _load(self, opened: _Open, episode: Episode) -> None:
        opened.episode, opened.chunks = episode, action_chunks(episode, self._horizon)

    def _draw(self) -> DatasetRow:
        """The next row; moves on before it is handed out, so that a state saved then begins after it."""
        left = np.cumsum([opened.left for opened in self._open])
        ticket = self._random(_DRAW, self._rank, self._drawn).integers(left[-1])
        opened = self._open[int(np.searchsorted(left, ticket, side="right"))]
        frame = int(opened.order[opened.taken])
        opened.taken += 1
        self._drawn += 1
        if not opened.left:
            self._open.remove(opened)
        episode, chunks = opened.episode, opened.chunks
        assert episode is not None
        assert chunks is not None
        return DatasetRow(
            episode.images[frame].copy(),  # a view would keep the whole episode in memory
            chunks[frame].copy(),
            "" if episode.thoughts is None else episode.thoughts[frame],
            episode.tasks[frame],
            self._reader.layout.episodes[opened.position].index,
            frame,
        )

    def _identity(self) -> dict[str, Any]:
        """What a state belongs to: with anything else, its numbers would mean other rows."""
        layout = self._reader.layout
        said = [
            layout.version,
            [[entry.index, entry.length] for entry in layout.episodes],
            self._reader.cameras,
        ]
        return {
            "state": _STATE,
            "dataset": hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16],
            "seed": self._seed,
            "rank": self._rank,
            "world": self._world,
            "window": self._window,
            "horizon": self._horizon,
        }

    def state_dict(self) -> dict[str, Any]:
        """The position after the last row that was handed out, as JSON can hold it."""
        return self._identity() | {
            "epoch": self.epoch,
            "next": self._next,
            "drawn": self._drawn,
            "open": [[opened.position, opened.taken] for opened in self._open],
            "skipped": list(self.skipped),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a position that `state_dict` gave; the rows from there on are the same, bit for bit.

        Raises:
            DatasetError: the state is of another dataset, seed, rank, world, window or horizon.
        """
        for key, value in self._identity().items():
            if state.get(key) != value:
                raise DatasetError(
                    f"The position in {self._reader.folder} was saved with another {key} "
                    f"({state.get(key)!r}, now {value!r}). Go on with the same, or begin the epoch anew."
                )
        self._begin(int(state["epoch"]))
        self._next, self._drawn = int(state["next"]), int(state["drawn"])
        self.skipped = list(state["skipped"])
        for position, taken in state["open"]:
            order = self._random(_FRAMES, position).permutation(self._lengths[position])
            self._open.append(_Open(position, order, taken))
