"""Rows to batches: tokens, targets and bounds of one hybrid pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from dtvla.errors import PolicyInputError
from dtvla.policy.action_tokenizer import ActionTokenizer, Normaliser
from dtvla.policy.prompt import prompt_ids
from dtvla.policy.token_layout import SLOT, TokenLayout
from training.datasets.augment import Augmentation, augment
from training.datasets.errors import DatasetError
from training.datasets.paraphrases import in_other_words


class TrainingRow(Protocol):
    """One observation, and what to think and do on it: a `RecordedRow` or a `DatasetRow`."""

    @property
    def images(self) -> NDArray[np.uint8]: ...
    @property
    def actions(self) -> NDArray[np.float32]: ...
    @property
    def thought(self) -> str: ...
    @property
    def instruction(self) -> str: ...


@dataclass(frozen=True)
class TrainingBatch:
    """A right-padded batch (B samples, S positions)."""

    pixels: Tensor  # [B * images, 3, W, W] in [-1, 1]
    ids: Tensor  # [B, S]; action slots are layout.SLOT, pads layout.pad
    targets: Tensor  # [B, S] the next id at every supervised row, -100 elsewhere
    prefix_len: Tensor  # [B]
    action_start: Tensor  # [B] index of `<action>`; behind the end where actions follow one by one
    length: Tensor  # [B]

    def to(self, device: torch.device) -> TrainingBatch:
        """The batch on a device."""
        return TrainingBatch(*(tensor.to(device, non_blocking=True) for tensor in vars(self).values()))


@dataclass(frozen=True)
class Changes:
    """What training changes of a row, drawn anew each time it is seen.

    Attributes:
        thought_dropout: share of the looks that are shown with the prompt that asks for no thought and an
            empty one: with it, one policy can do both (reference: dataset.py:create_reasoning_tokens).
        other_words: share of the looks of the embedded suites whose task is said in other words.
        augmentation: of the pictures.
    """

    thought_dropout: float = 0.0
    other_words: float = 0.0
    augmentation: Augmentation = "none"

    def __post_init__(self) -> None:
        for name in ("thought_dropout", "other_words"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ValueError(f"{name} is {value}; it is a share from 0 to 1.")


class Collator:
    """Turns rows into batches.

    Args:
        tokenizer, layout, codec, normaliser: the policy's.
        prompt_prefix: in front of the task when a thought is asked for.
        changes: what is changed when a row is drawn with a generator.
        one_by_one: actions follow each other as words do, each row seeing what was before it, true actions
            among that: the baseline that hybrid attention is compared with. Else they are empty slots that
            see each other.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        layout: TokenLayout,
        codec: ActionTokenizer,
        normaliser: Normaliser,
        prompt_prefix: str,
        changes: Changes | None = None,
        *,
        one_by_one: bool = False,
    ) -> None:
        self._one_by_one = one_by_one
        self.layout, self._changes = layout, changes or Changes()
        self._tokenizer, self._codec, self._normaliser = tokenizer, codec, normaliser
        self._prefix = prompt_prefix
        self._prompts: dict[tuple[str, str], NDArray[np.int64]] = {}
        self._tail = np.concatenate([np.full(layout.slots, SLOT), [layout.end_action, layout.eos]])

    def batch(
        self, rows: Sequence[TrainingRow], rngs: Sequence[np.random.Generator] | None = None
    ) -> TrainingBatch:
        """Assembles a batch.

        Args:
            rows: what to learn from.
            rngs: each row's own generator for `changes`; None changes nothing.

        Raises:
            DatasetError: an instruction or a thought that the policy could not read or write.
        """
        said = [self._say(row, None if rngs is None else rngs[i]) for i, row in enumerate(rows)]
        size = max(len(ids) for ids, _, _ in said)
        ids = np.full((len(rows), size), self.layout.pad)
        targets = np.full((len(rows), size), -100)
        bounds = np.empty((3, len(rows)), np.int64)
        for i, (row_ids, supervised, prompt) in enumerate(said):
            ids[i, : len(row_ids)] = row_ids
            targets[i, prompt - 1 : prompt - 1 + len(supervised)] = supervised
            thought = len(row_ids) - prompt - len(self._tail)
            bounds[:, i] = prompt, prompt + thought - 1, len(row_ids)
            if self._one_by_one:
                known = ids[i] == SLOT
                ids[i, known] = supervised[-len(self._tail) : -len(self._tail) + self.layout.slots]
                bounds[1, i] = size  # no row sees what is behind it
        pixels = np.stack([self._look(row, None if rngs is None else rngs[i]) for i, row in enumerate(rows)])
        prefix, start, length = torch.from_numpy(bounds)
        return TrainingBatch(
            torch.from_numpy(pixels).flatten(0, 1).permute(0, 3, 1, 2) / 127.5 - 1.0,
            torch.from_numpy(ids),
            torch.from_numpy(targets),
            prefix,
            start,
            length,
        )

    def _say(
        self, row: TrainingRow, rng: np.random.Generator | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
        """The row's ids with empty slots, what is supervised behind the prompt, and the prompt's length."""
        layout = self.layout
        instruction, thought, prefix = row.instruction, row.thought, self._prefix
        if rng is not None:
            dropped, reworded = rng.random(2)
            if dropped < self._changes.thought_dropout:
                thought = ""
            if reworded < self._changes.other_words:
                instruction = in_other_words(instruction, rng)
        if not thought:
            prefix = ""  # what an empty thought looks like in the reference's training
        prompt = self._prompt(instruction, prefix)
        words = self._tokenizer.encode(thought, add_special_tokens=False).ids if thought else []
        said = np.array([layout.think, *words, *layout.closing], np.int64)
        if (said[:-2] == layout.end_think).any() or (said[1:] == layout.think).any():
            raise DatasetError(f"A thought holds a tag of the model: {thought[:80]!r}. Remove it there.")
        actions = self._codec.encode(self._normaliser.normalise(row.actions.astype(np.float64)))
        ending = [layout.end_action, layout.eos]
        supervised = np.concatenate([said, actions.reshape(-1).astype(np.int64), ending])
        return np.concatenate([prompt, said, self._tail]), supervised, len(prompt)

    def _prompt(self, instruction: str, prefix: str) -> NDArray[np.int64]:
        key = instruction, prefix
        if key not in self._prompts:
            try:
                self._prompts[key] = prompt_ids(self._tokenizer, self.layout, instruction, prefix)
            except PolicyInputError as error:
                raise DatasetError(f"The instruction {instruction[:80]!r} cannot be used: {error}") from None
        return self._prompts[key]

    def _look(self, row: TrainingRow, rng: np.random.Generator | None) -> NDArray[np.float32]:
        if rng is None:
            return row.images.astype(np.float32)
        return augment(row.images, self._changes.augmentation, rng)
