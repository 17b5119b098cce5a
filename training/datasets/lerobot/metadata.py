"""The `meta` folder of a dataset that we write, for LeRobot v2.1 and v3.0."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from training.datasets.lerobot.columns import Columns
from training.datasets.lerobot.layout import (
    DATA_PATH,
    EPISODES_STATS_V2,
    EPISODES_V2,
    EPISODES_V3,
    FILES_PER_CHUNK,
    INFO,
    STATS,
    TASKS_V2,
    TASKS_V3,
    V21,
    VIDEO_PATH,
)
from training.datasets.lerobot.stats import Stats, plain, together, write_json

DATA_MB, VIDEO_MB = 100, 200  # LeRobot's own limits of a file


@dataclass(frozen=True)
class Written:
    """One episode that is safely on disk."""

    name: str  # of its source
    length: int  # frames
    tasks: list[str]
    file: int  # number of its data file and of its videos; in v2.1 the episode's own number
    from_frame: int  # at which frame of these files it begins
    stats: dict[str, dict[str, Any]]  # `stats.of_numbers` and `of_pictures` as lists


def write_meta(
    folder: Path,
    version: str,
    columns: Columns,
    fps: float,
    episodes: Sequence[Written],
    tasks: Sequence[str],
    notes: Mapping[str, Any],
) -> None:
    """Writes everything in `meta` but norm_stats.json.

    Args:
        folder: of the dataset.
        version: V21 or V30.
        columns: of every episode.
        fps: frames per second.
        episodes: in the order of their index.
        tasks: in the order of their index.
        notes: more fields of info.json; LeRobot ignores those it does not know.
    """
    rate = int(fps) if float(fps).is_integer() else fps
    info: dict[str, Any] = {
        "codebase_version": version,
        "robot_type": None,
        "total_episodes": len(episodes),
        "total_frames": sum(episode.length for episode in episodes),
        "total_tasks": len(tasks),
        "chunks_size": FILES_PER_CHUNK,
        "fps": rate,
        "splits": {"train": f"0:{len(episodes)}"},
        "data_path": DATA_PATH[version],
        "video_path": VIDEO_PATH[version] if columns.video else None,
        "features": columns.features(rate),
    }
    if version == V21:
        videos = len(columns.cameras) * len(episodes) if columns.video else 0
        info |= {"total_videos": videos, "total_chunks": -(-len(episodes) // FILES_PER_CHUNK)}
    else:
        info |= {"data_files_size_in_mb": DATA_MB, "video_files_size_in_mb": VIDEO_MB}
    write_json(folder / INFO, info | dict(notes))
    if version == V21:
        _write_v21(folder, episodes, tasks)
    else:
        _write_v30(folder, columns, rate, episodes, tasks)


def overall(episodes: Sequence[Written], exact: Mapping[str, Stats]) -> dict[str, dict[str, Any]]:
    """stats.json: LeRobot's sum over the episodes, with exact statistics where we have them."""
    return plain(together([episode.stats for episode in episodes]) | dict(exact))


def write_stats(folder: Path, stats: Mapping[str, Any]) -> None:
    """Writes stats.json, which v3.0 needs; lerobot adds up v2.1's from episodes_stats.jsonl."""
    write_json(folder / STATS, stats)


def _write_v21(folder: Path, episodes: Sequence[Written], tasks: Sequence[str]) -> None:
    rows = [
        {"episode_index": index, "tasks": episode.tasks, "length": episode.length}
        for index, episode in enumerate(episodes)
    ]
    _write_lines(folder / EPISODES_V2, rows)
    _write_lines(folder / TASKS_V2, [{"task_index": i, "task": task} for i, task in enumerate(tasks)])
    stats = [{"episode_index": index, "stats": episode.stats} for index, episode in enumerate(episodes)]
    _write_lines(folder / EPISODES_STATS_V2, stats)


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_v30(
    folder: Path, columns: Columns, fps: float, episodes: Sequence[Written], tasks: Sequence[str]
) -> None:
    rows, first = [], 0
    for index, episode in enumerate(episodes):
        chunk, file = divmod(episode.file, FILES_PER_CHUNK)
        row: dict[str, Any] = {
            "episode_index": index,
            "tasks": episode.tasks,
            "length": episode.length,
            "data/chunk_index": chunk,
            "data/file_index": file,
            "dataset_from_index": first,
            "dataset_to_index": first + episode.length,
        }
        for key in columns.cameras if columns.video else ():
            row[f"videos/{key}/chunk_index"] = chunk
            row[f"videos/{key}/file_index"] = file
            row[f"videos/{key}/from_timestamp"] = episode.from_frame / fps
            row[f"videos/{key}/to_timestamp"] = (episode.from_frame + episode.length) / fps
        for key, each in episode.stats.items():
            row |= {f"stats/{key}/{name}": value for name, value in each.items()}
        row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        rows.append(row)
        first += episode.length
    path = folder / EPISODES_V3 / "chunk-000/file-000.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    pq.write_table(_tasks_frame(tasks), folder / TASKS_V3)


def _tasks_frame(tasks: Sequence[str]) -> pa.Table:
    """The tasks as pandas would write them with the text as index: lerobot reads the file with pandas."""

    def described(name: str, kind: str, numpy_kind: str) -> dict[str, Any]:
        return {
            "name": name,
            "field_name": name,
            "pandas_type": kind,
            "numpy_type": numpy_kind,
            "metadata": None,
        }

    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [described("task_index", "int64", "int64"), described("task", "unicode", "object")],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.3.3",
    }
    schema = pa.schema([("task_index", pa.int64()), ("task", pa.string())], {"pandas": json.dumps(pandas)})
    return pa.table({"task_index": range(len(tasks)), "task": list(tasks)}, schema)
