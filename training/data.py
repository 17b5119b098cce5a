"""Recorded episodes as training samples: prompt, thought, ten future actions, two pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from tokenizers import Tokenizer
from torch import Tensor

from dtvla.policy.codec import ActionCodec, Normaliser
from dtvla.policy.images import resize
from dtvla.policy.layout import TokenLayout
from dtvla.policy.prompt import prompt_ids

HOLD_OUT = 20  # every 20th seed is for validation
# How often rows of a phase are drawn, by what the thought says comes next: at the grasp centimetres decide.
PHASE_WEIGHTS = {"go down to it": 4.0, "close the gripper": 4.0, "lift it": 2.0}


# Rotation labels below this (in action units: 0.025 rad per step) become 0. The expert's small corrections
# are hard to tell from two pictures of 96 pixels. Not measured: whether the other dimensions learn better.
ROTATION_DEADBAND = 0.05


class DatasetError(ValueError):
    """The recorded data cannot be used; the message names the file and what is wrong with it."""


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


@dataclass(frozen=True)
class Batch:
    """A right-padded batch (B samples, S positions)."""

    pixels: Tensor  # [2B, 3, W, W] in [-1, 1]
    ids: Tensor  # [B, S]; action slots are layout.SLOT, pads layout.pad
    targets: Tensor  # [B, S] the next id at every supervised row, -100 elsewhere
    prefix_len: Tensor  # [B]
    action_start: Tensor  # [B] index of `<action>`
    length: Tensor  # [B]


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


class Samples:
    """Turns rows into batches; the sample at (seed, step) never depends on anything else."""

    def __init__(
        self,
        frames: Frames,
        tokenizer: Tokenizer,
        layout: TokenLayout,
        codec: ActionCodec,
        normaliser: Normaliser,
        prompt_prefix: str,
    ) -> None:
        self.frames = frames
        self.layout = layout
        self._prompts = {
            text: prompt_ids(tokenizer, layout, text, prompt_prefix) for text in set(frames.instructions)
        }
        tags = (layout.think, layout.end_think, layout.action)
        self._thoughts = {
            text: np.array(
                [tags[0], *tokenizer.encode(text, add_special_tokens=False).ids, *tags[1:]], np.int64
            )
            for text in set(frames.thoughts)
        }
        normalised = normaliser.normalise(frames.actions.astype(np.float64))
        self._action_ids = codec.encode(normalised).reshape(len(frames), layout.slots).astype(np.int64)
        ahead = [text.rsplit("Next: ", 1)[-1].rstrip(".") for text in frames.thoughts]
        self._weights = np.array([PHASE_WEIGHTS.get(words, 1.0) for words in ahead])

    def draw(self, rng: np.random.Generator, size: int, *, weighted: bool = True) -> NDArray[np.int64]:
        """Row indices [size], by `PHASE_WEIGHTS` or uniformly."""
        weight = self._weights if weighted else np.ones(len(self._weights))
        edges = np.cumsum(weight / weight.sum())
        return np.minimum(np.searchsorted(edges, rng.random(size)), len(edges) - 1)

    def batch(self, index: NDArray[np.int64], rng: np.random.Generator | None = None) -> Batch:
        """Assembles a batch; with `rng` the pictures are shifted by some pixels and change brightness."""
        layout = self.layout
        tail = np.concatenate([np.full(layout.slots, -1), [layout.end_action, layout.eos]])
        rows, targets, bounds = [], [], []
        for f in index:
            prompt = self._prompts[self.frames.instructions[f]]
            thought = self._thoughts[self.frames.thoughts[f]]
            n, start = len(prompt), len(prompt) + len(thought) - 1
            rows.append(np.concatenate([prompt, thought, tail]))
            said = np.concatenate([thought, self._action_ids[f], [layout.end_action, layout.eos]])
            target = np.full(len(rows[-1]), -100)
            target[n - 1 : n - 1 + len(said)] = said
            targets.append(target)
            bounds.append((n, start, len(rows[-1])))
        size = max(len(row) for row in rows)
        ids = np.full((len(rows), size), layout.pad)
        labels = np.full((len(rows), size), -100)
        for i, (row, target) in enumerate(zip(rows, targets, strict=True)):
            ids[i, : len(row)] = row
            labels[i, : len(row)] = target
        prefix, start_, length = (torch.tensor(column) for column in zip(*bounds, strict=True))
        pixels = torch.from_numpy(self.frames.images[self.frames.picture[index]])
        return Batch(
            _normalise(pixels if rng is None else _augment(pixels, rng)),
            torch.from_numpy(ids),
            torch.from_numpy(labels),
            prefix,
            start_,
            length,
        )


def _normalise(images: Tensor) -> Tensor:
    """uint8 or float [B, 2, W, W, 3] in 0..255 to [2B, 3, W, W] in [-1, 1]."""
    return images.flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def _augment(images: Tensor, rng: np.random.Generator, shift: int = 4) -> Tensor:
    """Shifts each picture by up to `shift` pixels (edges repeated) and jitters brightness and contrast."""
    count, cameras, size = images.shape[:3]
    out = torch.empty(images.shape, dtype=torch.float32)
    rows = np.arange(size)
    for i in range(count):
        for c in range(cameras):
            dy, dx = rng.integers(-shift, shift + 1, 2)
            y, x = np.clip(rows + dy, 0, size - 1), np.clip(rows + dx, 0, size - 1)
            out[i, c] = images[i, c][y][:, x].float()
    gain = torch.from_numpy(rng.uniform(0.85, 1.15, (count, 1, 1, 1, 1))).float()
    offset = torch.from_numpy(rng.uniform(-15, 15, (count, 1, 1, 1, 1))).float()
    return ((out - 128) * gain + 128 + offset).clamp(0, 255)
