"""Recorded episodes (`python -m training.collect`) in memory: pictures, thoughts, the next ten actions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from dtvla.policy.images import resize
from training.datasets.errors import DatasetError

HOLD_OUT = 20  # every 20th seed is for validation
# How often rows of a phase are drawn, by what the thought says comes next: at the grasp centimetres decide.
PHASE_WEIGHTS = {"go down to it": 4.0, "close the gripper": 4.0, "lift it": 2.0}


# Rotation labels below this (in action units: 0.025 rad per step) become 0. The expert's small corrections
# are hard to tell from two pictures of 96 pixels. Not measured: whether the other dimensions learn better.
ROTATION_DEADBAND = 0.05


@dataclass(frozen=True)
class RecordedRow:
    """One look, and what to think and do on it.

    Attributes:
        images: uint8 [cameras, W, W, 3], RGB.
        actions: float32 [horizon, 7], raw actions from this look on.
        thought: without tags; empty where nothing is to be thought.
        instruction: the task.
    """

    images: NDArray[np.uint8]
    actions: NDArray[np.float32]
    thought: str
    instruction: str


@dataclass(frozen=True)
class Frames:
    """A set of episodes: F pictures, R labelled rows (one or more instructions per picture)."""

    images: NDArray[np.uint8]  # [F, 2, W, W, 3]
    picture: NDArray[np.int64]  # [R] which picture a row looks at
    actions: NDArray[np.float32]  # [R, horizon, 7] raw actions from this picture on
    thoughts: list[str]
    instructions: list[str]
    episodes: int

    def __len__(self) -> int:
        return len(self.actions)

    def draw_weights(self) -> NDArray[np.float64]:
        """How often each row is drawn [R], by `PHASE_WEIGHTS`."""
        ahead = [text.rsplit("Next: ", 1)[-1].rstrip(".") for text in self.thoughts]
        return np.array([PHASE_WEIGHTS.get(words, 1.0) for words in ahead])

    def row(self, number: int) -> RecordedRow:
        """One row to learn from."""
        return RecordedRow(
            self.images[self.picture[number]],
            self.actions[number],
            self.thoughts[number],
            self.instructions[number],
        )


def load_frames(folder: Path, image_size: int, horizon: int, *, held_out: bool) -> Frames:
    """Reads the training (or the held-out) episodes of a folder.

    Raises:
        DatasetError: no episodes, or one that is broken (named).
    """
    paths = sorted(folder.glob("*.npz"))
    paths = [p for p in paths if (int(p.stem.rsplit("_", 1)[1]) % HOLD_OUT == 0) == held_out]
    if not paths:
        raise DatasetError(
            f"{folder} holds no episodes. Record some: python -m training.collect --out {folder}"
        )
    images, picture, actions, thoughts, instructions = [], [], [], [], []
    count = 0
    for path in track(paths, description="reading held-out episodes" if held_out else "reading episodes"):
        with np.load(path) as episode:
            action = episode["actions"]
            if action.ndim != 2 or action.shape[1] != 7 or not np.isfinite(action).all():
                raise DatasetError(f"{path}: actions must be finite [T, 7], found shape {action.shape}.")
            chunks = _chunks(action, episode["frames"], horizon)
            images.append(shrink(episode["images"], image_size))
            rows = [(np.arange(len(chunks)), chunks, episode["thoughts"], str(episode["instruction"]))]
            for i, instruction in enumerate(episode.get("other_instructions", ())):
                known = np.flatnonzero(episode["other_thoughts"][:, i] != "")
                said = episode["other_thoughts"][known, i]
                rows.append((known, episode["other_chunks"][known, i, :horizon], said, str(instruction)))
        for frames, chunk, said, instruction in rows:
            picture.append(count + frames)
            actions.append(chunk)
            thoughts += [str(text) for text in said]
            instructions += [instruction] * len(frames)
        count += len(images[-1])
    every = np.concatenate(actions)
    every[..., 3:6] *= np.abs(every[..., 3:6]) >= ROTATION_DEADBAND
    return Frames(np.concatenate(images), np.concatenate(picture), every, thoughts, instructions, len(paths))


def _chunks(actions: NDArray[np.float32], frames: NDArray[np.int32], horizon: int) -> NDArray[np.float32]:
    """The recorded actions [F, horizon, 7] from each frame on; a chunk at the end repeats the last action."""
    after = np.concatenate([actions, np.repeat(actions[-1:], horizon, 0)])
    return np.stack([after[t : t + horizon] for t in frames])


def shrink(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Images [T, C, H, W, 3] resized to `size` by the deployed policy's own function."""
    if images.shape[2:4] == (size, size):
        return images
    small = np.empty((*images.shape[:2], size, size, 3), np.uint8)
    for index in np.ndindex(*images.shape[:2]):
        small[index] = resize(images[index], size)
    return small


def quantiles(actions: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """q01 and q99 of every action dimension [7], from the first action of every chunk."""
    first = actions[:, 0].astype(np.float64)
    return np.quantile(first, 0.01, axis=0), np.quantile(first, 0.99, axis=0)
