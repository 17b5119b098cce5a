"""A tiny policy with random weights, for tests of everything around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from dtvla.policy.action_tokenizer import Normaliser
from dtvla.policy.bundle.policy_spec import PolicySpec
from dtvla.policy.images import Camera, ImageSpec
from dtvla.policy.options import CAMERAS
from dtvla.policy.token_layout import SPECIAL_TOKENS, TokenLayout
from model_export.bundle import export_bundle
from training.model.config import ModelConfig
from training.model.deepthinkvla import DeepThinkVLA

SPECIAL = tuple(SPECIAL_TOKENS.values())
BINS = 64
_WEIGHT_SCALE = 0.2


def byte_tokenizer() -> Tokenizer:
    """One token per byte behind the special tokens: every text encodes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate((*SPECIAL, *alphabet))}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def random_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """config.json of a two-layer model whose vocabulary is the tokenizer's plus `BINS` action ids."""
    text_size = tokenizer.get_vocab_size()
    newline = tokenizer.encode(";\n", add_special_tokens=False).ids
    return {
        "model_type": "paligemma",
        "image_token_index": tokenizer.token_to_id(SPECIAL_TOKENS["image"]),
        "think_start_token_index": tokenizer.token_to_id(SPECIAL_TOKENS["think"]),
        "think_end_token_index": tokenizer.token_to_id(SPECIAL_TOKENS["end_think"]),
        "action_start_token_index": tokenizer.token_to_id(SPECIAL_TOKENS["action"]),
        "action_end_token_index": tokenizer.token_to_id(SPECIAL_TOKENS["end_action"]),
        "action_token_begin_idx": text_size,
        "action_token_end_idx": text_size + BINS - 1,
        "prompt_end_token_id": newline,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "vision_config": {
            "image_size": 28,
            "patch_size": 14,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
        "text_config": {
            "vocab_size": text_size + BINS,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 16,
        },
    }


def random_model(raw: dict[str, Any], seed: int, scale: float = _WEIGHT_SCALE) -> DeepThinkVLA:
    """A model with reproducible random weights of the given standard deviation."""
    model = DeepThinkVLA(ModelConfig.from_hf(raw)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model


def random_spec(layout: TokenLayout, image_size: int, thought_cap: int = 12) -> PolicySpec:
    """A policy with the embedded suite's cameras and plain statistics."""
    return PolicySpec(
        layout=layout,
        image=ImageSpec(image_size),
        cameras=tuple(map(Camera, CAMERAS)),
        normaliser=Normaliser(-np.ones(7), np.ones(7), np.array([True] * 6 + [False])),
        execute_steps=5,
        thought_cap=thought_cap,
        cache_length=512,
        decode_shift=1,
        prompt_prefix="",
        provenance={"note": "random weights, for tests only"},
    )


def random_bundle(out: Path, seed: int = 0, thought_cap: int = 12) -> Path:
    """Writes a bundle of a tiny random model; the thought runs to its cap of random words.

    Args:
        out: directory to create.
        seed: of the weights.
        thought_cap: tokens of every thought.
    """
    tokenizer = byte_tokenizer()
    model = random_model(random_config(tokenizer), seed)
    spec = random_spec(model.config.layout, model.config.vision.image_size, thought_cap)
    export_bundle(model, spec, tokenizer, Path(out))
    return Path(out)
