"""The episodes that training.collect records (npz), as episodes of a LeRobot dataset.

A recording has an action for every control step (20 per second), but pictures and thoughts only of every n-th
step. A LeRobot frame needs a picture, so a frame is a step that was looked at, and the dataset has 20 / n
frames per second: `action` is the action of that step, and the column `action_chunk` [10, 7] holds those of
this and the next nine control steps, which our reader takes for training. Who reads `action` alone, as
lerobot's own policies do, sees the actions of every n-th step.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.datasets.episode import Episode
from training.datasets.errors import DatasetError

CONTROL_HZ = (
    20  # 1 / dtvla.sim.env.CONTROL_PERIOD_S, which a test compares; importing it starts the simulator
)
CHUNK = 10  # the recorder's HORIZON, and the published model's
# The names that the reference's loader asks for; the recorder's order is agentview, wrist.
CAMERAS = ("observation.images.image", "observation.images.wrist_image")
_NEEDED = ("actions", "frames", "images", "thoughts", "instruction")


@dataclass(frozen=True)
class Recording:
    """One npz file, and how many control steps lie between its frames."""

    path: Path
    every: int


def find_recordings(source: Path, every: int | None = None) -> tuple[list[Recording], list[str]]:
    """The recordings of a folder that have the same time between frames.

    Args:
        source: the folder of the npz files.
        every: take only those with this many control steps between frames; None wants all to agree.

    Returns: the recordings in the order of their names, and a sentence for each that cannot be read.

    Raises:
        DatasetError: there are none, or they differ and `every` does not choose.
    """
    found, broken = [], []
    for path in sorted(source.glob("*.npz")):
        try:
            found.append(Recording(path, _step(path)))
        except DatasetError as error:
            broken.append(str(error))
    if not found:
        raise DatasetError(
            broken[0]
            if broken
            else f"{source} holds no episodes. Record some: python -m training.collect --out {source}"
        )
    kinds = sorted({recording.every for recording in found})
    if every is None and len(kinds) > 1:
        counts = ", ".join(f"{sum(r.every == kind for r in found)} of every {kind}" for kind in kinds)
        raise DatasetError(
            f"{source} holds recordings that looked at different steps ({counts}), and a dataset has one "
            f"rate of frames. Choose with --every {kinds[0]}, and write one dataset for each."
        )
    chosen = [recording for recording in found if every in (None, recording.every)]
    if not chosen:
        raise DatasetError(
            f"{source} has no recording with a look at every {every} steps; there are those of {kinds}."
        )
    return chosen, broken


def _step(path: Path) -> int:
    frames = _read(path, ("frames",))["frames"]
    steps = set(np.diff(frames).tolist())
    if len(steps) != 1 or min(steps) < 1:
        raise DatasetError(
            f"{path}: 'frames' must be steps at one distance, two at least; found {sorted(steps)}."
        )
    return int(steps.pop())


def _read(path: Path, keys: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            absent = [key for key in keys if key not in arrays]
            if absent:
                raise DatasetError(f"{path}: '{absent[0]}' is missing. Record the episode anew.")
            return {key: arrays[key] for key in (*keys, *optional) if key in arrays}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{path} is no readable recording ({error}). Record the episode anew.") from None


def read_recording(path: Path, *, others: bool = False) -> Iterator[Episode]:
    """The episodes in a recording: the recorded one, and with `others` one for each other instruction.

    Those hold the frames from the start up to the first without a label of the other instruction's expert.

    Raises:
        DatasetError: the file is broken; names file and key.
    """
    extra = ("success", "other_instructions", "other_thoughts", "other_chunks")
    arrays = _read(path, _NEEDED, extra)
    actions, frames, images = arrays["actions"], arrays["frames"], arrays["images"]
    if actions.ndim != 2 or not 0 <= frames.min() <= frames.max() < len(actions):
        raise DatasetError(
            f"{path}: 'frames' points outside of 'actions' {list(actions.shape)}. Record it anew."
        )
    padded = np.concatenate([actions, np.repeat(actions[-1:], CHUNK, axis=0)]).astype(np.float32)
    chunks = np.stack([padded[t : t + CHUNK] for t in frames])
    success = bool(arrays["success"]) if "success" in arrays else None
    task = str(arrays["instruction"])
    said = tuple(str(text) for text in arrays["thoughts"])
    yield Episode(path.name, images, chunks[:, 0], (task,) * len(frames), said, chunks, None, success)
    for i, instruction in enumerate(arrays.get("other_instructions", ()) if others else ()):
        texts = [str(text) for text in arrays["other_thoughts"][:, i]]
        known = texts.index("") if "" in texts else len(texts)
        if known:
            chunks = arrays["other_chunks"][:known, i].astype(np.float32)
            tasks = (str(instruction),) * known
            name = f"{path.name}#{i}"
            # The other task was not done, whatever became of the recorded one.
            failed = None if success is None else False
            yield Episode(
                name, images[:known], chunks[:, 0], tasks, tuple(texts[:known]), chunks, None, failed
            )
