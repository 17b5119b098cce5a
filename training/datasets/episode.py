"""One episode in memory, and what makes it usable: the same checks for what is read and what is written."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtvla.policy.token_layout import SPECIAL_TOKENS
from training.datasets.errors import DatasetError

ACTION, ACTION_CHUNK, REASONING, STATE = "action", "action_chunk", "reasoning", "observation.state"
SUCCESS = "next.success"
THINK, END_THINK = SPECIAL_TOKENS["think"], SPECIAL_TOKENS["end_think"]


@dataclass(frozen=True, eq=False)
class Episode:
    """T frames of one attempt at a task.

    Attributes:
        name: where it comes from (file and episode), for messages and for resuming.
        images: uint8 [T, cameras, H, W, 3], RGB.
        actions: float32 [T, A], raw robot units, one per frame.
        tasks: the instruction at every frame [T].
        thoughts: what is thought at every frame [T], without tags; None when the dataset has no thoughts.
        chunks: float32 [T, horizon, A], the actions of the next control steps from every frame, where frames
            are further apart than control steps; None when `actions` already says it.
        state: float32 [T, S], proprioception; None when there is none.
        success: whether the task was done at the end; None when the dataset does not say.
    """

    name: str
    images: NDArray[np.uint8]
    actions: NDArray[np.float32]
    tasks: tuple[str, ...]
    thoughts: tuple[str, ...] | None = None
    chunks: NDArray[np.float32] | None = None
    state: NDArray[np.float32] | None = None
    success: bool | None = None

    def __len__(self) -> int:
        return len(self.actions)


def action_chunks(episode: Episode, horizon: int) -> NDArray[np.float32]:
    """The actions [T, horizon, A] from every frame on; at the end the last action is repeated.

    Takes the recorded chunks where the episode has them. Shorter ones are continued with their last action,
    since frames further apart than control steps hold nothing that would fit there.
    """
    if episode.chunks is None:
        repeated = np.repeat(episode.actions[-1:], horizon, axis=0)
        after = np.concatenate([episode.actions, repeated])
        return np.stack([after[t : t + horizon] for t in range(len(episode))])
    missing = max(horizon - episode.chunks.shape[1], 0)
    padded = np.concatenate([episode.chunks, np.repeat(episode.chunks[:, -1:], missing, axis=1)], axis=1)
    return padded[:, :horizon]


def check(episode: Episode, action_dim: int | None = None) -> None:
    """Refuses an episode that nobody should train on or write.

    Raises:
        DatasetError: it is empty, its parts have different lengths, an action has another dimension than
            `action_dim`, or a number is not finite. The sentence names the episode, the key and the frame.
    """
    name, length = episode.name, len(episode.actions)
    if length == 0:
        raise DatasetError(f"{name}: the episode has no frames. Leave it out of the dataset.")
    if episode.actions.ndim != 2:
        raise DatasetError(
            f"{name}: '{ACTION}' must be [frames, dimensions], found {list(episode.actions.shape)}."
        )
    found = episode.actions.shape[1]
    if action_dim is not None and found != action_dim:
        raise DatasetError(
            f"{name}: '{ACTION}' has {found} dimensions, but {action_dim} are expected. "
            "Take a dataset of the same robot, or a model with that action dimension."
        )
    if episode.chunks is not None and (episode.chunks.ndim != 3 or episode.chunks.shape[2] != found):
        raise DatasetError(
            f"{name}: '{ACTION_CHUNK}' must be [frames, horizon, {found}], "
            f"found {list(episode.chunks.shape)}."
        )
    for key, values in ((ACTION, episode.actions), (ACTION_CHUNK, episode.chunks), (STATE, episode.state)):
        if values is not None:
            _check_finite(name, key, values)
    parts: dict[str, Sized | None] = {
        "images": episode.images,
        "task": episode.tasks,
        REASONING: episode.thoughts,
    }
    parts |= {ACTION_CHUNK: episode.chunks, STATE: episode.state}
    for key, part in parts.items():
        if part is not None and len(part) != length:
            raise DatasetError(
                f"{name}: '{key}' has {len(part)} frames, but '{ACTION}' has {length}. "
                "Record the episode anew."
            )


def _check_finite(name: str, key: str, values: NDArray[np.float32]) -> None:
    broken = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    if broken.any():
        raise DatasetError(
            f"{name}: '{key}' holds NaN or infinity at frame {int(np.flatnonzero(broken)[0])}. "
            "Leave the episode out, or record it anew."
        )


def without_tags(text: str) -> str:
    """A thought without the pair of tags that published datasets keep around it."""
    text = text.strip()
    if text.startswith(THINK) and text.endswith(END_THINK):
        text = text[len(THINK) : -len(END_THINK)].strip()
    return text
