"""Whole sequences in one pass: the action pass, log-probabilities for RL, the SFT loss' view of a batch.

Nothing is cached here. Pads are hidden unless `reference_pads=True` asks for what the reference does:
there, every row of a batch sees the pads behind it, so a sample's numbers depend on its neighbours
(docs/fidelity.md says what that costs).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dtvla.policy.token_layout import SLOT, TokenLayout
from training.model.deepthinkvla import DeepThinkVLA, hybrid_mask


@dataclass(frozen=True)
class Sequences:
    """A batch of whole sequences, real tokens left, pads right (B samples, S positions)."""

    ids: Tensor  # [B, S]; action slots are layout.SLOT
    prefix_len: Tensor  # [B] prompt length
    action_start: Tensor  # [B] index of the last thought token, normally `<action>`
    length: Tensor  # [B] real tokens

    def mask(self, *, reference_pads: bool = False) -> Tensor:
        """The hybrid mask [B, 1, S, S]."""
        size = self.ids.shape[1]
        return hybrid_mask(
            self.prefix_len, self.action_start, self.length, size, reference_pads=reference_pads
        )

    def positions(self) -> Tensor:
        """1-based positions [1, S]."""
        return torch.arange(1, self.ids.shape[1] + 1, device=self.ids.device)[None]


def prompt_length(ids_S: Tensor, layout: TokenLayout) -> int:
    """Length of the prompt: up to and with the first `;` newline pair.

    Raises:
        ValueError: no such pair. The reference's action pass goes on with a prompt of two tokens instead.
    """
    first, second = layout.prompt_end
    found = torch.nonzero((ids_S[:-1] == first) & (ids_S[1:] == second))
    if not len(found):
        raise ValueError(f"The sequence holds no prompt end (ids {first}, {second}); it cannot be split.")
    return int(found[0]) + 2


def pads_right(ids_BL: Tensor, layout: TokenLayout) -> Tensor:
    """The order [B, L] that moves real tokens to the left and pads to the right, each kept in order.

    A pad id inside a thought moves behind the end too, as in the reference.
    """
    return torch.sort((ids_BL == layout.pad).int(), dim=1, stable=True).indices


def with_action_block(
    thought_ids_BL: Tensor, layout: TokenLayout, real_BL: Tensor | None = None
) -> Sequences:
    """Prompt and thought (padded anywhere) to complete sequences with empty action slots.

    Args:
        thought_ids_BL: ids of prompt and thought.
        layout: token ids.
        real_BL: attention mask; None takes every id but pad. A pad inside a thought that the mask calls
            real ends up behind `<eos>`, where the action rows see it: what the reference does with it.
    """
    tail = torch.from_numpy(layout.action_block()[1:]).to(thought_ids_BL.device)
    ids = torch.cat([thought_ids_BL, tail.expand(len(thought_ids_BL), -1)], 1)
    ids = ids.gather(1, pads_right(ids, layout))
    known = (ids != layout.pad).sum(1)
    length = known if real_BL is None else real_BL.long().sum(1) + len(tail)
    prefix = torch.tensor([prompt_length(row, layout) for row in ids], device=ids.device)
    return Sequences(ids, prefix, known - len(tail) - 1, length)


def hidden_states(
    model: DeepThinkVLA, sequences: Sequences, pixels: Tensor, *, reference_pads: bool = False, first: int = 0
) -> Tensor:
    """Final hidden states [B, S - first, H]; `pixels` [B * images, 3, S, S] are the samples' images in order.

    Rows before `first` are not asked for (see `DeepThinkVLA.hidden`).
    """
    features = model.image_features(pixels)
    features = features.reshape(len(sequences.ids), -1, features.shape[-1])
    embeds = model.embed(sequences.ids, features)
    pads = (sequences.ids == model.config.layout.pad).unsqueeze(-1)
    embeds = torch.where(pads, embeds.detach(), embeds)  # Gemma's padding_idx: no gradient into the pad row
    return model.hidden(embeds, sequences.positions(), sequences.mask(reference_pads=reference_pads), first)


def action_logits(model: DeepThinkVLA, hidden_BSH: Tensor, sequences: Sequences) -> Tensor:
    """Logits [B, slots, bins] at `<action>` and the first slots - 1 slots."""
    rows = sequences.action_start[:, None] + torch.arange(model.config.layout.slots, device=hidden_BSH.device)
    return model.action_logits(_take(hidden_BSH, rows))


def thought_logits(model: DeepThinkVLA, hidden_BSH: Tensor, sequences: Sequences, count: int) -> Tensor:
    """Logits [B, count, V] of the rows that predict the last `count` thought tokens (`<action>` is the last).

    Rows before the sequence's first are its first row; they belong to masked tokens.
    """
    rows = sequences.action_start[:, None] - count + torch.arange(count, device=hidden_BSH.device)
    return model.logits(_take(hidden_BSH, rows.clamp_min(0)))


def ban(logits: Tensor, layout: TokenLayout) -> Tensor:
    """Thought logits with the banned ids at the lowest finite value, as the reference scores them."""
    banned = torch.from_numpy(layout.banned()).to(logits.device)
    return logits.index_fill(-1, banned, torch.finfo(logits.dtype).min)


def log_probs(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probability of each id under softmax(logits / temperature), and the entropy; shape of `ids`."""
    log_p = torch.log_softmax(logits.float() / temperature, -1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    return log_p.gather(-1, ids.unsqueeze(-1)).squeeze(-1), entropy


def supervised(ids_BS: Tensor, labels_BS: Tensor, prompt_length_B: Tensor, layout: TokenLayout) -> Sequences:
    """A right-padded training batch as the model sees it: true action ids become empty slots.

    Args:
        ids_BS: complete sequences, true action ids in place.
        labels_BS: ids to predict, -100 where nothing is supervised.
        prompt_length_B: tokens of the prompt.
        layout: token ids.
    """
    is_action = (labels_BS >= layout.action_begin) & (labels_BS <= layout.action_end)
    index = torch.arange(ids_BS.shape[1], device=ids_BS.device)
    start = torch.where(ids_BS == layout.action, index, -1).max(1).values
    return Sequences(
        ids_BS.masked_fill(is_action, SLOT), prompt_length_B, start, (ids_BS != layout.pad).sum(1)
    )


def _take(hidden_BSH: Tensor, rows_BR: Tensor) -> Tensor:
    return hidden_BSH.gather(1, rows_BR[:, :, None].expand(-1, -1, hidden_BSH.shape[-1]))
