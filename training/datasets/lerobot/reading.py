"""Episodes of a LeRobot dataset of either version, checked at the door."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dtvla.policy.action_tokenizer import Normaliser
from dtvla.policy.images import resize
from training.datasets.episode import (
    ACTION,
    ACTION_CHUNK,
    END_THINK,
    REASONING,
    STATE,
    SUCCESS,
    THINK,
    Episode,
    check,
    without_tags,
)
from training.datasets.errors import DatasetError
from training.datasets.lerobot.layout import (
    INFO,
    NORM_STATS,
    EpisodeEntry,
    column,
    open_layout,
    read_json,
    read_table,
)
from training.datasets.lerobot.pictures import decode_picture, decode_video

SUCCESS_KEYS = (SUCCESS, "success")
PAD_ID = 0  # of the published tokenizer; fills up a thought that is stored as token ids


class Decoder(Protocol):
    """A tokenizer, for datasets that store thoughts as token ids (`tokenizers.Tokenizer` is one)."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids."""


class DatasetReader:
    """A dataset folder, read one episode at a time; nothing but the metadata is kept.

    Args:
        folder: holds meta, data and perhaps videos.
        cameras: feature keys in the order of `Episode.images`; None takes all, in the order of info.json.
        thoughts: True refuses a dataset without thoughts, False does not read them, None takes what there is.
        action_dim: refuse another dimension.
        image_size: pictures are resized to this many pixels, square, as the deployed policy does it.
        tokenizer: decodes thoughts that are stored as token ids, as the reference's dataset has them.

    Raises:
        DatasetError: no such dataset, or one without what was asked for; names file and key.
    """

    def __init__(
        self,
        folder: Path,
        *,
        cameras: Sequence[str] | None = None,
        thoughts: bool | None = None,
        action_dim: int | None = None,
        image_size: int | None = None,
        tokenizer: Decoder | None = None,
    ) -> None:
        self.folder = folder
        self.layout = open_layout(folder)
        self.action_dim = self._action_dim(action_dim)
        self.cameras = self._cameras(cameras)
        self.has_thoughts = self._thoughts(thoughts)
        self._image_size, self._tokenizer = image_size, tokenizer

    def __len__(self) -> int:
        return len(self.layout.episodes)

    @property
    def _info(self) -> Path:
        return self.folder / INFO

    def _action_dim(self, wanted: int | None) -> int:
        feature = self.layout.features.get(ACTION)
        if feature is None or len(feature.shape) != 1:
            raise DatasetError(
                f"{self._info}: features.{ACTION} must be there with shape [dimensions]: nothing can be "
                "learned without actions."
            )
        if wanted not in (None, feature.shape[0]):
            raise DatasetError(
                f"{self._info}: features.{ACTION} has {feature.shape[0]} dimensions, but {wanted} are "
                "expected. Take a dataset of the same robot, or a model with that action dimension."
            )
        return feature.shape[0]

    def _cameras(self, wanted: Sequence[str] | None) -> tuple[str, ...]:
        known = self.layout.cameras
        absent = [key for key in wanted or () if key not in known]
        if absent or not known:
            missing = f"the camera '{absent[0]}'" if absent else "any camera"
            raise DatasetError(
                f"{self._info}: features lacks {missing}; there are: {', '.join(known) or 'none'}."
            )
        return known if wanted is None else tuple(wanted)

    def _thoughts(self, wanted: bool | None) -> bool:
        if wanted and REASONING not in self.layout.features:
            raise DatasetError(
                f"{self._info}: features lacks '{REASONING}', the thought of every frame. Add them, or train "
                "without thoughts."
            )
        return wanted is not False and REASONING in self.layout.features

    def read(self, position: int, *, pictures: bool = True) -> Episode:
        """The episode at this position of `layout.episodes`.

        Args:
            position: 0 to len - 1.
            pictures: False leaves `images` with zero pixels [T, cameras, 0, 0, 3], for statistics.

        Raises:
            DatasetError: it is broken; names file, episode, key, and the frame where there is one.
        """
        entry = self.layout.episodes[position]
        name = f"{self.folder / entry.data}, episode {entry.index}"
        table = self._table(entry, name, pictures)
        thoughts = self._said(table, name) if self.has_thoughts else None
        features = self.layout.features
        episode = Episode(
            name,
            self._images(entry, table, name) if pictures else _blank(len(table), len(self.cameras)),
            _numbers(table, ACTION, name),
            self._tasks(table, name),
            thoughts,
            _numbers(table, ACTION_CHUNK, name) if ACTION_CHUNK in features else None,
            _numbers(table, STATE, name) if STATE in features else None,
            next((any(column(table, key)) for key in SUCCESS_KEYS if key in features), None),
        )
        check(episode, self.action_dim)
        return episode

    def _table(self, entry: EpisodeEntry, name: str, pictures: bool) -> pa.Table:
        features = self.layout.features
        wanted = ["timestamp", "frame_index", "task_index", ACTION]
        wanted += [key for key in (ACTION_CHUNK, STATE, *SUCCESS_KEYS) if key in features]
        wanted += [REASONING] if self.has_thoughts else []
        wanted += [key for key in self.cameras if pictures and features[key].dtype == "image"]
        only = [("episode_index", "=", entry.index)]
        table = read_table(self.folder / entry.data, wanted, only, name)
        if len(table) != entry.length:
            raise DatasetError(
                f"{name}: the file has {len(table)} frames of it, but the metadata say length "
                f"{entry.length}. Fetch the dataset again."
            )
        if column(table, "frame_index") != list(range(entry.length)):
            raise DatasetError(
                f"{name}: 'frame_index' does not count from 0 in order. Fetch the dataset again."
            )
        return table

    def _tasks(self, table: pa.Table, name: str) -> tuple[str, ...]:
        found = column(table, "task_index")
        unknown = [index for index in found if index not in self.layout.tasks]
        if unknown:
            raise DatasetError(
                f"{name}: 'task_index' {unknown[0]} is not in the dataset's tasks. Fetch meta again."
            )
        return tuple(self.layout.tasks[index] for index in found)

    def _said(self, table: pa.Table, name: str) -> tuple[str, ...]:
        said = []
        for frame, value in enumerate(column(table, REASONING)):
            if isinstance(value, list):
                if self._tokenizer is None:
                    raise DatasetError(
                        f"{name}: '{REASONING}' holds token ids. Name the tokenizer.json they were made with."
                    )
                value = self._tokenizer.decode([i for i in value if i != PAD_ID], skip_special_tokens=True)
                if THINK not in value or END_THINK not in value:
                    value = ""  # as the reference takes it: a frame without a thought
            if not isinstance(value, str):
                raise DatasetError(
                    f"{name}: '{REASONING}' is missing at frame {frame}. Add it, or leave it out."
                )
            said.append(without_tags(value))
        return tuple(said)

    @staticmethod
    def _times(table: pa.Table, name: str) -> NDArray[np.float64]:
        """Seconds of every frame [T] since the episode began."""
        times = _numbers(table, "timestamp", name)[:, 0].astype(np.float64)
        if not np.isfinite(times).all() or (np.diff(times) <= 0).any():
            raise DatasetError(
                f"{name}: 'timestamp' does not rise from frame to frame. Record the episode anew."
            )
        return times

    def _images(self, entry: EpisodeEntry, table: pa.Table, name: str) -> NDArray[np.uint8]:
        seen = []
        for key in self.cameras:
            where = f"{name}, '{key}'"
            if key in entry.videos:
                span = entry.videos[key]
                times = span.from_s + self._times(table, name)
                frames = decode_video(self.folder / span.path, times.tolist(), self.layout.fps, where)
            else:
                cells = column(table, key)
                decoded = [
                    decode_picture(cell, self.folder, f"{where}, frame {t}") for t, cell in enumerate(cells)
                ]
                if len({picture.shape for picture in decoded}) > 1:
                    raise DatasetError(f"{where}: the pictures differ in size. Record the episode anew.")
                frames = np.stack(decoded)
            if self._image_size is not None:
                frames = np.stack([resize(frame, self._image_size) for frame in frames])
            elif sorted(frames.shape[1:]) != sorted(self.layout.features[key].shape):
                raise DatasetError(
                    f"{where}: the pictures are {list(frames.shape[1:])}, but {INFO} says "
                    f"{list(self.layout.features[key].shape)}. Ask for an image_size."
                )
            seen.append(frames)
        sizes = {key: frames.shape[1:3] for key, frames in zip(self.cameras, seen, strict=True)}
        if len(set(sizes.values())) > 1:
            words = ", ".join(f"'{key}' {height}x{width}" for key, (height, width) in sizes.items())
            raise DatasetError(f"{name}: the cameras differ in size ({words}). Ask for one image_size.")
        return np.stack(seen, axis=1)

    def action_stats(self) -> Mapping[str, Any]:
        """The statistics of the actions in `norm_stats.json`, as the reference's training reads them.

        Raises:
            DatasetError: no such file, or one without actions; names both.
        """
        path = self.folder / NORM_STATS
        if not path.is_file():
            raise DatasetError(
                f"{path} is missing: actions cannot be normalised without it. "
                f"Compute it: python -m training.datasets stats {self.folder}"
            )
        stats = read_json(path).get(ACTION)
        if not isinstance(stats, dict):
            raise DatasetError(
                f"{path}: '{ACTION}' is missing. Compute it anew with training.datasets stats."
            )
        return stats

    def normaliser(self, mask: Sequence[bool] | None = None) -> Normaliser:
        """The normalisation of the actions.

        Args:
            mask: False for dimensions that stay as they are (a gripper), for files that do not say it; the
                reference keeps it in its code: six times True, then False.

        Raises:
            DatasetError: a statistic is missing or unusable; names file and key.
        """
        stats = dict(self.action_stats())
        if mask is not None:
            stats.setdefault("mask", list(mask))
        try:
            return Normaliser.from_stats(stats, self.action_dim, f"{self.folder / NORM_STATS}: {ACTION}")
        except ValueError as error:
            raise DatasetError(str(error)) from None


def _blank(frames: int, cameras: int) -> NDArray[np.uint8]:
    return np.empty((frames, cameras, 0, 0, 3), np.uint8)


def _numbers(table: pa.Table, key: str, name: str) -> NDArray[np.float32]:
    """A column of numbers or (nested) lists of them as float32 [T, ...]; null becomes NaN."""
    values = column(table, key)
    try:
        array = np.array(values, np.float32)
    except (TypeError, ValueError):
        shapes = [_shape(value) for value in values]
        frame = next((t for t, shape in enumerate(shapes) if shape != shapes[0]), 0)
        raise DatasetError(
            f"{name}: '{key}' at frame {frame} is not numbers of one shape (shape {list(shapes[frame])}, at "
            f"frame 0 {list(shapes[0])}). Leave the episode out, or record it anew."
        ) from None
    return array[:, None] if array.ndim == 1 else array


def _shape(value: Any) -> tuple[int, ...]:
    """Lengths of nested lists, along their first members."""
    return (len(value), *_shape(value[0])) if isinstance(value, list) and value else ()
