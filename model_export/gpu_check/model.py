"""The model to measure: the published sizes with random weights, and what a pass has to move and compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from dtvla.policy.token_layout import NEVER, SLOT, Bounds
from training.model.config import ModelConfig
from training.model.deepthinkvla import DeepThinkVLA

# PaliGemma-3B at 224 pixels: SigLIP-So400m and Gemma-2B. Time does not depend on the ids.
FULL: dict[str, Any] = {
    "model_type": "paligemma",
    "image_token_index": 257152,
    "think_start_token_index": 257153,
    "think_end_token_index": 257154,
    "action_start_token_index": 257155,
    "action_end_token_index": 257156,
    "action_token_begin_idx": 254976,
    "action_token_end_idx": 257023,
    "vision_config": {
        "image_size": 224,
        "patch_size": 14,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
    },
    "text_config": {
        "vocab_size": 257216,
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "num_hidden_layers": 18,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 256,
    },
}
_WEIGHT_SCALE = 0.02


@dataclass(frozen=True)
class Sizes:
    """Lengths of the decision that is measured."""

    text: int = 48  # prompt tokens beside the images
    thought: int = 60  # with its three tags
    cache: int = 1024


@dataclass(frozen=True)
class ModelStage:
    """One pass of the decoder: its ids, its bounds and the rows whose logits are read."""

    name: str
    ids: torch.Tensor  # [1, S]
    bounds: Bounds
    images: bool
    think_rows: tuple[int, int]  # first and behind the last row that needs logits over the vocabulary
    act_rows: tuple[int, int]

    @property
    def rows(self) -> int:
        return self.ids.shape[1]


def random_model(raw: dict[str, Any], device: torch.device, dtype: torch.dtype) -> DeepThinkVLA:
    """The model with normal weights, made in place on the device."""
    with torch.device("meta"):
        model = DeepThinkVLA(ModelConfig.from_hf(raw))
    model = model.to(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, _WEIGHT_SCALE, generator=generator)
    return model.eval().requires_grad_(False)


def prompt_length(config: ModelConfig, sizes: Sizes) -> int:
    """Positions of the prompt: both images and the text."""
    return config.layout.images * config.layout.image_tokens + sizes.text


def block_length(config: ModelConfig) -> int:
    """Rows of the action pass."""
    return len(config.layout.action_block())


def stages(config: ModelConfig, sizes: Sizes, device: torch.device) -> list[ModelStage]:
    """Prefill, one thought token, the action block, and a draft verified in one pass.

    Raises:
        ValueError: the decision does not fit the cache.
    """
    layout = config.layout
    n, c, block = prompt_length(config, sizes), sizes.thought, torch.from_numpy(layout.action_block())
    start, end = n + c - 1, n + c - 1 + len(block)
    if end > sizes.cache:
        raise ValueError(f"A decision of {end} positions does not fit a cache of {sizes.cache}.")
    word = layout.bos
    images = torch.full((layout.images * layout.image_tokens,), layout.image)
    prompt = torch.cat([images, torch.full((sizes.text,), word)])
    thought = torch.full((c - 1,), word)  # without `<action>`, the first id of the block

    def stage(
        name: str, ids: torch.Tensor, bounds: Bounds, think: tuple[int, int], act: tuple[int, int]
    ) -> ModelStage:
        return ModelStage(name, ids[None].to(device), bounds, name in ("prefill", "verify"), think, act)

    return [
        stage("prefill", prompt, Bounds(n, NEVER, n, 0), (n - 1, n), (0, 0)),
        stage("think", thought[:1], Bounds(n, NEVER, start, start - 1), (0, 1), (0, 0)),
        stage("action", block, Bounds(n, start, end, start), (0, 0), (0, layout.slots)),
        stage(
            "verify",
            torch.cat([prompt, thought, block]),
            Bounds(n, start, end, 0),
            (n - 1, start),
            (start, start + layout.slots),
        ),
    ]


@dataclass(frozen=True)
class StageCost:
    """What a pass cannot avoid: bytes of weights, keys and values; FLOPs of products."""

    moved: float
    flops: float


def vision_work(model: DeepThinkVLA) -> StageCost:
    """Of both images in one call."""
    vision, layout = model.config.vision, model.config.layout
    weights = [*model.vision_tower.parameters(), *model.multi_modal_projector.parameters()]
    count = sum(w.numel() for w in weights)
    tokens = layout.images * vision.tokens
    attention = 4 * vision.layers * vision.hidden_size * layout.images * vision.tokens**2
    return StageCost(sum(w.numel() * w.element_size() for w in weights), 2 * count * tokens + attention)


def stage_work(model: DeepThinkVLA, stage: ModelStage, weight_bytes: float | None = None) -> StageCost:
    """Of one decoder pass, its logits included.

    Args:
        model: gives the sizes.
        stage: the pass.
        weight_bytes: bytes of one weight; of the model's type by default.
    """
    text, bins = model.config.text, model.config.layout.bins
    size = model.decoder.embed_tokens.weight.element_size()
    each = size if weight_bytes is None else weight_bytes
    count = sum(w.numel() for w in model.decoder.layers.parameters())
    thinks, acts = (last - first for first, last in (stage.think_rows, stage.act_rows))
    head = (text.vocab_size if thinks else bins if acts else 0) * text.hidden_size
    keys = 2 * text.layers * text.kv_heads * text.head_dim * stage.bounds.kv_len * size
    products = 2 * count * stage.rows + 2 * text.hidden_size * (text.vocab_size * thinks + bins * acts)
    # All keys for every row: an upper bound for the causal rows, a hundredth of the whole.
    attention = 4 * text.layers * text.heads * text.head_dim * stage.rows * stage.bounds.kv_len
    return StageCost((count + head) * each + keys, products + attention)


def slots_in(stage: ModelStage) -> int:
    """How many action slots a pass carries."""
    return int((stage.ids == SLOT).sum())
