"""Trajectories as rows of decisions: batches for the model, masks and log-probabilities for the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dtvla.policy.images import ImageSpec, normalise
from dtvla.policy.token_layout import TokenLayout
from training.model.sequence_forward import Sequences
from training.rl.trajectory import DecisionStep, Trajectory


@dataclass(frozen=True)
class DecisionBatch:
    """Some decisions as one right-padded batch (B decisions, L thought tokens, K action tokens)."""

    sequences: Sequences
    pixels: Tensor  # [B * cameras, 3, S, S]
    thoughts: Tensor  # [B, L] drawn ids, pads behind them
    columns: Tensor  # [B, K]
    drawn: Tensor  # [B, L] which thought tokens were drawn

    def to(self, device: torch.device) -> DecisionBatch:
        """The same on another device."""
        s = self.sequences
        moved = Sequences(*(x.to(device) for x in (s.ids, s.prefix_len, s.action_start, s.length)))
        rest = (x.to(device) for x in (self.pixels, self.thoughts, self.columns, self.drawn))
        return DecisionBatch(moved, *rest)


class Decisions:
    """All decisions of some trajectories, one row each, and what the loss must know of their tokens.

    Shapes: D decisions, L thought tokens (of the longest), K action tokens; L + K tokens in a row.
    """

    def __init__(self, trajectories: Sequence[Trajectory], layout: TokenLayout, image: ImageSpec) -> None:
        self._layout, self._image = layout, image
        self.trajectories = list(trajectories)
        self.owner = np.array([i for i, t in enumerate(self.trajectories) for _ in t.moves], np.int64)
        self.number = np.array([k for t in self.trajectories for k in range(len(t.moves))], np.int64)
        self.moves: list[DecisionStep] = [move for t in self.trajectories for move in t.moves]
        self.longest = max((len(move.thought) for move in self.moves), default=1)

    def __len__(self) -> int:
        return len(self.moves)

    def batch(self, index: Sequence[int], pad_to: int = 0) -> DecisionBatch:
        """Some decisions as the model reads them."""
        layout = self._layout
        tail = layout.action_block()[1:]
        moves = [self.moves[i] for i in index]
        prompts = [self.trajectories[self.owner[i]].prompt for i in index]
        closed = [move.closed(layout) for move in moves]
        rows = [np.concatenate(parts) for parts in zip(prompts, closed, [tail] * len(moves), strict=True)]
        length = np.array([len(row) for row in rows])
        ids = np.full((len(rows), max(pad_to, length.max())), layout.pad, np.int64)
        thoughts = np.full((len(rows), max(len(move.thought) for move in moves)), layout.pad, np.int64)
        drawn = np.zeros(thoughts.shape, bool)
        for i, (row, move) in enumerate(zip(rows, moves, strict=True)):
            ids[i, : len(row)] = row
            thoughts[i, : len(move.thought)] = move.thought
            drawn[i, : len(move.thought)] = True
        prefix = np.array([len(prompt) for prompt in prompts])
        start = prefix + np.array([len(thought) for thought in closed]) - 1
        pixels = normalise(np.concatenate([move.pixels for move in moves]), self._image)
        columns = np.stack([move.columns for move in moves]).astype(np.int64)
        return DecisionBatch(
            Sequences(*(torch.from_numpy(x) for x in (ids, prefix, start, length))),
            *(torch.from_numpy(x) for x in (pixels, thoughts, columns, drawn)),
        )

    def mask(self, *, after_end: bool = False) -> Tensor:
        """Which tokens belong to their trajectory [D, L + K]: drawn words, and actions that were executed."""
        layout = self._layout
        mask = np.zeros((len(self), self.longest + layout.slots), bool)
        for i, move in enumerate(self.moves):
            trajectory = self.trajectories[self.owner[i]]
            steps = trajectory.execute_steps
            first = int(self.number[i]) * steps
            left = trajectory.finish_step - first
            mask[i, : len(move.thought)] = left >= 0 if after_end else left > 0
            executed = min(steps, max(0, left))
            mask[i, self.longest : self.longest + executed * layout.action_dim] = True
        return torch.from_numpy(mask)

    def log_probs(self) -> Tensor:
        """The rollout's log-probabilities [D, L + K]; 0 where no token is."""
        out = np.zeros((len(self), self.longest + self._layout.slots), np.float32)
        for row, move in zip(out, self.moves, strict=True):
            row[: len(move.thought)] = move.thought_log_probs
            row[self.longest :] = move.action_log_probs
        return torch.from_numpy(out)

    def well_formed(self) -> Tensor:
        """Whether each thought has the form that is rewarded [D]."""
        return torch.tensor([float(move.well_formed(self._layout)) for move in self.moves])

    def by_trajectory(self, values_D: Tensor, fill: float = 0.0) -> Tensor:
        """Values of decisions as [N, T], T the longest trajectory's decisions."""
        steps = max((len(t.moves) for t in self.trajectories), default=1)
        out = values_D.new_full((len(self.trajectories), steps), fill)
        out[self.owner, self.number] = values_D
        return out


def widened(values: Tensor, thought: int, slots: int) -> Tensor:
    """[B, l + K] with l thought columns as [B, thought + K]."""
    missing = thought + slots - values.shape[1]
    gap = values.new_zeros(len(values), missing)
    return torch.cat([values[:, :-slots], gap, values[:, -slots:]], 1)
