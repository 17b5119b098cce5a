"""The arithmetic of GRPO with PPO clipping. Pure functions on tensors.

What the reference does wrong is mended, and comes back by an argument (docs/training_rl.md).

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


def trajectory_masks(
    finish_step_N: Tensor, steps: int, horizon: int, *, after_end: bool = False
) -> tuple[Tensor, Tensor]:
    """Which environment steps [N, T * horizon] and which thoughts [N, T] belong to the trajectory.

    Args:
        finish_step_N: environment steps used.
        steps: decisions.
        horizon: environment steps of each.
        after_end: count the thought after the end when `finish_step` is a multiple of the horizon, as the
            reference does.
    """
    actions = torch.arange(steps * horizon)[None] < finish_step_N[:, None]
    decision, finish = torch.arange(steps)[None], finish_step_N[:, None]
    thoughts = decision < finish // horizon + 1 if after_end else decision * horizon < finish
    return actions, thoughts


def trajectory_scores(
    success_N: Tensor, format_ok_NT: Tensor, thoughts_NT: Tensor | None, acc_coef: float, format_coef: float
) -> Tensor:
    """`acc_coef * success + format_coef * share of good formats`: [N].

    `thoughts_NT` says which thoughts belong to the trajectory; None takes all, as the reference's sums over
    all tokens, masked or not, amount to.
    """
    counted = torch.ones_like(format_ok_NT) if thoughts_NT is None else thoughts_NT.to(format_ok_NT.dtype)
    share = (format_ok_NT * counted).sum(-1) / counted.sum(-1).clamp_min(1)
    return acc_coef * success_N + format_coef * share


def token_mask(actions: Tensor, thoughts_NT: Tensor, thought_mask_NTL: Tensor, action_dim: int) -> Tensor:
    """Both masks on tokens: [N, T * (L + K)]."""
    count, steps, _ = thought_mask_NTL.shape
    on_thoughts = thought_mask_NTL & thoughts_NT[:, :, None]
    on_actions = actions.repeat_interleave(action_dim, 1).view(count, steps, -1)
    return torch.cat([on_thoughts, on_actions], -1).flatten(1)


def advantages(score_N: Tensor, group_N: Tensor, *, scale: bool = True, lone_score: bool = False) -> Tensor:
    """(score - group mean) / (group std + 1e-6) of every trajectory [N].

    Args:
        score_N: scores of trajectories.
        group_N: which of them began alike.
        scale: False leaves the std out.
        lone_score: what is alone in its group has its score as advantage (mean 0, std 1), as in the
            reference. Nothing is known of how good it is: it has none otherwise.
    """
    out = torch.zeros_like(score_N)
    for group in group_N.unique():
        member = group_N == group
        values = score_N[member]
        if len(values) == 1:
            out[member] = values / (1 + STD_EPSILON if scale else 1) if lone_score else 0.0
            continue
        centred = values - values.mean()
        out[member] = centred / (values.std() + STD_EPSILON) if scale else centred
    return out


def group_advantages(
    scores: Tensor, mask: Tensor, group_N: Tensor, *, scale: bool = True, lone_score: bool = False
) -> Tensor:
    """The advantage on every masked token, from scores of tokens that are summed masked or not."""
    out = advantages(scores.sum(-1), group_N, scale=scale, lone_score=lone_score)
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


def token_weights(
    counts_ND: Tensor,
    mode: Aggregation,
    *,
    trajectories: int,
    tokens: int,
    longest: int,
    slice_steps: int | None = None,
) -> Tensor:
    """What a token of each decision weighs, so that `aggregate` is a weighted sum: [N, D].

    A sum can be taken in parts of any size, on any number of processes.

    Args:
        counts_ND: masked tokens of D decisions of N trajectories.
        mode: as in `aggregate`.
        trajectories: N over all processes.
        tokens: masked tokens over all processes.
        longest: tokens of a row in `aggregate`, for the mode that divides by it.
        slice_steps: weigh each slice of so many decisions by its share of the trajectory's tokens, as the
            reference does, although it sums them (`sliced_trajectory_losses`).
    """
    counts = counts_ND.double()
    whole = counts.sum(-1, keepdim=True).clamp_min(1)
    weights = torch.ones_like(counts)
    if slice_steps is not None:
        for first in range(0, counts.shape[1], slice_steps):
            part = slice(first, first + slice_steps)
            weights[:, part] = counts[:, part].sum(-1, keepdim=True) / whole
    if mode == "token_mean":
        return weights / max(tokens, 1)
    if mode == "seq_mean_token_sum":
        return weights / max(trajectories, 1)
    if mode == "seq_mean_token_mean":
        return weights / (max(trajectories, 1) * whole)
    return weights / longest


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
