"""Writes LeRobot datasets (v2.1, v3.0) so that a dataset is whole or not there.

Everything goes into `NAME.part` beside the folder asked for, which gets its name at the very end. Files are
closed in groups (v2.1: one episode; v3.0: as many as fit a data file); a line in the part's journal says that
a group is on disk. After an interruption the next writer takes up at the last such line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from training.datasets.episode import Episode, check
from training.datasets.errors import DatasetError
from training.datasets.lerobot import metadata
from training.datasets.lerobot.columns import Columns
from training.datasets.lerobot.layout import DATA_PATH, FILES_PER_CHUNK, NORM_STATS, V21, V30, VIDEO_PATH
from training.datasets.lerobot.metadata import Written
from training.datasets.lerobot.pictures import VideoWriter
from training.datasets.lerobot.reading import DatasetReader
from training.datasets.lerobot.stats import (
    default_mask,
    exact,
    norm_stats,
    of_numbers,
    of_pictures,
    plain,
    write_json,
)

JOURNAL = "journal.jsonl"
EPISODES_PER_FILE = 100  # what an interruption costs at most, where a data file would hold more


class DatasetWriter:
    """Appends episodes to a new dataset; a context manager that leaves the part folder for the next try.

        with DatasetWriter(Path("data/lerobot"), V30, fps=20, cameras=("observation.images.top",)) as writer:
            for episode in episodes:
                writer.add(episode)
            writer.finish()

    Args:
        folder: of the dataset; must not be there yet.
        version: V21 or V30.
        fps: frames per second of every episode.
        cameras: feature keys, in the order of `Episode.images`.
        video: cameras become H.264 videos (some detail is lost) rather than PNG images (none is).
        mask: False for action dimensions that are not normalised; None is all but the last.
        notes: more fields of info.json.

    Attributes:
        done: names of the episodes that are on disk; a caller that resumes leaves them out.

    Raises:
        DatasetError: the folder is there, the version is another one, or the part folder was begun otherwise.
    """

    def __init__(
        self,
        folder: Path,
        version: str,
        *,
        fps: float,
        cameras: Sequence[str],
        video: bool = False,
        mask: Sequence[bool] | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        if version not in (V21, V30):
            raise DatasetError(f"Datasets are written as {V21} or {V30}, not {version!r}.")
        if folder.exists():
            raise DatasetError(f"{folder} is there already. Name another folder, or remove it first.")
        self.folder, self.part = folder, folder.with_name(folder.name + ".part")
        self._version, self._fps, self._mask, self._notes = version, fps, mask, dict(notes or {})
        self._cameras, self._video = tuple(cameras), video
        self._columns: Columns | None = None
        self._tasks: list[str] = []
        self._written: list[Written] = []
        self._open: list[Written] = []  # episodes of the group at hand
        self._frames = self._bytes = 0  # of the dataset; of the group
        self._files = ExitStack()
        self._data: pq.ParquetWriter | None = None
        self._videos: list[VideoWriter] = []
        self._take_up()

    @property
    def done(self) -> frozenset[str]:
        return frozenset(episode.name for episode in self._written)

    def _settings(self) -> dict[str, Any]:
        return {
            "version": self._version,
            "fps": self._fps,
            "cameras": list(self._cameras),
            "video": self._video,
            "notes": self._notes,
        }

    def _take_up(self) -> None:
        """Begins the part folder, or reads from its journal what is whole in it."""
        journal = self.part / JOURNAL
        lines = _whole_lines(journal)
        if not lines:
            if self.part.exists() and any(path.name != JOURNAL for path in self.part.iterdir()):
                raise DatasetError(f"{self.part} is in the way, and has no journal. Remove it.")
            self.part.mkdir(parents=True, exist_ok=True)
            journal.write_text(json.dumps(self._settings()) + "\n", encoding="utf-8")
            return
        if lines[0] != self._settings():
            differs = [key for key, value in self._settings().items() if lines[0].get(key) != value]
            raise DatasetError(
                f"{self.part} was begun with another {differs[0] if differs else 'journal'}. Go on as you "
                "began, or remove it."
            )
        for line in lines[1:]:
            columns = dict(line["columns"])
            self._columns = Columns(**columns | {"cameras": tuple(columns["cameras"])})
            self._tasks = list(line["tasks"])
            self._written += [Written(**episode) for episode in line["episodes"]]
        self._frames = sum(episode.length for episode in self._written)
        # A line that was cut off must not be continued by the next one.
        again = journal.with_suffix(".new")
        again.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        os.replace(again, journal)

    def add(self, episode: Episode) -> None:
        """Appends an episode.

        Raises:
            DatasetError: it is broken, or has other columns than the episodes before it.
        """
        check(episode)
        columns = self._columns or Columns.of(episode, self._cameras, self._video)
        columns.require(episode)
        self._columns = columns
        if self._data is None:
            self._begin_group(columns)
        assert self._data is not None
        known = {task: index for index, task in enumerate(self._tasks)}
        new = [task for task in dict.fromkeys(episode.tasks) if task not in known]
        self._tasks += new
        known |= {task: len(known) + i for i, task in enumerate(new)}
        length, index = len(episode), len(self._written) + len(self._open)
        counters = {
            "frame_index": np.arange(length),
            "episode_index": np.full(length, index),
            "index": np.arange(self._frames, self._frames + length),
            "task_index": np.array([known[task] for task in episode.tasks]),
        }
        self._frames += length
        table = columns.table(episode, counters, self._fps)
        self._data.write_table(table)  # a row group of its own: it can be read without the others
        for camera, video in enumerate(self._videos):
            video.add(episode.images[:, camera])
        self._open.append(
            Written(
                episode.name,
                length,
                list(dict.fromkeys(episode.tasks)),
                self._group,
                sum(each.length for each in self._open),
                plain(
                    {key: of_pictures(episode.images[:, c]) for c, key in enumerate(columns.cameras)}
                    | {
                        key: of_numbers(value)
                        for key, value in columns.arrays(episode, counters, self._fps).items()
                    }
                ),
            )
        )
        self._bytes += table.nbytes
        full = self._bytes >= metadata.DATA_MB * 2**20 or len(self._open) >= EPISODES_PER_FILE
        if self._version == V21 or full:
            self._end_group()

    @property
    def _group(self) -> int:
        return self._written[-1].file + 1 if self._written else 0

    def _paths(self) -> list[Path]:
        """Files of the group at hand: data first, then one video per camera."""
        chunk, file = divmod(self._group, FILES_PER_CHUNK)
        place = {
            "chunk_index": chunk,
            "file_index": file,
            "episode_chunk": chunk,
            "episode_index": self._group,
        }
        paths = [self.part / DATA_PATH[self._version].format(**place)]
        for key in self._cameras if self._video else ():
            paths.append(self.part / VIDEO_PATH[self._version].format(video_key=key, **place))
        return paths

    def _begin_group(self, columns: Columns) -> None:
        data, *videos = self._paths()
        for path in (data, *videos):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._bytes = 0
        self._data = self._files.enter_context(pq.ParquetWriter(data, columns.schema()))
        self._videos = [
            self._files.enter_context(VideoWriter(path, self._fps, columns.height, columns.width))
            for path in videos
        ]

    def _end_group(self) -> None:
        if not self._open:
            return
        self._close_files()
        for path in self._paths():
            _sync(path)
        assert self._columns is not None
        line = {
            "columns": asdict(self._columns),
            "tasks": self._tasks,
            "episodes": [asdict(each) for each in self._open],
        }
        with (self.part / JOURNAL).open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(line) + "\n")
            journal.flush()
            os.fsync(journal.fileno())
        self._written += self._open
        self._open = []

    def _close_files(self) -> None:
        self._files.close()
        self._data, self._videos = None, []

    def finish(self) -> Path:
        """Writes the metadata and gives the folder its name; returns it.

        Raises:
            DatasetError: no episode was added, or what was written does not read back.
        """
        self._end_group()
        if self._columns is None:
            raise DatasetError(f"{self.folder}: no episode was added. A dataset needs at least one.")
        metadata.write_meta(
            self.part, self._version, self._columns, self._fps, self._written, self._tasks, self._notes
        )
        found = exact(DatasetReader(self.part, thoughts=False))
        if self._version == V30:
            metadata.write_stats(self.part, metadata.overall(self._written, found))
        mask = default_mask(self._columns.action_dim) if self._mask is None else self._mask
        write_json(self.part / NORM_STATS, norm_stats(found, mask))
        os.replace(self.part, self.folder)
        (self.folder / JOURNAL).unlink()  # only now: until here it says how to go on
        return self.folder

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_files()


def _whole_lines(journal: Path) -> list[dict[str, Any]]:
    """The journal's lines up to one that was cut off."""
    lines: list[dict[str, Any]] = []
    if journal.is_file():
        for text in journal.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
    return lines


def _sync(path: Path) -> None:
    """Waits until a file is on the disk: the journal must not know of it before."""
    with path.open("rb") as handle:
        os.fsync(handle.fileno())
