"""Supervised fine-tuning on thoughts and actions: one hybrid-attention pass, one cross entropy.

    python -m training.sft --data data/embedded --out runs/sft/embedded
    torchrun --nproc-per-node 2 -m training.sft --threads 1          # the same steps on two cores

Run the same command again to go on after an interruption: model, optimiser and step come from the
last checkpoint, and the samples of a step depend on (seed, step) alone. TensorBoard: `tensorboard
--logdir runs/sft`. The checkpoint folder is what `python -m model_export` reads.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as distributed
import torch.nn.functional as F
import tyro
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from dtvla.policy.codec import ActionCodec, Normaliser
from dtvla.policy.images import Camera, ImageSpec
from dtvla.policy.spec import PolicySpec
from training.config import ModelConfig
from training.data import Batch, Samples, load_frames, quantiles
from training.model import DeepThinkVLA, hybrid_mask
from training.muon import Muon
from training.tokenizer import train_tokenizer

BINS = 256
SMALL_PREFIX = "Think, then act. "  # shorter than the published one: fewer tokens in every sequence


@dataclass(frozen=True)
class Sft:
    """A training run of the small policy."""

    data: Path = Path("data/embedded")
    out: Path = Path("runs/sft/embedded")
    steps: int = 2900
    batch: int = 32  # over all processes
    lr: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.02
    clip: float = 1.0
    thought_weight: float = 5.0  # weight of a thought token against an action token (the reference: 1)
    execute_steps: int = 5  # rows of a chunk that the runtime executes per decision
    seed: int = 429
    threads: int = 2
    log_every: int = 20
    save_every: int = 100
    validate_on: int = 192  # held-out frames
    stop_after: int | None = None  # end this run at that step; the schedule still aims at `steps`


def small_config(vocab: int, image_size: int = 96) -> dict[str, Any]:
    """config.json of the small policy: the published architecture with other numbers, plus the stem."""
    return {
        "model_type": "paligemma",
        "architectures": ["DeepThinkVLA"],
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "image_token_index": 3,
        "think_start_token_index": 4,
        "think_end_token_index": 5,
        "action_start_token_index": 6,
        "action_end_token_index": 7,
        "action_token_begin_idx": vocab,
        "action_token_end_idx": vocab + BINS - 1,
        "vision_config": {
            "model_type": "siglip_vision_model",
            "image_size": image_size,
            "patch_size": 16,
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "stem_channels": [32, 64, 128],
        },
        "text_config": {
            "model_type": "gemma",
            "vocab_size": vocab + BINS,
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 5,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "rope_theta": 500.0,  # sequences are short: spend the frequencies on 1 to 250 positions
        },
    }


def initialise(model: DeepThinkVLA, seed: int) -> None:
    """Weights for training from scratch: unit-variance inputs, small residual branches."""
    generator = torch.Generator().manual_seed(seed)
    depth = model.config.text.layers
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            continue
        if name.endswith("embed_tokens.weight"):
            std = 0.03  # the head is tied: larger, and every token would first predict itself
        elif name.endswith("position_embedding.weight"):
            std = 0.1
        else:
            std = parameter[0].numel() ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight", "out_proj.weight", "fc2.weight")):
                std /= math.sqrt(2 * depth)
        with torch.no_grad():
            parameter.normal_(0.0, std, generator=generator)


def make_optimisers(config: Sft, model: DeepThinkVLA) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of both towers, AdamW for embeddings, convolutions, norms and biases.

    Muon is for training from scratch; the reference fine-tunes its checkpoint with AdamW alone.
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim == 2 and "embed" not in name
        (matrices if matrix else others).append(parameter)
    return [
        Muon(matrices, lr=config.lr, weight_decay=config.weight_decay),
        torch.optim.AdamW(others, lr=config.lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def average_gradients(model: DeepThinkVLA) -> None:
    """Averages the gradients over all processes; nothing to do in a single one."""
    if not distributed.is_initialized():
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def learning_rate(config: Sft, step: int) -> float:
    """Linear warm-up, then a cosine to a twentieth."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
    return config.lr * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


@dataclass(frozen=True)
class Losses:
    """What one batch gives: the training loss and its two parts, and hits for the logs."""

    loss: Tensor
    thought: Tensor  # mean cross entropy of thought tokens
    action: Tensor  # mean cross entropy of action tokens
    thought_accuracy: Tensor
    action_columns: Tensor  # [B, slots] most likely column of the action head
    target_columns: Tensor  # [B, slots]


def compute_losses(model: DeepThinkVLA, batch: Batch, thought_weight: float) -> Losses:
    """One hybrid pass over whole sequences and the cross entropy of everything behind the prompt.

    The reference weighs every token alike (`thought_weight` 1). Only supervised rows meet the head.
    """
    layout = model.config.layout
    size = batch.ids.shape[1]
    features = model.image_features(batch.pixels)
    features = features.reshape(len(batch.ids), -1, features.shape[-1])
    mask = hybrid_mask(batch.prefix_len, batch.action_start, batch.length, size)
    positions = torch.arange(1, size + 1)[None]
    hidden = model.hidden(model.embed(batch.ids, features), positions, mask)
    supervised = batch.targets >= 0
    logits = model.logits(hidden[supervised][None])[0]
    targets = batch.targets[supervised]
    loss_per_token = F.cross_entropy(logits, targets, reduction="none")
    is_action = (targets >= layout.action_begin) & (targets <= layout.action_end)
    weight = torch.where(is_action, 1.0, thought_weight)
    best = logits.detach().argmax(-1)
    columns = logits.detach()[is_action, layout.action_begin : layout.action_end + 1].argmax(-1)
    return Losses(
        loss=(loss_per_token * weight).sum() / weight.sum(),
        thought=loss_per_token[~is_action].detach().mean(),
        action=loss_per_token[is_action].detach().mean(),
        thought_accuracy=(best == targets)[~is_action].float().mean(),
        action_columns=columns.view(-1, layout.slots),
        target_columns=(targets[is_action] - layout.action_begin).view(-1, layout.slots),
    )


@torch.no_grad()
def validate(
    model: DeepThinkVLA, samples: Samples, codec: ActionCodec, seed: int, size: int
) -> dict[str, float]:
    """Held-out figures: losses, share of thought tokens right, action L1 in normalised units."""
    model.eval()
    rng = np.random.default_rng(seed)
    index = samples.draw(rng, size, weighted=False)
    sums: dict[str, list[float]] = {}
    for part in np.array_split(index, max(1, size // 32)):
        out = compute_losses(model, samples.batch(part), 1.0)
        error = np.abs(
            codec.decode_columns(out.action_columns.numpy())
            - codec.decode_columns(out.target_columns.numpy())
        )
        figures = {
            "thought_loss": float(out.thought),
            "action_loss": float(out.action),
            "thought_accuracy": float(out.thought_accuracy),
            "action_l1": float(error[:, np.arange(error.shape[1]) % 7 < 3].mean()),
            "gripper_wrong": float((error[:, 6::7] > 0.5).mean()),
        }
        for key, value in figures.items():
            sums.setdefault(key, []).append(value)
    model.train()
    return {key: float(np.mean(values)) for key, values in sums.items()}


def save_checkpoint(
    out: Path, model: DeepThinkVLA, optimisers: list[torch.optim.Optimizer], step: int
) -> None:
    """Replaces the checkpoint atomically: weights for the export, optimiser and step for resuming."""
    weights = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, out / "model.safetensors.part", metadata={"format": "pt"})
    torch.save({"optimisers": [o.state_dict() for o in optimisers], "step": step}, out / "trainer.pt.part")
    for name in ("trainer.pt", "model.safetensors"):
        os.replace(out / f"{name}.part", out / name)


def git_commit() -> str:
    """The commit of this working copy, or `unknown` outside git."""
    result = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or "unknown"


def main(config: Sft) -> None:
    """Trains until `steps`; resumes where the checkpoint in `out` stands."""
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads)
    if "WORLD_SIZE" in os.environ:
        distributed.init_process_group("gloo")
    console = Console(quiet=os.environ.get("RANK", "0") != "0")
    config.out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(SMALL_PREFIX)
    raw = small_config(tokenizer.get_vocab_size())
    ending = tokenizer.encode(";\n", add_special_tokens=False).ids
    raw["prompt_end_token_id"] = ending
    model_config = ModelConfig.from_hf(raw)
    layout = model_config.layout
    train, held_out = (
        load_frames(config.data, model_config.vision.image_size, layout.horizon, held_out=flag)
        for flag in (False, True)
    )
    stats_file = config.out / "norm_stats.json"
    if stats_file.exists():  # a resumed run keeps its normalisation, also when episodes were added
        normaliser = Normaliser.from_stats(json.loads(stats_file.read_text())["action"], layout.action_dim)
    else:
        q01, q99 = quantiles(train.actions)
        normaliser = Normaliser(q01, q99, np.arange(layout.action_dim) < 6)
    codec = ActionCodec(layout.bins, layout.action_begin, decode_shift=1)
    samples, unseen = (
        Samples(f, tokenizer, layout, codec, normaliser, SMALL_PREFIX) for f in (train, held_out)
    )

    model = DeepThinkVLA(model_config)
    initialise(model, config.seed)
    optimisers = make_optimisers(config, model)
    step = 0
    if (config.out / "trainer.pt").exists():
        state = torch.load(config.out / "trainer.pt", weights_only=True)
        model.load_state_dict(load_file(config.out / "model.safetensors"))
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        step = state["step"]
    spec = PolicySpec(
        layout=layout,
        image=ImageSpec(size=model_config.vision.image_size),
        cameras=(Camera("agentview"), Camera("wrist")),
        normaliser=normaliser,
        execute_steps=config.execute_steps,
        thought_cap=64,
        cache_length=320,
        decode_shift=1,
        prompt_prefix=SMALL_PREFIX,
        provenance={
            "code": git_commit(),
            "run": {key: str(value) for key, value in asdict(config).items()},
            "dataset": f"{train.episodes} episodes of the embedded suite with the expert's labels "
            f"({len(train.images)} looks, {len(train)} labelled rows)",
        },
    )
    tokenizer.save(str(config.out / "tokenizer.json"))
    (config.out / "config.json").write_text(json.dumps(raw, indent=1))
    (config.out / "norm_stats.json").write_text(json.dumps({"action": normaliser.to_stats()}, indent=1))
    (config.out / "policy.json").write_text(json.dumps(spec.to_json(), indent=1))
    parameters = sum(p.numel() for p in model.parameters())
    console.print(
        f"{parameters / 1e6:.2f} M parameters, {len(train)} labelled rows of {train.episodes} episodes, "
        f"step {step}"
    )
    _loop(config, model, optimisers, samples, unseen, codec, step, console)


def _loop(
    config: Sft,
    model: DeepThinkVLA,
    optimisers: list[torch.optim.Optimizer],
    samples: Samples,
    unseen: Samples,
    codec: ActionCodec,
    step: int,
    console: Console,
) -> None:
    rank, world = (
        (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    )
    writer = SummaryWriter(str(config.out)) if rank == 0 else None
    started, first = time.monotonic(), step
    last = min(config.steps, config.stop_after or config.steps)
    while step < last:
        rng = np.random.default_rng((config.seed, step))
        for group in (group for optimiser in optimisers for group in optimiser.param_groups):
            group["lr"] = learning_rate(config, step)
        index = samples.draw(rng, config.batch)
        batch = samples.batch(index[rank::world], np.random.default_rng((config.seed, step, rank)))
        losses = compute_losses(model, batch, config.thought_weight)
        model.zero_grad(set_to_none=True)
        losses.loss.backward()
        average_gradients(model)
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        for optimiser in optimisers:
            optimiser.step()
        step += 1
        if writer is None:
            continue
        if step % config.log_every == 0:
            rate = (step - first) * config.batch / (time.monotonic() - started)
            scalars: dict[str, float] = {
                "thought": float(losses.thought),
                "action": float(losses.action),
                "thought_accuracy": float(losses.thought_accuracy),
                "grad_norm": float(norm),
                "samples_per_s": rate,
            }
            for key, value in scalars.items():
                writer.add_scalar(f"train/{key}", value, step)
            left = (config.steps - step) * config.batch / rate / 60
            console.print(
                f"step {step}/{config.steps}  thought {losses.thought:.3f} ({losses.thought_accuracy:.3f})  "
                f"action {losses.action:.3f}  {rate:.1f} samples/s  {left:.0f} min left"
            )
        if step % config.save_every == 0 or step == last:
            save_checkpoint(config.out, model, optimisers, step)
            figures = validate(model, unseen, codec, config.seed, config.validate_on)
            for key, value in figures.items():
                writer.add_scalar(f"held_out/{key}", value, step)
            console.print("  held out: " + "  ".join(f"{key} {value:.3f}" for key, value in figures.items()))
    if writer is not None:
        writer.close()


if __name__ == "__main__":
    main(tyro.cli(Sft, description=__doc__))
