"""One MP4 per episode: the cameras beside what the policy thinks. No ROS."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dtvla.policy.thought_text import lines

VIEW_PX = 384
PANEL_PX = 448
HEADER_PX = 48
FOOTER_PX = 32
THOUGHT_COLUMNS, THOUGHT_LINES = 34, 11
THOUGHT_PITCH_PX = 30
BACKGROUND = (18, 20, 26)
INK = (236, 238, 242)
FAINT = (140, 148, 160)
KEPT = (142, 190, 226)
GOOD = (96, 210, 120)
BAD = (240, 120, 96)
SIZE = (2 * VIEW_PX + PANEL_PX, HEADER_PX + VIEW_PX + FOOTER_PX)


@dataclass(frozen=True)
class Caption:
    """The words of one frame."""

    instruction: str
    thought: str
    decision: str  # which decision, and how long it took
    progress: str  # which step of how many
    outcome: bool | None  # solved, out of steps, or still going
    kept_from: str = ""  # the thought before; words taken over from it have an ink of their own


class Painter:
    """Draws frames: two camera views, a header, the thought beside them."""

    def __init__(self) -> None:
        self._title = ImageFont.load_default(20)
        self._text = ImageFont.load_default(21)
        self._small = ImageFont.load_default(15)

    def frame(self, pictures: Mapping[str, NDArray[np.uint8]], caption: Caption) -> NDArray[np.uint8]:
        """RGB uint8 [SIZE[1], SIZE[0], 3]; pictures are RGB uint8 [H, W, 3] of any size."""
        canvas = Image.new("RGB", SIZE, BACKGROUND)
        draw = ImageDraw.Draw(canvas)
        draw.text((12, 12), caption.instruction, INK, self._title)
        for index, (name, picture) in enumerate(sorted(pictures.items())):
            left = index * VIEW_PX
            view = Image.fromarray(picture).resize((VIEW_PX, VIEW_PX), Image.Resampling.BILINEAR)
            canvas.paste(view, (left, HEADER_PX))
            draw.text((left + 12, HEADER_PX + VIEW_PX + 7), name, FAINT, self._small)
        left = 2 * VIEW_PX + 20
        draw.text((left, HEADER_PX + 6), "The policy thinks", FAINT, self._small)
        self._thought(draw, left, caption)
        draw.text((left, HEADER_PX + VIEW_PX - 22), caption.decision, FAINT, self._small)
        draw.text((left, HEADER_PX + VIEW_PX + 7), caption.progress, FAINT, self._small)
        if caption.outcome is not None:
            words, colour = ("solved", GOOD) if caption.outcome else ("not solved", BAD)
            draw.text((SIZE[0] - 12, 12), words, colour, self._title, anchor="ra")
        return np.asarray(canvas)

    def _thought(self, draw: ImageDraw.ImageDraw, left: int, caption: Caption) -> None:
        blank = self._text.getlength(" ")
        for row, line in enumerate(lines(caption.thought, THOUGHT_COLUMNS, THOUGHT_LINES, caption.kept_from)):
            x = float(left)
            for word, kept in zip(line.words, line.kept, strict=True):
                place = x, HEADER_PX + 34 + row * THOUGHT_PITCH_PX
                draw.text(place, word, KEPT if kept else INK, self._text)
                x += self._text.getlength(word) + blank


class EpisodeVideo:
    """An MP4 file (H.264) that grows frame by frame.

    Args:
        path: the file to write.
        frame_rate_hz: frames per second of the video.
    """

    def __init__(self, path: Path, frame_rate_hz: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        # In fragments of a second, each whole on the disk: a video that nobody could close is still a video.
        self._container = av.open(
            str(path), "w", options={"movflags": "frag_keyframe+empty_moov", "flush_packets": "1"}
        )
        rate = Fraction(frame_rate_hz).limit_denominator(1000)
        self._stream = self._container.add_stream(
            "libx264", rate=rate, options={"preset": "ultrafast", "crf": "23"}
        )
        self._stream.width, self._stream.height = SIZE
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.gop_size = max(1, round(frame_rate_hz))
        self._stream.codec_context.thread_count = 1  # the policy needs the other cores more

    def add(self, frame: NDArray[np.uint8], times: int = 1) -> None:
        """Appends a frame (RGB uint8 [SIZE[1], SIZE[0], 3]), `times` times."""
        for _ in range(times):
            for packet in self._stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                self._container.mux(packet)

    def close(self) -> None:
        """Writes the rest, at most the last second."""
        for packet in self._stream.encode():
            self._container.mux(packet)
        self._container.close()
