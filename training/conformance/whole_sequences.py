"""Whole sequences in torch: masks, positions, action pass, RL scores and the SFT loss with its gradients."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dtvla.policy.token_layout import SLOT, TokenLayout
from training.conformance.generation import check_actions
from training.conformance.golden_sets import Arrays, GoldenSet, visible
from training.conformance.report import GRADIENT, LOGITS, LOSS, Section
from training.model import sequence_forward
from training.model.sequence_forward import Sequences

NEGLIGIBLE = 1e-4  # of the total norm; smaller gradients (a key's bias) are mostly rounding


@torch.no_grad()
def check_action_batch(golden: GoldenSet, name: str, out: Section) -> None:
    """The official action pass of a batch, with its visible pads, and the same without them."""
    case, layout, model = golden.case(name), golden.layout, golden.model
    ids = case.ids("input_cot_ids")
    sequences = sequence_forward.with_action_block(ids, layout, case.ids("attention_mask"))
    out.equal("sorted ids", sequences.ids.where(sequences.ids != SLOT, layout.bos), case["lm_input_ids"])
    tail = torch.ones(len(ids), layout.slots + 2, dtype=torch.int64)
    padded = torch.cat([ids, tail.fill_(layout.bos)], 1)
    mask = torch.cat([case.ids("attention_mask"), torch.ones_like(tail)], 1)
    out.equal(
        "sorted attention mask",
        mask.gather(1, sequence_forward.pads_right(padded, layout)),
        case["lm_attention_mask_2d"],
    )
    out.equal("action start", sequences.action_start, case["action_start_idx"])
    _check_mask(case, sequences, out)
    pixels = golden.pixels(name)
    if "lm_inputs_embeds" in case:
        features = model.image_features(pixels)
        embeds = model.embed(sequences.ids, features.reshape(len(ids), -1, features.shape[-1]))
        out.close("input embeddings", embeds, case["lm_inputs_embeds"], LOGITS)
    hidden = sequence_forward.hidden_states(model, sequences, pixels, reference_pads=True)
    check_actions(case, layout, sequence_forward.action_logits(model, hidden, sequences).numpy(), out)
    if "action_logits_unpadded" in case:
        hidden = sequence_forward.hidden_states(model, sequences, pixels)
        found = sequence_forward.action_logits(model, hidden, sequences)
        out.close("action logits, pads hidden", found, case["action_logits_unpadded"], LOGITS)


@torch.no_grad()
def check_rl(golden: GoldenSet, name: str, out: Section) -> None:
    """Log-probabilities and entropies of thoughts and actions."""
    case, layout, model = golden.case(name), golden.layout, golden.model
    t_thought, t_action = golden.temperatures(name)
    ids, count = case.ids("input_ids"), int(case["cot_length"])
    real = case.ids("attention_mask") if "attention_mask" in case else None
    sequences = sequence_forward.with_action_block(ids, layout, real)
    targets = ids[:, -count:]
    if "cot_targets" in case:
        out.equal("thought targets", targets, case["cot_targets"])
    pads = (ids == layout.pad).sum(1)
    columns = ids.shape[1] - count + torch.arange(count)
    mask = columns[None] >= (pads + sequences.prefix_len)[:, None]
    out.equal("thought mask", mask, case["cot_mask"])
    pixels = golden.pixels(name)
    hidden = sequence_forward.hidden_states(model, sequences, pixels, reference_pads=True)
    thought = sequence_forward.thought_logits(model, hidden, sequences, count)
    _check_thought_logits(case, thought, out)
    log_prob, entropy = sequence_forward.log_probs(sequence_forward.ban(thought, layout), targets, t_thought)
    out.close("thought log-probs", log_prob, case["cot_logprobs"], LOGITS)
    out.close("thought entropy", entropy, case["cot_entropy"], LOGITS)
    action = sequence_forward.action_logits(model, hidden, sequences)
    _check_action_scores(case, action, layout, t_action, out)
    if "cot_logprobs_unpadded" in case:
        hidden = sequence_forward.hidden_states(model, sequences, pixels)
        thought = sequence_forward.ban(
            sequence_forward.thought_logits(model, hidden, sequences, count), layout
        )
        log_prob, _ = sequence_forward.log_probs(thought, targets, t_thought)
        out.close("thought log-probs, pads hidden", log_prob * mask, case["cot_logprobs_unpadded"], LOGITS)
        action = sequence_forward.action_logits(model, hidden, sequences)
        log_prob, _ = sequence_forward.log_probs(
            action, case.ids("responses") - layout.action_begin, t_action
        )
        out.close("action log-probs, pads hidden", log_prob, case["action_logprobs_unpadded"], LOGITS)


def check_sft(golden: GoldenSet, name: str, out: Section) -> None:
    """The SFT loss of a batch, token by token, and its gradients."""
    case, layout, model = golden.case(name), golden.layout, golden.model
    ids, labels = case.ids("input_ids"), case.ids("labels")
    real = case.ids("attention_mask") == 1
    prompt = ((case.ids("token_type_ids") == 0) & real).sum(1)
    sequences = sequence_forward.supervised(ids, labels, prompt, layout)
    out.equal("length", sequences.length, real.sum(1))
    suffix = (torch.arange(ids.shape[1]) >= prompt[:, None]) & real
    out.equal("token types", suffix.long(), case.ids("token_type_ids"))
    _check_mask(case, sequences, out)
    pixels = golden.pixels(name)
    model.zero_grad()
    hidden = sequence_forward.hidden_states(model, sequences, pixels, reference_pads=True)
    losses = _token_losses(golden, hidden, labels)
    count = (labels[:, 1:] != -100).sum()
    loss = losses.sum() / count
    loss.backward()
    out.close("loss", loss, case["loss"], rtol=LOSS)
    out.close("loss per token", losses, case["token_nll"], LOGITS)
    with torch.no_grad():
        best, gap = _best(golden, hidden[:, :-1])
        out.same_ids("next id", best, case["argmax_next"], gap)
        if "loss_pad_free" in case:
            alone = sequence_forward.hidden_states(model, sequences, pixels)
            found = _token_losses(golden, alone, labels).sum() / count
            out.close("loss, pads hidden", found, case["loss_pad_free"], rtol=LOSS)
    if "grad_param_names" in case:
        _check_gradients(golden, case, out)
    model.zero_grad()


def _check_mask(case: Arrays, sequences: Sequences, out: Section) -> None:
    if "lm_mask_additive" in case:
        out.equal("mask", sequences.mask(reference_pads=True), visible(case["lm_mask_additive"]))
    out.equal("positions", sequences.positions(), case["lm_position_ids"])


def _check_thought_logits(case: Arrays, logits: Tensor, out: Section) -> None:
    if "cot_logits" in case:
        out.close("thought logits", logits, case["cot_logits"], LOGITS)
    if "cot_logits_at_cols" in case:
        columns = case.ids("cot_logits_cols")
        out.close("thought logits", logits[..., columns], case["cot_logits_at_cols"], LOGITS)
        out.close("thought logsumexp", logits.logsumexp(-1), case["cot_logsumexp_all"], LOGITS)


def _check_action_scores(
    case: Arrays, logits: Tensor, layout: TokenLayout, temperature: float, out: Section
) -> None:
    if "action_logits" in case:
        out.close("action logits", logits, case["action_logits"], LOGITS)
    if "action_logits_at_rows" in case:
        rows = case.ids("action_logits_rows")
        out.close("action logits", logits[:, rows], case["action_logits_at_rows"], LOGITS)
    responses = case.ids("responses")
    log_prob, entropy = sequence_forward.log_probs(logits, responses - layout.action_begin, temperature)
    out.close("action log-probs", log_prob, case["action_logprobs"], LOGITS)
    out.close("action entropy", entropy, case["action_entropy"], LOGITS)
    if "responses_random" in case:
        columns = case.ids("responses_random") - layout.action_begin
        log_prob, _ = sequence_forward.log_probs(logits, columns, temperature)
        out.close("random action log-probs", log_prob, case["action_logprobs_random"], LOGITS)


def _token_losses(golden: GoldenSet, hidden_BSH: Tensor, labels_BS: Tensor) -> Tensor:
    """Losses [B, S - 1]; only supervised rows meet the head, a full vocabulary is wide."""
    rows = labels_BS[:, 1:] != -100
    logits = golden.model.logits(hidden_BSH[:, :-1][rows][None])[0]
    losses = torch.nn.functional.cross_entropy(logits, labels_BS[:, 1:][rows], reduction="none")
    return torch.zeros(rows.shape).masked_scatter(rows, losses)


def _best(golden: GoldenSet, hidden_BSH: Tensor) -> tuple[Tensor, Tensor]:
    """Most likely id and its lead, row by row of the batch."""
    best, gap = [], []
    for hidden in hidden_BSH:
        top = golden.model.logits(hidden[None])[0].topk(2, -1)
        best.append(top.indices[:, 0])
        gap.append(top.values[:, 0] - top.values[:, 1])
    return torch.stack(best), torch.stack(gap)


def _check_gradients(golden: GoldenSet, case: Arrays, out: Section) -> None:
    gradients = {name: p.grad for name, p in golden.model.named_parameters() if p.grad is not None}
    norms = {name: float(grad.double().norm()) for name, grad in gradients.items()}
    names = [str(name) for name in case["grad_param_names"]]
    out.equal("gradient names", sorted(norms), sorted(names))
    found = np.array([norms.get(name, np.nan) for name in names])
    expected = case["grad_param_norms"]
    floor = NEGLIGIBLE * float(case["grad_norm_total"])
    worst = np.abs(found - expected) / np.maximum(np.abs(expected), floor)
    out.close("gradient norm of each parameter (relative)", worst.max(), 0.0, GRADIENT)
    groups = {
        "total": "",
        "vision": "vision_tower.",
        "projector": "multi_modal_projector.",
        "embed": "language_model.model.embed_tokens.",
        "llm_layers": "language_model.model.layers.",
    }
    for group, prefix in groups.items():
        norm = np.sqrt(sum(value**2 for name, value in norms.items() if name.startswith(prefix)))
        out.close(f"gradient norm, {group}", norm, case[f"grad_norm_{group}"], rtol=GRADIENT)
    tensors = {
        "grad_projector_bias": "multi_modal_projector.linear.bias",
        "grad_final_norm": "language_model.model.norm.weight",
        "grad_q_proj_l0": "language_model.model.layers.0.self_attn.q_proj.weight",
    }
    for array, name in tensors.items():
        out.close(array.replace("_", " "), gradients[name], case[array], rtol=GRADIENT)
