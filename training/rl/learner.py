"""The learner: log-probabilities of whole sequences in one pass, GRPO's loss in micro-batches, updates.

Tokens carry their share of the loss as a weight that is known before the first pass, so a mini-batch can be
summed in parts of any size and on any number of processes: the same update.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dtvla.policy.images import ImageSpec
from dtvla.policy.token_layout import TokenLayout
from training.common import parallel
from training.model import sequence_forward
from training.model.deepthinkvla import DeepThinkVLA
from training.rl import grpo
from training.rl.decisions import DecisionBatch, Decisions, widened
from training.rl.settings import LossSettings, RlOptimiserSettings, RolloutSettings
from training.rl.trajectory import Trajectory


class Scorer(nn.Module):
    """The policy as something that is asked for log-probabilities: one module, so that it can be sharded.

    Args:
        model: the policy's.
        rollout: at which temperatures words and actions were drawn.
        settings: how much is computed at once.
        pads: let every row see the padding, as the reference does.
    """

    _banned: Tensor

    def __init__(
        self,
        model: DeepThinkVLA,
        rollout: RolloutSettings,
        settings: RlOptimiserSettings,
        *,
        pads: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self._temperatures = rollout.thought_temperature, rollout.action_temperature
        self._head_rows, self._pads = settings.head_rows, pads
        banned = torch.zeros(model.config.layout.vocab_size, dtype=torch.bool)
        banned[torch.from_numpy(model.config.layout.banned())] = True
        self.register_buffer("_banned", banned, persistent=False)

    def forward(self, batch: DecisionBatch) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies [B, L + K] of drawn words and actions; 0 where no word is."""
        layout, sequences = self.model.config.layout, batch.sequences
        pixels = batch.pixels.to(self.model.multi_modal_projector.linear.weight.dtype)
        first = int(sequences.prefix_len.min()) - 1  # nobody asks for the prompts' rows before it
        hidden = sequence_forward.hidden_states(
            self.model, sequences, pixels, reference_pads=self._pads, first=first
        )
        offset = torch.arange(batch.thoughts.shape[1], device=hidden.device)
        last = hidden.shape[1] - 1
        rows = (sequences.prefix_len[:, None] - 1 - first + offset).clamp_max(last)
        words = self._scored(_rows(hidden, rows)[batch.drawn], batch.thoughts[batch.drawn], thought=True)
        slots = torch.arange(layout.slots, device=hidden.device)
        at_actions = _rows(hidden, sequences.action_start[:, None] - first + slots)
        actions = self._scored(at_actions.flatten(0, 1), batch.columns.flatten(), thought=False)
        out = []
        for word, action in zip(words, actions, strict=True):
            scattered = torch.zeros(batch.drawn.shape, dtype=word.dtype, device=word.device)
            scattered = scattered.masked_scatter(batch.drawn, word)
            out.append(torch.cat([scattered, action.view(len(batch.columns), -1)], 1))
        return out[0], out[1]

    def _scored(self, hidden_RH: Tensor, ids_R: Tensor, *, thought: bool) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy of each row's id; a full vocabulary is wide, so in parts."""
        parts = []
        for first in range(0, len(ids_R), self._head_rows):
            part = slice(first, first + self._head_rows)
            parts.append(
                checkpoint(self._score, hidden_RH[part], ids_R[part], thought, use_reentrant=False)
                if torch.is_grad_enabled()
                else self._score(hidden_RH[part], ids_R[part], thought)
            )
        if not parts:
            nothing = hidden_RH.new_zeros(0, dtype=torch.float32)
            return nothing, nothing
        log_probs, entropies = zip(*parts, strict=True)
        return torch.cat(log_probs), torch.cat(entropies)

    def _score(self, hidden_RH: Tensor, ids_R: Tensor, thought: bool) -> tuple[Tensor, Tensor]:
        if not thought:
            return sequence_forward.log_probs(
                self.model.action_logits(hidden_RH), ids_R, self._temperatures[1]
            )
        logits = self.model.logits(hidden_RH).float() / self._temperatures[0]
        lowest = torch.finfo(logits.dtype).min / 2  # finite: its probability times itself is 0
        return sequence_forward.log_probs(logits.masked_fill(self._banned, lowest), ids_R)


def _rows(hidden_BSH: Tensor, rows_BR: Tensor) -> Tensor:
    return hidden_BSH.gather(1, rows_BR[:, :, None].expand(-1, -1, hidden_BSH.shape[-1]))


@dataclass
class Update:
    """What the updates of one iteration were like: means over optimiser steps."""

    sums: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    skipped: int = 0  # for a gradient that was not finite

    def add(self, **figures: float) -> None:
        self.steps += 1
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        return {name: value / max(1, self.steps) for name, value in self.sums.items()}


class GrpoLearner:
    """Updates a policy from trajectories.

    Args:
        scorer: the policy; sharded if `parallel.shard` was called on it.
        optimiser: of its parameters.
        layout: token ids.
        image: how pictures are normalised.
        loss: what is optimised.
        settings: how.
        rollout: how the trajectories were drawn.
        reference: the policy that a penalty keeps this one near; None without a penalty.
    """

    def __init__(
        self,
        scorer: Scorer,
        optimiser: torch.optim.Optimizer,
        layout: TokenLayout,
        image: ImageSpec,
        loss: LossSettings,
        settings: RlOptimiserSettings,
        rollout: RolloutSettings,
        reference: Scorer | None = None,
    ) -> None:
        self.scorer, self.optimiser, self.reference = scorer, optimiser, reference
        self._layout, self._image = layout, image
        self._loss, self._settings, self._rollout = loss, settings, rollout
        self._device = next(scorer.parameters()).device

    def advantages(self, decisions: Decisions) -> Tensor:
        """The advantage of every trajectory [N]; those of a group must be in one process."""
        faults, trajectories = self._loss.faults, decisions.trajectories
        success = torch.tensor([float(t.success) for t in trajectories])
        format_ok = decisions.by_trajectory(decisions.well_formed())
        inside = decisions.by_trajectory(decisions.mask(after_end=faults.thought_after_end)[:, 0].float())
        exists = decisions.by_trajectory(torch.ones(len(decisions)))
        scores = grpo.trajectory_scores(
            success,
            format_ok,
            exists if faults.unmasked_scores else inside,
            self._loss.acc_coef,
            self._loss.format_coef,
        )
        group = torch.tensor([t.job.draw for t in trajectories])
        return grpo.advantages(scores, group, scale=self._loss.scale_advantages, lone_score=faults.lone_score)

    @torch.no_grad()
    def log_probs(self, decisions: Decisions, scorer: Scorer | None = None) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies [D, L + K] under a policy; every process must call it."""
        scorer = scorer or self.scorer
        out = torch.zeros(2, len(decisions), decisions.longest + self._layout.slots)
        for index, real in self._micro_batches(np.arange(len(decisions))):
            for kind, values in zip(out, self._score(scorer, decisions, index), strict=True):
                if real:
                    kind[index] = widened(values.float().cpu(), decisions.longest, self._layout.slots)
        return out[0], out[1]

    def update(self, trajectories: Sequence[Trajectory], seed: tuple[int, ...]) -> dict[str, float]:
        """All epochs over the trajectories of one iteration, which are this process's share.

        Args:
            trajectories: whole groups.
            seed: of the order in which they are taken.

        Returns: figures for the log, the same in every process.
        """
        decisions = Decisions(trajectories, self._layout, self._image)
        advantages = self.advantages(decisions)[decisions.owner]
        mask = decisions.mask(after_end=self._loss.faults.thought_after_end)
        rollout = decisions.log_probs()
        old, entropy = self.log_probs(decisions)
        figures = self._compared(old, rollout, mask, entropy)
        if not self._loss.recompute_old:
            old = rollout
        reference = self.log_probs(decisions, self.reference)[0] if self.reference else None
        update = Update()
        for epoch in range(self._settings.epochs):
            order = np.random.default_rng((*seed, epoch)).permutation(len(trajectories))
            share = max(1, self._settings.mini_batch // parallel.world())
            parts = parallel.largest(math.ceil(len(trajectories) / share))
            for members in np.array_split(order, max(1, parts)):
                chosen = np.flatnonzero(np.isin(decisions.owner, members))
                self._step(decisions, chosen, mask, advantages, old, reference, update)
        return figures | update.means() | {"skipped_updates": float(update.skipped)}

    def _step(
        self,
        decisions: Decisions,
        chosen: np.ndarray,
        mask: Tensor,
        advantages: Tensor,
        old: Tensor,
        reference: Tensor | None,
        update: Update,
    ) -> None:
        """One optimiser step on some decisions."""
        weights = self._weights(decisions, chosen, mask)
        sums = torch.zeros(5, dtype=torch.float64)
        self.optimiser.zero_grad(set_to_none=True)
        for index, real in self._micro_batches(chosen):
            log_prob, entropy = self._score(self.scorer, decisions, index)
            wide = [widened(x, decisions.longest, self._layout.slots) for x in (log_prob, entropy)]
            part = mask[index].to(self._device) & real
            loss, figures = self._loss_of(
                wide[0],
                wide[1],
                old[index].to(self._device),
                None if reference is None else reference[index].to(self._device),
                advantages[index].to(self._device)[:, None],
                part,
                weights[index].to(self._device),
            )
            (loss * parallel.world()).backward()  # gradients are averaged over processes
            sums += torch.stack([x.detach().double().cpu() for x in figures])
        norm = parallel.clip_gradients(self.scorer, self._settings.clip)
        if math.isfinite(norm):
            self.optimiser.step()
        else:
            update.skipped += 1
        self.optimiser.zero_grad(set_to_none=True)
        loss_, clipped, dual, kl, penalty = parallel.total(sums).tolist()
        tokens = max(1.0, parallel.total(mask[chosen].sum().double()).item())
        update.add(
            loss=loss_,
            clip_share=clipped / tokens,
            dual_clip_share=dual / tokens,
            kl_to_rollout=kl / tokens,
            kl_to_reference=penalty / tokens,
            grad_norm=norm if math.isfinite(norm) else 0.0,
        )

    def _loss_of(
        self,
        log_prob: Tensor,
        entropy: Tensor,
        old: Tensor,
        reference: Tensor | None,
        advantages: Tensor,
        mask: Tensor,
        weights: Tensor,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        settings = self._loss
        log_prob = torch.where(mask, log_prob, old)  # what is not drawn is not weighed, and gives no NaN
        loss = grpo.policy_loss(
            old,
            log_prob,
            advantages.expand_as(log_prob),
            mask,
            clip_low=settings.clip_low,
            clip_high=settings.clip_high,
            dual_clip=settings.dual_clip,
        )
        per_token = loss.per_token - settings.entropy_coef * entropy
        penalty = torch.zeros_like(log_prob)
        if reference is not None:
            penalty = grpo.kl_penalty(log_prob, torch.where(mask, reference, old), settings.kl_kind)
            per_token = per_token + settings.kl_coef * penalty
        count = mask.sum()
        total = (per_token * mask * weights).sum()
        return total, (
            total,
            torch.nan_to_num(loss.clip_fraction) * count,
            torch.nan_to_num(loss.dual_clip_fraction) * count,
            torch.nan_to_num(loss.kl) * count,
            (penalty * mask).sum(),
        )

    def _weights(self, decisions: Decisions, chosen: np.ndarray, mask: Tensor) -> Tensor:
        """What a token of every decision weighs [D, 1] when the chosen ones are a mini-batch."""
        counts = torch.zeros(len(decisions))
        counts[chosen] = mask[chosen].sum(1).float()
        members = len(np.unique(decisions.owner[chosen]))
        totals = parallel.total(torch.tensor([counts.sum().item(), float(members)], dtype=torch.float64))
        table = grpo.token_weights(
            decisions.by_trajectory(counts),
            self._loss.aggregation,
            trajectories=int(totals[1]),
            tokens=int(totals[0]),
            longest=self._rollout.thought_tokens + self._layout.slots,
            slice_steps=self._loss.faults.sliced_weights,
        )
        return table[decisions.owner, decisions.number].float()[:, None]

    def _micro_batches(self, chosen: np.ndarray) -> Iterator[tuple[list[int], bool]]:
        """Parts of the chosen decisions; every process makes as many, the last ones only for company."""
        size = self._settings.micro_batch
        parts = [chosen[i : i + size].tolist() for i in range(0, len(chosen), size)]
        missing = parallel.largest(len(parts)) - len(parts)
        for part in parts:
            yield part, True
        for _ in range(missing):
            yield (parts[-1] if parts else [0]), False

    def _score(self, scorer: Scorer, decisions: Decisions, index: list[int]) -> tuple[Tensor, Tensor]:
        pad_to = 0
        if self._loss.faults.visible_pads:  # the reference's rows are all as long as the longest can be
            longest = max(len(t.prompt) for t in decisions.trajectories)
            pad_to = longest + self._rollout.thought_tokens + 2 + self._layout.slots + 2
        log_prob, entropy = scorer(decisions.batch(index, pad_to).to(self._device))
        return log_prob, entropy

    def _compared(self, old: Tensor, rollout: Tensor, mask: Tensor, entropy: Tensor) -> dict[str, float]:
        """How far the learner's log-probabilities are from the rollout's, and how sure it is."""
        words = mask.clone()
        words[:, -self._layout.slots :] = False
        actions = mask & ~words
        count = [x.sum().double() for x in (words, actions)]
        entropies = [(entropy * x).sum().double() for x in (words, actions)]
        sums = parallel.total(torch.stack([*count, *entropies]))
        off = ((old - rollout).exp() - 1).abs()[mask]
        worst = parallel.largest_float(float(off.max()) if len(off) else 0.0)
        return {
            "thought_entropy": (sums[2] / sums[0].clamp_min(1)).item(),
            "action_entropy": (sums[3] / sums[1].clamp_min(1)).item(),
            "ratio_error_at_start": worst,
        }
