"""Codec, normalisation and RL arithmetic: what needs no model."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dtvla.policy.action_tokenizer import ActionTokenizer, Normaliser
from dtvla.policy.token_layout import TokenLayout
from training.conformance.golden_sets import Arrays
from training.conformance.report import LOSS, Section
from training.rl import grpo

FLOAT32 = 1e-6  # values that the reference computes and stores in float32


def check_codec(a: Arrays, layout: TokenLayout, out: Section) -> None:
    """Encoding, both decodings, quantile normalisation and the whole way from raw actions and back."""
    codec = ActionTokenizer(layout.bins, layout.action_begin)
    out.close("edges", codec.edges, a["bins_f32"], FLOAT32)
    out.close("centres", codec.centres, a["centers_f64"], 1e-12)
    out.equal("bins", codec.bin_of(a["enc_actions"]), a["enc_bins"])
    out.equal("ids", codec.encode(a["enc_actions"]), a["enc_token_ids"])
    out.close("decoded", codec.decode(a["enc_token_ids"]), a["enc_decoded_f32"], FLOAT32)
    # The reference keeps statistics in float32; on a narrow span the rounding is more than the tolerance.
    q01, q99 = (a[name].astype(np.float32).astype(np.float64) for name in ("q01", "q99"))
    normaliser = Normaliser(q01, q99, a["action_mask"])
    normalised = normaliser.normalise(a["raw_actions"])
    out.close("normalised", normalised, a["normalized"], FLOAT32)
    ids = codec.encode(a["normalized"])
    out.equal("tokenised", ids, a["tokenised"])
    values = codec.decode(a["tokenised"])
    out.close("model's values", values, a["model_normalized_f64"], 1e-12)
    unnormalised = normaliser.unnormalise(values)
    out.close("un-normalised", unnormalised, a["unnormalized_f64"], FLOAT32)
    out.equal("gripper command", np.sign(unnormalised[:, -1]), a["gripper_binarized"])


def check_rl_arithmetic(a: Arrays, layout: TokenLayout, out: Section) -> None:
    """Scores, masks, advantages, policy loss with gradients, KL estimates and the sliced update."""
    steps, thought = a["cot_mask"].shape[1:]
    tokens = torch.from_numpy
    scores = grpo.token_scores(
        tokens(a["acc"]),
        tokens(a["format_ok"]),
        thought,
        layout.slots,
        float(a["acc_coef"]),
        float(a["format_coef"]),
    )
    out.close("token scores", scores, a["token_level_scores"], rtol=10 * FLOAT32)  # a token has little
    actions, thoughts = grpo.trajectory_masks(tokens(a["finish_step"]), steps, layout.horizon, after_end=True)
    out.equal("action mask", actions, a["traj_mask_action"])
    out.equal("thought mask", thoughts, a["traj_mask_cot"])
    mask = grpo.token_mask(actions, thoughts, tokens(a["cot_mask"]), layout.action_dim)
    out.equal("token mask", mask, a["mask"])
    groups = tokens(a["uid"])
    advantages = grpo.group_advantages(tokens(a["token_level_scores"]), mask, groups, lone_score=True)
    out.close("advantages", advantages, a["advantages"], 10 * FLOAT32)
    plain = grpo.group_advantages(tokens(a["token_level_scores"]), mask, groups, scale=False, lone_score=True)
    out.close("advantages without std", plain, a["advantages_no_std"], FLOAT32)
    _check_losses(a, mask, steps, out)
    for kind in ("kl", "abs", "mse", "low_var_kl"):
        found = grpo.kl_penalty(tokens(a["log_prob"]), tokens(a["old_log_prob"]), kind)
        out.close(f"KL estimate {kind}", found, a[f"kl_{kind}"], rtol=FLOAT32)


def _check_losses(a: Arrays, mask: Tensor, steps: int, out: Section) -> None:
    old, advantages = torch.from_numpy(a["old_log_prob"]), torch.from_numpy(a["advantages"])

    def loss() -> tuple[Tensor, grpo.PolicyLoss]:
        log_prob = torch.from_numpy(a["log_prob"]).requires_grad_()
        return log_prob, grpo.policy_loss(old, log_prob, advantages, mask)

    modes: tuple[grpo.Aggregation, ...] = (
        "token_mean",
        "seq_mean_token_sum",
        "seq_mean_token_mean",
        "seq_mean_token_sum_norm",
    )
    for mode in modes:
        log_prob, result = loss()
        value = grpo.aggregate(result.per_token, mask, mode)
        (gradient,) = torch.autograd.grad(value, log_prob)
        out.close(f"policy loss {mode}", value, a[f"loss__{mode}"], rtol=LOSS)
        out.close(f"its gradient {mode}", gradient, a[f"grad__{mode}"], rtol=LOSS)
    log_prob, result = loss()
    out.close("clip fraction", result.clip_fraction, a["clipfrac"], FLOAT32)
    out.close("dual clip fraction", result.dual_clip_fraction, a["clipfrac_lower"], FLOAT32)
    out.close("mean KL", result.kl, a["ppo_kl"], FLOAT32)
    per_trajectory = grpo.sliced_trajectory_losses(result.per_token, mask, steps, slice_steps=3)
    out.close("sliced update loss", per_trajectory, a["update_policy_loss_per_traj"], rtol=LOSS)
    (gradient,) = torch.autograd.grad(per_trajectory.sum(), log_prob)
    out.close("sliced update gradient", gradient, a["update_policy_grad"], rtol=LOSS)
