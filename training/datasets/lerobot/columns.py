"""The columns of a dataset that we write: LeRobot's features, an Arrow schema, the rows of an episode."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from training.datasets.episode import ACTION, ACTION_CHUNK, REASONING, STATE, SUCCESS, Episode
from training.datasets.errors import DatasetError
from training.datasets.lerobot.pictures import encode_picture

COUNTERS = ("frame_index", "episode_index", "index", "task_index")  # LeRobot's own, int64, beside `timestamp`
PNG_NAME = "frame-{:06d}.png"


@dataclass(frozen=True)
class Columns:
    """What every episode of a dataset has in common.

    Attributes:
        cameras: feature keys, in the order of `Episode.images`.
        video: cameras are videos rather than PNG images.
        height, width: of every picture, in pixels.
        action_dim, chunk, state_dim: sizes; 0 for a column that the dataset does not have.
        thoughts, success: whether the dataset has these columns.
    """

    cameras: tuple[str, ...]
    video: bool
    height: int
    width: int
    action_dim: int
    chunk: int
    state_dim: int
    thoughts: bool
    success: bool

    @classmethod
    def of(cls, episode: Episode, cameras: Sequence[str], video: bool) -> Columns:
        """The columns that this episode fills."""
        return cls(
            cameras=tuple(cameras),
            video=video,
            height=episode.images.shape[2],
            width=episode.images.shape[3],
            action_dim=episode.actions.shape[1],
            chunk=0 if episode.chunks is None else episode.chunks.shape[1],
            state_dim=0 if episode.state is None else episode.state.shape[1],
            thoughts=episode.thoughts is not None,
            success=episode.success is not None,
        )

    def require(self, episode: Episode) -> None:
        """Refuses an episode that would not fill these columns.

        Raises:
            DatasetError: names the episode and what differs.
        """
        if episode.images.shape[1:2] != (len(self.cameras),):
            raise DatasetError(
                f"{episode.name}: 'images' has {episode.images.shape[1]} cameras, but the dataset has "
                f"{len(self.cameras)} ({', '.join(self.cameras)})."
            )
        if self.video and (self.height % 2 or self.width % 2):
            raise DatasetError(
                f"{episode.name}: a video needs an even height and width, not {self.height}x{self.width}. "
                "Write images instead."
            )
        found, wanted = asdict(Columns.of(episode, self.cameras, self.video)), asdict(self)
        differs = [key for key in wanted if found[key] != wanted[key]]
        if differs:
            key = differs[0]
            raise DatasetError(
                f"{episode.name}: {key} is {found[key]}, but the dataset's other episodes have "
                f"{wanted[key]}. Write it into a dataset of its own."
            )

    def features(self, fps: float) -> dict[str, dict[str, Any]]:
        """The `features` of info.json."""
        picture: dict[str, Any] = {
            "dtype": "video" if self.video else "image",
            "shape": [self.height, self.width, 3],
            "names": ["height", "width", "channels"],
        }
        if self.video:
            picture["info"] = {
                "video.height": self.height,
                "video.width": self.width,
                "video.codec": "h264",
                "video.pix_fmt": "yuv420p",
                "video.is_depth_map": False,
                "video.fps": fps,
                "video.channels": 3,
                "has_audio": False,
            }
        features = {key: dict(picture) for key in self.cameras}
        for key, (dtype, shape) in self._values().items():
            features[key] = {"dtype": dtype, "shape": list(shape), "names": None}
        return features

    def _values(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """dtype and shape of every column that is no picture."""
        values: dict[str, tuple[str, tuple[int, ...]]] = {ACTION: ("float32", (self.action_dim,))}
        if self.chunk:
            values[ACTION_CHUNK] = ("float32", (self.chunk, self.action_dim))
        if self.state_dim:
            values[STATE] = ("float32", (self.state_dim,))
        if self.thoughts:
            values[REASONING] = ("string", (1,))
        if self.success:
            values[SUCCESS] = ("bool", (1,))
        values["timestamp"] = ("float32", (1,))
        return values | dict.fromkeys(COUNTERS, ("int64", (1,)))

    def schema(self) -> pa.Schema:
        """The Arrow schema of the data files.

        Its metadata are for Hugging Face's `datasets`, with which lerobot reads: without them a picture would
        come back as bytes. A list is called Sequence there, which its versions 2 to 4 understand.
        """
        fields, described = [], {}
        for key in () if self.video else self.cameras:
            fields.append(pa.field(key, pa.struct([("bytes", pa.binary()), ("path", pa.string())])))
            described[key] = {"_type": "Image"}
        for key, (dtype, shape) in self._values().items():
            kind = {"bool": pa.bool_(), "string": pa.string()}.get(dtype) or getattr(pa, dtype)()
            value: dict[str, Any] = {"dtype": dtype, "_type": "Value"}
            if len(shape) == 2:
                kind = pa.list_(pa.list_(kind))
                value = {"shape": list(shape), "dtype": dtype, "_type": "Array2D"}
            elif shape != (1,):  # that is a scalar to lerobot, also for a one-dimensional action
                kind = pa.list_(kind, shape[0])
                value = {"feature": value, "length": shape[0], "_type": "Sequence"}
            fields.append(pa.field(key, kind))
            described[key] = value
        words = json.dumps({"info": {"features": described}})
        return pa.schema(fields, metadata={"huggingface": words})

    def table(self, episode: Episode, counters: Mapping[str, NDArray[np.int64]], fps: float) -> pa.Table:
        """The rows of one episode; `counters` are LeRobot's index columns [T]."""
        values = self.arrays(episode, counters, fps)
        cells: dict[str, Any] = {
            key: array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array.tolist()
            for key, array in values.items()
        }
        if episode.thoughts is not None:
            cells[REASONING] = list(episode.thoughts)
        for camera, key in enumerate(() if self.video else self.cameras):
            pictures = episode.images[:, camera]
            cells[key] = [
                {"bytes": encode_picture(picture), "path": PNG_NAME.format(t)}
                for t, picture in enumerate(pictures)
            ]
        schema = self.schema()
        return pa.table(
            {name: pa.array(cells[name], schema.field(name).type) for name in schema.names}, schema
        )

    def arrays(
        self, episode: Episode, counters: Mapping[str, NDArray[np.int64]], fps: float
    ) -> dict[str, NDArray[Any]]:
        """The columns that hold numbers, each [T, ...]; what statistics are made of."""
        frames = len(episode)
        values: dict[str, NDArray[Any]] = {ACTION: episode.actions}
        if episode.chunks is not None:
            values[ACTION_CHUNK] = episode.chunks
        if episode.state is not None:
            values[STATE] = episode.state
        if episode.success is not None:
            done = np.zeros((frames, 1), bool)
            done[-1] = episode.success
            values[SUCCESS] = done
        values["timestamp"] = (np.arange(frames) / fps).astype(np.float32)[:, None]
        return values | {key: counters[key][:, None] for key in COUNTERS}
