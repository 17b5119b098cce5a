"""Sizes of a model: the published configuration file as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from msgspec import Meta

from dtvla.policy.token_layout import TokenLayout
from dtvla.structured import Count, FieldError, read

# What transformers' SiglipVisionConfig and GemmaConfig take when a config.json leaves the field out, which
# `save_pretrained` does with every value that equals its default.
SIGLIP_IMAGE_SIZE, GEMMA_HEAD_DIM = 224, 256
PROMPT_END = (235289, 108)  # ";" and newline; hard-coded in the reference
MIN_BINS = 3


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of the SigLIP tower."""

    image_size: int
    patch_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    layer_norm_eps: float = 1e-6
    # Output channels of stride-2 3x3 convolutions in front of the patch embedding; () is SigLIP itself.
    # A small tower trained from scratch on little data needs them (docs/decisions/0003-conv-stem.md).
    stem: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the Gemma decoder."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0


@dataclass(frozen=True)
class ModelConfig:
    """A complete model: both towers and the token layout."""

    vision: VisionConfig
    text: TextConfig
    layout: TokenLayout
    raw: dict[str, Any] = field(default_factory=dict, compare=False)  # the config.json it came from

    @classmethod
    def from_hf(cls, raw: dict[str, Any]) -> ModelConfig:
        """Reads a Hugging Face style config.json of this family.

        Raises:
            ValueError: another model family, or a field that is missing.
        """
        if raw.get("model_type") != "paligemma":
            raise ValueError(
                f"config.json is of model_type {raw.get('model_type')!r}; this code loads the paligemma "
                "family that DeepThinkVLA is made of. Point to a DeepThinkVLA checkpoint."
            )
        try:
            file = read(_ConfigFile, _without_null(raw), others=True)
        except FieldError as error:
            raise ValueError(_explained(error)) from None
        v, t = file.vision_config, file.text_config
        vision = VisionConfig(
            image_size=v.image_size,
            patch_size=v.patch_size,
            hidden_size=v.hidden_size,
            intermediate_size=v.intermediate_size,
            layers=v.num_hidden_layers,
            heads=v.num_attention_heads,
            layer_norm_eps=v.layer_norm_eps,
            stem=v.stem_channels,
        )
        text = TextConfig(
            vocab_size=t.vocab_size,
            hidden_size=t.hidden_size,
            intermediate_size=t.intermediate_size,
            layers=t.num_hidden_layers,
            heads=t.num_attention_heads,
            kv_heads=t.num_key_value_heads,
            head_dim=t.head_dim,
            rms_norm_eps=t.rms_norm_eps,
            rope_theta=t.rope_theta,
        )
        config = cls(vision, text, _layout(file, vision.tokens), raw)
        _check(config)
        return config


@dataclass(frozen=True)
class _VisionFile:
    """`vision_config` of config.json, with its names."""

    patch_size: Count
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    image_size: Count = SIGLIP_IMAGE_SIZE
    layer_norm_eps: float = 1e-6
    stem_channels: tuple[int, ...] = ()


@dataclass(frozen=True)
class _TextFile:
    """`text_config` of config.json, with its names."""

    vocab_size: Count
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count
    head_dim: Count = GEMMA_HEAD_DIM
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0


@dataclass(frozen=True)
class _ConfigFile:
    """What this code needs of a config.json."""

    vision_config: _VisionFile
    text_config: _TextFile
    image_token_index: int
    think_start_token_index: int
    think_end_token_index: int
    action_start_token_index: int
    action_end_token_index: int
    action_token_begin_idx: int
    action_token_end_idx: int
    pad_token_id: int = 0
    eos_token_id: int = 1
    bos_token_id: int = 2
    prompt_end_token_id: Annotated[tuple[int, int], Meta(description="two token ids")] = PROMPT_END
    num_images: Count = 2
    action_horizon: Count = 10
    action_dim: Count = 7


def _without_null(raw: dict[str, Any]) -> dict[str, Any]:
    """A config.json without fields that are null, which counts as left out."""
    return {
        key: {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value
        for key, value in raw.items()
        if value is not None
    }


def _explained(error: FieldError) -> str:
    if error.problem == "missing":
        return f"config.json lacks the field {error.path!r}, which a DeepThinkVLA model needs."
    if error.path == "prompt_end_token_id":
        return f"prompt_end_token_id must hold {error.wanted}, not {error.shown}."
    return f"{error.path} must be {error.wanted}, not {error.shown}."


def _layout(file: _ConfigFile, image_tokens: int) -> TokenLayout:
    """The ids and sizes of a config.json; raises ValueError for an id outside the vocabulary."""
    last = file.text_config.vocab_size - 1
    for name, value in vars(file).items():
        is_id = name.endswith(("_token_index", "_idx", "_token_id")) and isinstance(value, int)
        if is_id and not 0 <= value <= last:
            raise ValueError(f"{name} is {value}, but the ids are 0 to {last}.")
    return TokenLayout(
        vocab_size=file.text_config.vocab_size,
        image=file.image_token_index,
        think=file.think_start_token_index,
        end_think=file.think_end_token_index,
        action=file.action_start_token_index,
        end_action=file.action_end_token_index,
        action_begin=file.action_token_begin_idx,
        bins=file.action_token_end_idx - file.action_token_begin_idx + 1,
        prompt_end=file.prompt_end_token_id,
        image_tokens=image_tokens,
        images=file.num_images,
        horizon=file.action_horizon,
        action_dim=file.action_dim,
        pad=file.pad_token_id,
        eos=file.eos_token_id,
        bos=file.bos_token_id,
    )


def _check(config: ModelConfig) -> None:
    """Relations between fields, without which a model would be built that nobody trained."""
    vision, text, layout = config.vision, config.text, config.layout
    for section, whole, part in (
        ("vision_config", "hidden_size", "num_attention_heads"),
        ("text_config", "num_attention_heads", "num_key_value_heads"),
    ):
        a, b = (vision.hidden_size, vision.heads) if whole == "hidden_size" else (text.heads, text.kv_heads)
        if a % b:
            raise ValueError(f"{section}.{whole} ({a}) must be a multiple of {part} ({b}).")
    if text.head_dim % 2:
        raise ValueError(f"text_config.head_dim must be even, not {text.head_dim}.")
    if layout.bins < MIN_BINS:
        raise ValueError(
            f"action_token_begin_idx to action_token_end_idx are {layout.bins} ids; actions need {MIN_BINS}."
        )
