"""The loss of a hybrid pass: cross entropy of thought and action tokens, the same however it is split."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dtvla.policy.token_layout import TokenLayout
from training.datasets.batches import TrainingBatch
from training.model.deepthinkvla import hybrid_mask


@dataclass(frozen=True)
class Losses:
    """What one batch gives. Sums, so that the parts of a step can be added up."""

    loss: Tensor  # mean over the batch's weighted tokens; its gradient is the training signal
    weight: Tensor  # sum of the weights that the mean is over
    thought: Tensor  # mean cross entropy of tokens that are no actions
    action: Tensor  # mean cross entropy of action tokens
    thought_accuracy: Tensor
    action_columns: Tensor  # [B, slots] most likely column of the action head
    target_columns: Tensor  # [B, slots]


def token_weights(targets: Tensor, layout: TokenLayout, thought_weight: float) -> Tensor:
    """The weight of every supervised token, in the order of `targets[targets >= 0]`.

    The reference weighs every token alike (`thought_weight` 1).
    """
    targets = targets[targets >= 0]
    is_action = (targets >= layout.action_begin) & (targets <= layout.action_end)
    return torch.where(is_action, 1.0, thought_weight)


def compute_losses(model: nn.Module, batch: TrainingBatch, thought_weight: float) -> Losses:
    """One hybrid pass over whole sequences and the cross entropy of everything behind the prompt.

    Only supervised rows meet the head: a third of the sequence, and the head is the widest matrix.

    Args:
        model: a `DeepThinkVLA`, possibly sharded or with adapters.
        batch: right-padded sequences.
        thought_weight: of a token that is no action.
    """
    layout: TokenLayout = model.config.layout  # type: ignore[assignment]
    size = batch.ids.shape[1]
    mask = hybrid_mask(batch.prefix_len, batch.action_start, batch.length, size)
    positions = torch.arange(1, size + 1, device=batch.ids.device)[None]
    supervised = batch.targets >= 0
    logits = model(batch.ids, batch.pixels, positions, mask, supervised)
    targets = batch.targets[supervised]
    per_token = F.cross_entropy(logits.float(), targets, reduction="none")
    is_action = (targets >= layout.action_begin) & (targets <= layout.action_end)
    weights = token_weights(batch.targets, layout, thought_weight)
    best = logits.detach().argmax(-1)
    columns = logits.detach()[is_action, layout.action_begin : layout.action_end + 1].argmax(-1)
    return Losses(
        loss=(per_token * weights).sum() / weights.sum(),
        weight=weights.sum(),
        thought=per_token[~is_action].detach().mean(),
        action=per_token[is_action].detach().mean(),
        thought_accuracy=(best == targets)[~is_action].float().mean(),
        action_columns=columns.view(-1, layout.slots),
        target_columns=(targets[is_action] - layout.action_begin).view(-1, layout.slots),
    )
