"""The arithmetic of GRPO with PPO clipping, as the reference does it. Pure functions on tensors.

Shapes: N trajectories, T decisions (steps), L thought tokens per decision, K = slots action tokens per
decision. Token tensors are [N, T * (L + K)], thought before actions within a decision.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

STD_EPSILON = 1e-6
Aggregation = Literal["token_mean", "seq_mean_token_sum", "seq_mean_token_mean", "seq_mean_token_sum_norm"]
KlKind = Literal["kl", "abs", "mse", "low_var_kl"]


def token_scores(
    success_N: Tensor, format_ok_NT: Tensor, thought: int, actions: int, acc_coef: float, format_coef: float
) -> Tensor:
    """Outcome and format reward spread evenly over action and thought tokens: [N, T * (L + K)].

    A row sums to `acc_coef * success + format_coef * mean(format_ok)`.
    """
    steps = format_ok_NT.shape[1]
    per_thought = format_coef * format_ok_NT[:, :, None].expand(-1, -1, thought) / (steps * thought)
    per_action = acc_coef * success_N[:, None, None].expand(-1, steps, actions) / (steps * actions)
    return torch.cat([per_thought, per_action], -1).flatten(1)


def trajectory_masks(finish_step_N: Tensor, steps: int, horizon: int) -> tuple[Tensor, Tensor]:
    """Which environment steps [N, T * horizon] and which thoughts [N, T] belong to the trajectory.

    As in the reference, when `finish_step` is a multiple of the horizon the thought after the end counts.
    """
    actions = torch.arange(steps * horizon)[None] < finish_step_N[:, None]
    thoughts = torch.arange(steps)[None] < finish_step_N[:, None] // horizon + 1
    return actions, thoughts


def token_mask(actions: Tensor, thoughts_NT: Tensor, thought_mask_NTL: Tensor, action_dim: int) -> Tensor:
    """Both masks on tokens: [N, T * (L + K)]."""
    count, steps, _ = thought_mask_NTL.shape
    on_thoughts = thought_mask_NTL & thoughts_NT[:, :, None]
    on_actions = actions.repeat_interleave(action_dim, 1).view(count, steps, -1)
    return torch.cat([on_thoughts, on_actions], -1).flatten(1)


def group_advantages(scores: Tensor, mask: Tensor, group_N: Tensor, *, scale: bool = True) -> Tensor:
    """(score - group mean) / (group std + 1e-6) on every masked token; `scale=False` leaves the std out.

    The score is the sum over all tokens, masked or not (a quirk of the reference). A group of one has
    mean 0 and std 1.
    """
    total = scores.sum(-1)
    out = torch.zeros_like(total)
    for group in group_N.unique():
        member = group_N == group
        values = total[member]
        alone = len(values) == 1
        mean = torch.zeros_like(values[0]) if alone else values.mean()
        std = torch.ones_like(values[0]) if alone else values.std()
        out[member] = (values - mean) / (std + STD_EPSILON) if scale else values - mean
    return out[:, None] * mask


def aggregate(values: Tensor, mask: Tensor, mode: Aggregation) -> Tensor:
    """One number from token values [N, tokens] in the reference's modes."""
    mask = mask.to(values.dtype)
    if mode == "token_mean":
        return (values * mask).sum() / mask.sum()
    per_sequence = (values * mask).sum(-1)
    if mode == "seq_mean_token_sum":
        return per_sequence.mean()
    if mode == "seq_mean_token_mean":
        return (per_sequence / mask.sum(-1)).mean()
    return per_sequence.sum() / mask.shape[-1]


class PolicyLoss(NamedTuple):
    """Token losses and what is logged beside them."""

    per_token: Tensor  # [N, tokens]
    clip_fraction: Tensor
    kl: Tensor  # mean old - new log-probability
    dual_clip_fraction: Tensor


def policy_loss(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float = 3.0,
) -> PolicyLoss:
    """PPO's clipped loss with a dual clip: no token with negative advantage costs more than -3 A."""
    ratio = torch.exp(log_prob - old_log_prob)
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    worst = torch.maximum(plain, clipped)
    limit = -advantages * dual_clip
    negative = advantages < 0
    return PolicyLoss(
        torch.where(negative, torch.minimum(worst, limit), worst),
        aggregate((clipped > plain).float(), mask, "token_mean"),
        aggregate(old_log_prob - log_prob, mask, "token_mean"),
        aggregate(((worst > limit) & negative).float(), mask, "token_mean"),
    )


def kl_penalty(log_prob: Tensor, reference: Tensor, kind: KlKind) -> Tensor:
    """Per-token estimate of the divergence from a reference policy."""
    difference = log_prob - reference
    if kind == "kl":
        return difference
    if kind == "abs":
        return difference.abs()
    if kind == "mse":
        return 0.5 * difference.square()
    return (torch.exp(-difference) + difference - 1).clamp(-10, 10)


def sliced_trajectory_losses(per_token_losses: Tensor, mask: Tensor, steps: int, slice_steps: int) -> Tensor:
    """The reference's weighting of one trajectory that is computed in slices of some decisions: [N].

    Each slice contributes the sum of its token losses times its share of the trajectory's tokens.
    """
    losses = (per_token_losses * mask).view(len(mask), steps, -1)
    counts = mask.view(len(mask), steps, -1).sum(-1).to(losses.dtype)
    whole = counts.sum(-1)
    total = torch.zeros_like(whole)
    for first in range(0, steps, slice_steps):
        part = slice(first, first + slice_steps)
        total = total + losses[:, part].sum((1, 2)) * counts[:, part].sum(-1) / whole
    return total
