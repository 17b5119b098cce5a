"""What one episode leaves for the learner: what was seen, thought and done, and how likely that was."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dtvla.policy.decoding import is_complete
from dtvla.policy.token_layout import TokenLayout


class RolloutJob(NamedTuple):
    """One episode to play. Equal jobs with equal weights give equal episodes."""

    task: int
    seed: int
    member: int = 0  # of its group
    draw: int = 0  # number of the group in the run; the seed of the draws
    greedy: bool = False


@dataclass(frozen=True)
class DecisionStep:
    """One decision of an episode.

    `thought` are the ids that were drawn; one that the cap has cut is closed with tags that nobody drew.
    """

    pixels: NDArray[np.uint8]  # [cameras, S, S, 3], turned and resized
    thought: NDArray[np.int64]  # [m]
    columns: NDArray[np.int16]  # [slots]
    thought_log_probs: NDArray[np.float32]  # [m]
    action_log_probs: NDArray[np.float32]  # [slots]

    def closed(self, layout: TokenLayout) -> NDArray[np.int64]:
        """The thought as the action block saw it: with its closing tags."""
        tags: list[int] = []
        if not is_complete(self.thought, layout):
            open_tag = [] if self.thought[-1] == layout.end_think else [layout.end_think]
            tags = [*open_tag, layout.action]
        return np.concatenate([self.thought, np.array(tags, np.int64)])

    def well_formed(self, layout: TokenLayout) -> bool:
        """`<think>` ... `</think><action>`, as the format reward asks."""
        return bool(self.thought[0] == layout.think) and is_complete(self.thought, layout)


@dataclass(frozen=True)
class Trajectory:
    """One episode. `finish_step` is the number of steps until success, or of all steps."""

    job: RolloutJob
    prompt: NDArray[np.int64]  # [n]
    moves: tuple[DecisionStep, ...]
    execute_steps: int  # actions executed of each decision
    finish_step: int
    success: bool
    seconds: float = 0.0  # of processor time, in the simulator's process
    version: int = 0  # of the weights that decided

    @property
    def tokens(self) -> int:
        """Drawn thought tokens."""
        return sum(len(move.thought) for move in self.moves)


_RAGGED = ("thought", "thought_log_probs")
_STACKED = ("pixels", "columns", "action_log_probs")
_NUMBERS = ("execute_steps", "finish_step", "success", "seconds", "version")


def save(path: Path, trajectories: Sequence[Trajectory]) -> None:
    """Writes trajectories to one .npz, which appears when it is whole."""
    arrays: dict[str, Any] = {
        "jobs": np.array([t.job for t in trajectories], np.int64).reshape(-1, len(RolloutJob._fields)),
        "prompts": _joined([t.prompt for t in trajectories], np.int64),
        "prompt_lengths": np.array([len(t.prompt) for t in trajectories], np.int64),
        "moves": np.array([len(t.moves) for t in trajectories], np.int64),
    }
    for name in _NUMBERS:
        arrays[name] = np.array([getattr(t, name) for t in trajectories], np.float64)
    moves = [move for t in trajectories for move in t.moves]
    arrays["lengths"] = np.array([len(move.thought) for move in moves], np.int64)
    for name in _RAGGED:
        arrays[name] = _joined([getattr(move, name) for move in moves], np.float32)
    arrays["thought"] = _joined([move.thought for move in moves], np.int64)
    for name in _STACKED:
        arrays[name] = np.stack([getattr(move, name) for move in moves]) if moves else np.empty(0)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez(file, **arrays)
    os.replace(part, path)


def load(path: Path) -> list[Trajectory]:
    """What `save` wrote.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = dict(data)
        prompts = np.split(arrays["prompts"], np.cumsum(arrays["prompt_lengths"])[:-1])
        cuts = np.cumsum(arrays["lengths"])[:-1]
        ragged = {name: np.split(arrays[name], cuts) for name in _RAGGED}
        moves = [
            DecisionStep(
                arrays["pixels"][i],
                ragged["thought"][i],
                arrays["columns"][i],
                ragged["thought_log_probs"][i],
                arrays["action_log_probs"][i],
            )
            for i in range(len(arrays["lengths"]))
        ]
        ends = np.cumsum(arrays["moves"])
        return [
            Trajectory(
                RolloutJob(int(job[0]), int(job[1]), int(job[2]), int(job[3]), bool(job[4])),
                prompts[i],
                tuple(moves[end - count : end]),
                int(arrays["execute_steps"][i]),
                int(arrays["finish_step"][i]),
                bool(arrays["success"][i]),
                float(arrays["seconds"][i]),
                int(arrays["version"][i]),
            )
            for i, (job, count, end) in enumerate(zip(arrays["jobs"], arrays["moves"], ends, strict=True))
        ]
    except Exception as error:  # zipfile, zlib and numpy raise errors of many kinds
        raise ValueError(f"{path} holds no rollouts that can be read ({error}).") from None


def _joined(parts: Sequence[NDArray[Any]], kind: Any) -> NDArray[Any]:
    return np.concatenate(parts).astype(kind) if parts else np.empty(0, kind)
