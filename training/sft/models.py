"""The model of a run: a size to train from scratch, or a checkpoint to go on from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from dtvla.policy.prompt import THINKING_PREFIX
from training.common import parallel
from training.datasets.tokenizer import train_tokenizer
from training.model.config import ModelConfig
from training.model.deepthinkvla import DeepThinkVLA
from training.model.hf_checkpoint import load_model, read_config, read_json, read_tokenizer, resolve
from training.model.lora import add_adapters
from training.model.onednn import use_onednn
from training.sft.settings import ModelSettings

BINS = 256
SMALL_PREFIX = "Think, then act. "  # shorter than the published one: fewer tokens in every sequence
IMAGE_PX = 96


@dataclass(frozen=True)
class TrainableModel:
    """A model that is about to be trained, and what belongs to it."""

    model: DeepThinkVLA
    tokenizer: Tokenizer
    prompt_prefix: str
    decode_shift: int
    cache_length: int


def small_config(vocab: int, image_size: int = IMAGE_PX) -> dict[str, Any]:
    """config.json of the small policy (3 M): the published architecture with other numbers, plus the stem."""
    return _config(
        vocab,
        vision={"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 2},
        vision_heads=6,
        stem=[32, 64, 128],
        text={"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 5},
        text_heads=(6, 2, 32),
        image_size=image_size,
    )


def base_config(vocab: int, image_size: int = 128) -> dict[str, Any]:
    """config.json of a policy of 50 M parameters, for one GPU or a patient CPU."""
    return _config(
        vocab,
        vision={"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6},
        vision_heads=6,
        stem=[64, 128, 256],
        text={"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12},
        text_heads=(8, 2, 64),
        image_size=image_size,
    )


def _config(
    vocab: int,
    *,
    vision: dict[str, int],
    vision_heads: int,
    stem: list[int],
    text: dict[str, int],
    text_heads: tuple[int, int, int],
    image_size: int,
) -> dict[str, Any]:
    heads, kv_heads, head_dim = text_heads
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
            **vision,
            "num_attention_heads": vision_heads,
            "stem_channels": stem,
        },
        "text_config": {
            "model_type": "gemma",
            "vocab_size": vocab + BINS,
            **text,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "rope_theta": 500.0,  # sequences are short: spend the frequencies on 1 to 250 positions
        },
    }


SIZES = {"tiny": small_config, "base": base_config}


def make_trainable_model(settings: ModelSettings, seed: int) -> TrainableModel:
    """The model that a run begins with.

    Args:
        settings: of the model.
        seed: of fresh weights.

    Raises:
        CheckpointError: a checkpoint that cannot be used.
    """
    if settings.init in SIZES:
        tokenizer = train_tokenizer(SMALL_PREFIX)
        raw = SIZES[settings.init](tokenizer.get_vocab_size())
        raw["prompt_end_token_id"] = tokenizer.encode(";\n", add_special_tokens=False).ids
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # torch itself draws the biases
            model = DeepThinkVLA(ModelConfig.from_hf(raw))
        initialise(model, seed)
        learner = TrainableModel(model, tokenizer, SMALL_PREFIX, decode_shift=1, cache_length=320)
    else:
        learner = _from_checkpoint(settings.init)
    model = learner.model.train()
    if settings.onednn:
        use_onednn(model)
    if settings.lora_rank:
        add_adapters(model.decoder, settings.lora_rank, settings.lora_alpha, seed)
    if settings.gradient_checkpointing:
        parallel.recompute_layers(model)
    return learner


def _from_checkpoint(source: str) -> TrainableModel:
    """A published or own checkpoint; its actions' statistics may be missing, they come from the dataset."""
    folder = resolve(source)
    tokenizer = read_tokenizer(folder, read_config(folder).layout)
    said = read_json(folder / "policy.json") if (folder / "policy.json").is_file() else {}
    return TrainableModel(
        load_model(folder),
        tokenizer,
        str(said.get("prompt_prefix", THINKING_PREFIX)),
        int(said.get("decode_shift", 0)),
        int(said.get("cache_length", 1024)),
    )


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


def part_of(name: str) -> str:
    """Which part of the model a parameter belongs to: vision, projector or decoder."""
    first = name.split(".", 1)[0]
    return {"vision_tower": "vision", "multi_modal_projector": "projector"}.get(first, "decoder")


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
