"""The steps of a supervised run, in one process or many, and what is kept of it."""

from __future__ import annotations

import json
import math
import os
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as distributed
from torch import Tensor

from dtvla.policy.action_tokenizer import ActionTokenizer, Normaliser
from dtvla.policy.bundle.policy_spec import PolicySpec
from dtvla.policy.images import Camera, ImageSpec
from dtvla.policy.options import CAMERAS
from training.common import parallel
from training.common.run_checkpoints import Checkpoints, full_weights, load_trainer, save_trainer
from training.datasets.batches import Changes, Collator, TrainingBatch, TrainingRow
from training.datasets.sources import Share, Source, open_source
from training.model.hf_checkpoint import save_policy
from training.model.lora import merged_weights
from training.sft.losses import Losses, compute_losses, token_weights
from training.sft.models import TrainableModel, make_trainable_model
from training.sft.optimisers import factor, freeze, make_optimisers, set_rates
from training.sft.settings import Sft


@dataclass(frozen=True)
class StepFigures:
    """What one step showed, in this process."""

    loss: float  # over the rows of all processes
    thought: float
    action: float
    thought_accuracy: float
    gradient_norm: float


class Trainer:
    """A run: the model, where its rows come from, and how far it is.

    Args:
        config: of the run.

    Raises:
        DatasetError, CheckpointError, ValueError: nothing can be trained from this; in plain sentences.
    """

    def __init__(self, config: Sft) -> None:
        self.config = config
        self.share = join()
        self.device = torch.device(_device())
        torch.manual_seed(config.seed)
        torch.set_num_threads(config.threads)
        self.learner: TrainableModel = make_trainable_model(config.model, config.seed)
        model = self.learner.model
        self.layout = model.config.layout
        self.source: Source = open_source(
            config.data.folder,
            image_size=model.config.vision.image_size,
            horizon=self.layout.horizon,
            tokenizer=self.learner.tokenizer,
            seed=config.seed,
            share=self.share,
            window=config.data.window,
        )
        self.checkpoints = Checkpoints(config.out, config.keep)
        self.normaliser = self._normaliser()
        self.codec = ActionTokenizer(self.layout.bins, self.layout.action_begin, self.learner.decode_shift)
        self.collator = Collator(
            self.learner.tokenizer,
            self.layout,
            self.codec,
            self.normaliser,
            self.learner.prompt_prefix,
            Changes(config.data.thought_dropout, config.data.other_words, config.data.augmentation),
            one_by_one=config.actions == "one_by_one",
        )
        model.to(self.device)
        freeze(config.optimiser, model)
        if config.parallel == "shard":
            if not distributed.is_initialized():
                raise ValueError(
                    "parallel 'shard' needs torchrun: torchrun --nproc-per-node N -m training.sft ..."
                )
            parallel.shard(model, model, config.model.dtype)
        self.optimisers = make_optimisers(config.optimiser, model)
        self.model = model
        self.step = 0
        self._unseen = [self.collator.batch(rows) for rows in _parts(self._held_out(), 32)]

    def _normaliser(self) -> Normaliser:
        """A run that goes on keeps its normalisation, also when episodes were added."""
        last = self.checkpoints.last()
        if last is not None:
            stats = json.loads((last / "norm_stats.json").read_text())
            return Normaliser.from_stats(stats["action"], self.layout.action_dim)
        return self.source.normaliser(self.layout.action_dim)

    def _held_out(self) -> list[TrainingRow]:
        return self.source.held_out(self.config.data.hold_out, self.config.seed)

    def longest(self) -> int:
        """Tokens of the longest held-out sample; where none is held out, of one with a full thought."""
        if self._unseen:
            return max(batch.ids.shape[1] for batch in self._unseen)
        layout = self.layout
        return layout.images * layout.image_tokens + self.config.thought_cap + layout.slots + 40

    # --- steps --------------------
    def advance(self) -> StepFigures:
        """One optimiser step on `batch` rows, the same whatever processes and micro-batches share it."""
        config = self.config
        set_rates(self.optimisers, factor(config.optimiser, self.step, config.steps))
        rows, places = self.source.take(self.step, config.batch)
        rngs = [np.random.default_rng((config.seed, self.step, place)) for place in places]
        size = config.micro_batch or len(rows)
        batches = [
            self.collator.batch(rows[i : i + size], rngs[i : i + size]).to(self.device)
            for i in range(0, len(rows), size)
        ]
        weights = [float(token_weights(b.targets, self.layout, config.thought_weight).sum()) for b in batches]
        whole = _sum(sum(weights))
        self.model.zero_grad(set_to_none=True)
        found: list[Losses] = []
        for batch, weight in zip(batches, weights, strict=True):
            losses = self._losses(batch)
            # Gradients are averaged over processes, and a step's loss is the mean over all its tokens.
            (losses.loss * (weight * self.share.world / whole)).backward()
            found.append(losses)
        if config.parallel == "replicate":
            parallel.average_gradients(self.model)
        norm = parallel.clip_gradients(self.model, config.optimiser.clip)
        if math.isfinite(norm):  # else the step is left out, as one bad batch must not end the run
            for optimiser in self.optimisers:
                optimiser.step()
        self.step += 1
        own = sum(float(losses.loss.detach()) * weight for losses, weight in zip(found, weights, strict=True))
        return StepFigures(
            loss=_sum(own) / whole,
            thought=_mean([losses.thought for losses in found]),
            action=_mean([losses.action for losses in found]),
            thought_accuracy=_mean([losses.thought_accuracy for losses in found]),
            gradient_norm=norm,
        )

    def _losses(self, batch: TrainingBatch) -> Losses:
        # FSDP casts by itself; a replicated model computes in bfloat16 under autocast.
        lower = self.config.model.precision == "bf16" and self.config.parallel == "replicate"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=lower):
            return compute_losses(self.model, batch, self.config.thought_weight)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Held-out figures: losses, share of thought tokens right, action L1 in normalised units.

        Every process must call it; empty where nothing is held out.
        """
        self.model.eval()
        sums: dict[str, list[float]] = {}
        for batch in self._unseen:
            out = self._losses(batch.to(self.device))
            found, true = (
                self.codec.decode_columns(columns.cpu().numpy())
                for columns in (out.action_columns, out.target_columns)
            )
            error = np.abs(found - true)
            dims = np.arange(error.shape[1]) % self.layout.action_dim
            figures = {
                "thought_loss": float(out.thought),
                "action_loss": float(out.action),
                "thought_accuracy": float(out.thought_accuracy),
                "action_l1": float(error[:, dims < 3].mean()),
                "gripper_wrong": float((error[:, dims == self.layout.action_dim - 1] > 0.5).mean()),
            }
            for key, value in figures.items():
                sums.setdefault(key, []).append(value)
        self.model.train()
        return {key: float(np.mean(values)) for key, values in sums.items()}

    # --- checkpoints --------------------
    def save(self) -> Path:
        """Writes the checkpoint of this step.

        Raises:
            TrainingError: it cannot be written; the one before is whole.
        """
        return self.checkpoints.save(self.step, self._write)

    def _write(self, folder: Path) -> None:
        weights = full_weights(self.model)
        save_trainer(folder, self.model, self.optimisers, self._position())
        if self.share.rank != 0:
            return
        settings = self.config.model
        if settings.lora_rank:
            weights = merged_weights(weights, settings.lora_alpha / settings.lora_rank)
        save_policy(folder, self.model.config, weights, self._spec(), self.learner.tokenizer)
        stats = {"action": self.normaliser.to_stats()}
        (folder / "norm_stats.json").write_text(json.dumps(stats, indent=1))

    def _spec(self) -> PolicySpec:
        config = self.config
        return PolicySpec(
            layout=self.layout,
            image=ImageSpec(size=self.model.config.vision.image_size),
            cameras=tuple(map(Camera, CAMERAS)),
            normaliser=self.normaliser,
            execute_steps=config.execute_steps,
            thought_cap=config.thought_cap,
            cache_length=self.learner.cache_length,
            decode_shift=self.learner.decode_shift,
            prompt_prefix=self.learner.prompt_prefix,
            provenance={
                "code": git_commit(),
                "run": json.loads(json.dumps(asdict(config), default=str)),
                "step": self.step,
                "dataset": self.source.description,
            },
        )

    def _position(self) -> dict[str, Any]:
        """How far the run is, and every process in its rows."""
        return {"step": self.step, "sources": json.dumps(parallel.gathered(self.source.state_dict()))}

    def resume(self) -> bool:
        """Goes on from the last checkpoint; False when there is none.

        Raises:
            TrainingError: it is of another run.
        """
        last = self.checkpoints.last()
        if last is None:
            return False
        rest = load_trainer(last, self.model, self.optimisers, self._position())
        self.step = int(rest["step"])
        states = json.loads(rest["sources"])
        self.source.load_state_dict(states[min(self.share.rank, len(states) - 1)])
        return True


def join() -> Share:
    """This process's place under torchrun; alone without it."""
    if "WORLD_SIZE" in os.environ and not distributed.is_initialized():
        parallel.begin(_device())
    return Share(parallel.rank(), parallel.world())


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def git_commit() -> str:
    """The commit of this working copy, or `unknown` outside git."""
    result = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or "unknown"


def _parts(rows: list[TrainingRow], size: int) -> list[list[TrainingRow]]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def _sum(value: float) -> float:
    """Over all processes."""
    return float(parallel.total(torch.tensor([value], dtype=torch.float64)))


def _mean(values: list[Tensor]) -> float:
    return float(torch.stack(values).mean())
