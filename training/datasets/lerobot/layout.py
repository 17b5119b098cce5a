"""Where LeRobot keeps what: `meta/info.json`, episodes and tasks of v2.0, v2.1 and v3.0.

v2.x has one parquet file and one video per camera for every episode, and JSON lines beside `info.json`;
v3.0 packs many episodes into each file and says in `meta/episodes` where an episode begins and ends.
Facts are from lerobot 0.3.3 (v2.1) and 0.4.4 (v3.0). Nothing found in a dataset is trusted: a path template
may hold only the placeholders LeRobot has, and leads nowhere outside the folder.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from string import Formatter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from training.datasets.errors import DatasetError

V20, V21, V30 = "v2.0", "v2.1", "v3.0"
VERSIONS = (V20, V21, V30)
INFO, STATS, NORM_STATS = "meta/info.json", "meta/stats.json", "meta/norm_stats.json"
EPISODES_V2, TASKS_V2 = "meta/episodes.jsonl", "meta/tasks.jsonl"
EPISODES_STATS_V2 = "meta/episodes_stats.jsonl"
EPISODES_V3, TASKS_V3 = "meta/episodes", "meta/tasks.parquet"
DATA_PATH = {
    V21: "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    V30: "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
}
VIDEO_PATH = {
    V21: "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    V30: "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}
FILES_PER_CHUNK = 1000
_PLACEHOLDERS = {"episode_chunk", "episode_index", "video_key", "chunk_index", "file_index"}
_FORMATS = {"", "03d", "06d"}


@dataclass(frozen=True)
class Feature:
    """A column of the dataset: its LeRobot dtype ("image" and "video" are cameras) and the shape of a row."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def is_camera(self) -> bool:
        return self.dtype in ("image", "video")


@dataclass(frozen=True)
class VideoSpan:
    """Where an episode's frames of one camera are: the file, and the second at which they begin in it."""

    path: Path
    from_s: float


@dataclass(frozen=True)
class EpisodeEntry:
    """What the metadata says of one episode."""

    index: int
    length: int  # frames
    data: Path
    videos: Mapping[str, VideoSpan] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.data}, episode {self.index}"


@dataclass(frozen=True)
class Layout:
    """A dataset folder's metadata, read and checked."""

    folder: Path
    version: str
    fps: float
    features: Mapping[str, Feature]
    tasks: Mapping[int, str]
    episodes: tuple[EpisodeEntry, ...]
    info: Mapping[str, Any] = field(repr=False, compare=False, default_factory=dict)

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(key for key, feature in self.features.items() if feature.is_camera)

    @property
    def frames(self) -> int:
        return sum(episode.length for episode in self.episodes)


def open_layout(folder: Path) -> Layout:
    """Reads a dataset's metadata.

    Raises:
        DatasetError: no dataset, another version, or metadata that contradict themselves; names file and key.
    """
    path = folder / INFO
    if not path.is_file():
        raise DatasetError(
            f"{folder} is no LeRobot dataset: {INFO} is missing. "
            "Name the folder that holds meta, data and videos."
        )
    info = read_json(path)
    version = str(info.get("codebase_version", ""))
    if version not in VERSIONS:
        raise DatasetError(
            f"{path}: codebase_version is {version!r}; {', '.join(VERSIONS)} can be read. "
            "Convert it with the scripts that lerobot brings."
        )
    fps = info.get("fps")
    if not isinstance(fps, (int, float)) or isinstance(fps, bool) or not math.isfinite(fps) or fps <= 0:
        raise DatasetError(f"{path}: fps must be a number above 0, not {fps!r}.")
    features = _features(path, info)
    tasks = _tasks_v3(folder / TASKS_V3) if version == V30 else _tasks_v2(folder / TASKS_V2)
    read = _episodes_v3 if version == V30 else _episodes_v2
    episodes = read(folder, info, [key for key, feature in features.items() if feature.dtype == "video"])
    if not episodes:
        raise DatasetError(f"{folder} holds no episodes. Record or convert some first.")
    ordered = tuple(sorted(episodes, key=lambda entry: entry.index))
    twice = next((a.index for a, b in pairwise(ordered) if a.index == b.index), None)
    if twice is not None:
        raise DatasetError(f"{folder}/meta names episode {twice} twice. Fetch the dataset again.")
    return Layout(folder, version, float(fps), features, tasks, ordered, info)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        DatasetError: it cannot be read, or is something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read: {error}. Fetch the dataset again.") from None
    if not isinstance(data, dict):
        raise DatasetError(f"{path} must hold a JSON object. Fetch the dataset again.")
    return data


def _features(path: Path, info: Mapping[str, Any]) -> dict[str, Feature]:
    raw = info.get("features")
    if not isinstance(raw, dict) or not raw:
        raise DatasetError(f"{path}: features is missing; it names the columns with dtype and shape.")
    features = {}
    for key, value in raw.items():
        shape = value.get("shape") if isinstance(value, dict) else None
        if not isinstance(shape, list) or not all(isinstance(size, int) for size in shape):
            raise DatasetError(
                f"{path}: features.{key}.shape must be a list of whole numbers, not {shape!r}."
            )
        features[key] = Feature(str(value.get("dtype")), tuple(shape))
    return features


def _lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read: {error}. Fetch the dataset again.") from None
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DatasetError(f"{path}, line {number} is no JSON: {error}. Fetch it again.") from None
            if not isinstance(row, dict):
                raise DatasetError(f"{path}, line {number} must hold a JSON object. Fetch it again.")
            rows.append(row)
    return rows


def _count(row: Mapping[str, Any], key: str, where: Path, least: int = 0) -> int:
    """A whole number of at least `least`."""
    value = row.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise DatasetError(f"{where}: {key} must be a whole number of at least {least}, not {value!r}.")
    return value


def _tasks_v2(path: Path) -> dict[int, str]:
    return {_count(row, "task_index", path): str(row.get("task", "")) for row in _lines(path)}


def _tasks_v3(path: Path) -> dict[int, str]:
    table = read_table(path)
    # pandas keeps an index without a name under `__index_level_0__`: lerobot 0.4 writes that.
    words = [name for name in ("task", "__index_level_0__") if name in table.column_names]
    if not words or "task_index" not in table.column_names:
        raise DatasetError(f"{path} must have the columns task and task_index, not {table.column_names}.")
    return {_count(row, "task_index", path): str(row[words[0]]) for row in table.to_pylist()}


def _episodes_v2(folder: Path, info: Mapping[str, Any], videos: list[str]) -> list[EpisodeEntry]:
    path = folder / EPISODES_V2
    per_chunk = _count({"chunks_size": FILES_PER_CHUNK, **info}, "chunks_size", folder / INFO, 1)
    entries = []
    for row in _lines(path):
        index, length = _count(row, "episode_index", path), _count(row, "length", path, 1)
        place = {"episode_index": index, "episode_chunk": index // per_chunk}
        spans = {
            key: VideoSpan(expand(folder, info, "video_path", video_key=key, **place), 0.0) for key in videos
        }
        entries.append(EpisodeEntry(index, length, expand(folder, info, "data_path", **place), spans))
    return entries


def _episodes_v3(folder: Path, info: Mapping[str, Any], videos: list[str]) -> list[EpisodeEntry]:
    paths = sorted((folder / EPISODES_V3).glob("chunk-*/file-*.parquet"))
    if not paths:
        raise DatasetError(f"{folder / EPISODES_V3} holds no parquet file. Fetch the dataset again.")
    wanted = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    wanted += [
        f"videos/{key}/{part}" for key in videos for part in ("chunk_index", "file_index", "from_timestamp")
    ]
    entries = []
    for path in paths:
        for row in read_table(path, columns=wanted).to_pylist():

            def place(prefix: str, row: dict[str, Any] = row, path: Path = path) -> dict[str, int]:
                return {part: _count(row, f"{prefix}/{part}", path) for part in ("chunk_index", "file_index")}

            spans = {}
            for key in videos:
                from_s = row[f"videos/{key}/from_timestamp"]
                if not isinstance(from_s, (int, float)) or not math.isfinite(from_s):
                    raise DatasetError(
                        f"{path}, episode {row['episode_index']}: videos/{key}/from_timestamp is {from_s!r}."
                    )
                video = expand(folder, info, "video_path", video_key=key, **place(f"videos/{key}"))
                spans[key] = VideoSpan(video, float(from_s))
            data = expand(folder, info, "data_path", **place("data"))
            index, length = _count(row, "episode_index", path), _count(row, "length", path, 1)
            entries.append(EpisodeEntry(index, length, data, spans))
    return entries


def expand(folder: Path, info: Mapping[str, Any], key: str, **values: int | str) -> Path:
    """A path template of info.json, filled in, relative to the folder.

    Raises:
        DatasetError: the template is missing, holds something else than LeRobot's placeholders (a format
            string can read attributes of its arguments), or leaves the folder.
    """
    template = info.get(key)
    where = folder / INFO
    if not isinstance(template, str):
        raise DatasetError(f"{where}: {key} is missing; it says where the files are.")
    try:
        parts = [(name, form) for _, name, form, _ in Formatter().parse(template) if name is not None]
        if not all(name in _PLACEHOLDERS and form in _FORMATS for name, form in parts):
            raise ValueError
        path = Path(template.format(**values))
    except (KeyError, ValueError):
        raise DatasetError(
            f"{where}: {key} is {template!r}, which is no path template of LeRobot's."
        ) from None
    if path.is_absolute() or ".." in path.parts:
        raise DatasetError(f"{where}: {key} leads out of the dataset's folder ({path}).")
    return path


def read_table(
    path: Path, columns: list[str] | None = None, filters: Any = None, where: str | None = None
) -> pa.Table:
    """Rows of a parquet file, on this thread only (a loader shares the machine with the training).

    Raises:
        DatasetError: the file is missing, broken, or lacks a column; names `where` or the file, and column.
    """
    where = where or str(path)
    if not path.is_file():
        raise DatasetError(f"{where}: the file is missing. Fetch or record the dataset again.")
    try:
        if columns is not None:
            absent = [name for name in columns if name not in pq.read_schema(path).names]
            if absent:
                raise DatasetError(f"{where}: there is no column '{absent[0]}'. Fetch the dataset again.")
        return pq.read_table(path, columns=columns, filters=filters, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"{where}: no readable parquet file ({error}). Fetch it again.") from None


def column(table: pa.Table, name: str) -> list[Any]:
    """A column's values as Python objects."""
    values: list[Any] = table.column(name).to_pylist()
    return values
