"""Pictures of an episode: PNG or JPEG bytes in parquet, or frames of a video found by their timestamps."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.datasets.errors import DatasetError

# Where a frame may lie, as a share of the time between two frames: a neighbour is never taken for it.
TOLERANCE = 0.25
CODEC, PIXELS = "libx264", "yuv420p"  # what every player and lerobot decode
CRF = 18  # visually lossless; lerobot's 30 is for its AV1 encoder
KEYFRAME_EVERY = 2  # lerobot's own choice: a frame is found after decoding one other at most
_FPS_DENOMINATOR = 1001  # 29.97 is 30000/1001; 20/3 is a rate of ours


def decode_picture(cell: Any, folder: Path, where: str) -> NDArray[np.uint8]:
    """An image cell ({"bytes", "path"}, as Hugging Face stores it) as RGB uint8 [H, W, 3].

    Raises:
        DatasetError: no picture in it, or one that does not decode.
    """
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if data is None and isinstance(cell, dict) and cell.get("path"):
        path = Path(cell["path"])
        if path.is_absolute() or ".." in path.parts or not (folder / path).is_file():
            raise DatasetError(
                f"{where}: the picture {path} is not in the dataset's folder. Embed the pictures."
            )
        data = (folder / path).read_bytes()
    if not isinstance(data, bytes):
        raise DatasetError(f"{where}: there is no picture. Leave the episode out, or record it anew.")
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{where}: the picture does not decode ({error}). Fetch the file again.") from None


def encode_picture(image: NDArray[np.uint8]) -> bytes:
    """RGB uint8 [H, W, 3] as PNG: nothing is lost."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def decode_video(path: Path, seconds: Sequence[float], fps: float, where: str) -> NDArray[np.uint8]:
    """The frames of a video at these times, as RGB uint8 [T, H, W, 3]; one pass over that part of the file.

    Args:
        path: the video.
        seconds: ascending presentation times in the file [T].
        fps: frames per second of the dataset; says how near a frame must be.
        where: episode and key, for messages.

    Raises:
        DatasetError: the file is missing or broken, or has no frame at one of the times.
    """
    if not path.is_file():
        raise DatasetError(f"{where}: the video {path} is missing. Fetch the dataset again.")
    frames: list[NDArray[np.uint8]] = []
    try:
        for time, frame in _frames_from(path, seconds[0]):
            while len(frames) < len(seconds) and abs(time - seconds[len(frames)]) <= TOLERANCE / fps:
                frames.append(frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False))
            if len(frames) == len(seconds) or time > seconds[len(frames)] + TOLERANCE / fps:
                break
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise DatasetError(f"{where}: the video {path} does not decode ({error}). Fetch it again.") from None
    if len(frames) < len(seconds):
        raise DatasetError(
            f"{where}: the video {path} has no frame at {seconds[len(frames)]:.4f} s (frame {len(frames)} of "
            "the episode). It is cut off or belongs to another recording; fetch it again."
        )
    return np.stack(frames)


def _frames_from(path: Path, start_s: float) -> Iterator[tuple[float, av.VideoFrame]]:
    """Frames with their times in seconds, from the keyframe before `start_s` on."""
    # A decoder that conceals errors would hand out grey pictures.
    with av.open(str(path), options={"err_detect": "explode"}) as container:
        if not container.streams.video:
            raise ValueError("there is no video stream in it")
        stream = container.streams.video[0]
        if stream.codec_context is None:  # a damaged header; PyAV's types do not say so
            raise ValueError("its codec is not known")
        stream.codec_context.thread_count = 1  # the training has the other cores
        stream.codec_context.options = {"err_detect": "explode"}
        if stream.time_base is not None:
            container.seek(max(int(start_s / stream.time_base), 0), stream=stream)
        for frame in container.decode(stream):
            if frame.is_corrupt:
                raise ValueError(f"a frame at {frame.time} s is damaged")
            if frame.time is not None:
                yield frame.time, frame


class VideoWriter:
    """Appends frames to an MP4 (H.264, yuv420p: colour at half size, so height and width must be even).

    A context manager: leaving it ends the file.
    """

    def __init__(self, path: Path, fps: float, height: int, width: int) -> None:
        rate = Fraction(fps).limit_denominator(_FPS_DENOMINATOR)
        self._container = av.open(str(path), "w", format="mp4")
        # No B-frames: pictures stand in the file in the order in which they are shown, from time 0 on.
        options = {"crf": str(CRF), "g": str(KEYFRAME_EVERY), "bf": "0", "threads": "1"}
        stream = self._container.add_stream(CODEC, rate=rate, options=options)
        assert isinstance(stream, av.VideoStream)
        self._stream = stream
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, PIXELS
        self._stream.codec_context.time_base = 1 / rate
        self.frames = 0

    def add(self, images: NDArray[np.uint8]) -> None:
        """RGB uint8 [T, H, W, 3], in order."""
        for image in images:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts = self.frames
            frame.time_base = self._stream.codec_context.time_base
            self._container.mux(self._stream.encode(frame))
            self.frames += 1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the file; without this it cannot be played."""
        self._container.mux(self._stream.encode(None))
        self._container.close()
