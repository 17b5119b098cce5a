"""Small datasets for the tests of training.datasets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from training.datasets.episode import Episode
from training.datasets.lerobot.layout import V30
from training.datasets.lerobot.writing import DatasetWriter

CAMERAS = ("observation.images.image", "observation.images.wrist_image")
FPS = 20 / 3  # what a recording with a look at every third control step has
PIXELS = 16
CODEC_ERROR = 12  # how far H.264 may be off in smooth pictures, of 255


def episode(number: int, frames: int = 6, *, pixels: int = PIXELS, **changes: Any) -> Episode:
    """An episode whose pictures are smooth and say which frame they are; `changes` replaces fields."""
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[:pixels, :pixels] * 4.0
    shade = 20.0 * np.arange(frames)[:, None, None, None] + 60 * np.arange(2)[:, None, None] + 5 * number
    images = np.stack(np.broadcast_arrays(rows, columns, shade), axis=-1).clip(0, 255).astype(np.uint8)
    fields: dict[str, Any] = {
        "name": f"source {number}",
        "images": images,
        "actions": rng.normal(size=(frames, 7)).astype(np.float32),
        "tasks": (("pick it up", "put it down")[number % 2],) * frames,
        "thoughts": tuple(f"thought {t} of {number}" for t in range(frames)),
        "chunks": rng.normal(size=(frames, 10, 7)).astype(np.float32),
        "success": number % 3 != 0,
    }
    return Episode(**fields | changes)


def write(folder: Path, episodes: Sequence[Episode], version: str = V30, *, video: bool = False) -> Path:
    """A dataset of these episodes."""
    with DatasetWriter(folder, version, fps=FPS, cameras=CAMERAS, video=video) as writer:
        for each in episodes:
            writer.add(each)
        return writer.finish()


def change_column(path: Path, key: str, values: Any = None) -> None:
    """Replaces a column of a parquet file, or drops it."""
    table = pq.read_table(path)
    place = table.column_names.index(key)
    kind = table.schema.field(key).type
    table = table.drop_columns([key])
    if values is not None:
        import pyarrow as pa

        try:
            column = pa.array(values, kind)
        except pa.ArrowException:
            column = pa.array(values)
        table = table.add_column(place, key, column)
    pq.write_table(table, path)
