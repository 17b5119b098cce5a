"""Sizes of a model: the published configuration file as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dtvla.policy.layout import TokenLayout


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
            return cls._read(raw)
        except KeyError as missing:
            raise ValueError(
                f"config.json lacks the field {missing}, which a DeepThinkVLA model needs."
            ) from None

    @classmethod
    def _read(cls, raw: dict[str, Any]) -> ModelConfig:
        v, t = raw["vision_config"], raw["text_config"]
        vision = VisionConfig(
            image_size=v["image_size"],
            patch_size=v["patch_size"],
            hidden_size=v["hidden_size"],
            intermediate_size=v["intermediate_size"],
            layers=v["num_hidden_layers"],
            heads=v["num_attention_heads"],
            layer_norm_eps=v.get("layer_norm_eps", 1e-6),
            stem=tuple(v.get("stem_channels", ())),
        )
        text = TextConfig(
            vocab_size=t["vocab_size"],
            hidden_size=t["hidden_size"],
            intermediate_size=t["intermediate_size"],
            layers=t["num_hidden_layers"],
            heads=t["num_attention_heads"],
            kv_heads=t["num_key_value_heads"],
            head_dim=t.get("head_dim", t["hidden_size"] // t["num_attention_heads"]),
            rms_norm_eps=t.get("rms_norm_eps", 1e-6),
            rope_theta=t.get("rope_theta", 10000.0),
        )
        begin = raw["action_token_begin_idx"]
        layout = TokenLayout(
            vocab_size=t["vocab_size"],
            image=raw["image_token_index"],
            think=raw["think_start_token_index"],
            end_think=raw["think_end_token_index"],
            action=raw["action_start_token_index"],
            end_action=raw["action_end_token_index"],
            action_begin=begin,
            bins=raw["action_token_end_idx"] - begin + 1,
            prompt_end=tuple(raw.get("prompt_end_token_id", (235289, 108))),
            image_tokens=vision.tokens,
            images=raw.get("num_images", 2),
            horizon=raw.get("action_horizon", 10),
            action_dim=raw.get("action_dim", 7),
            pad=raw.get("pad_token_id", 0),
            eos=raw.get("eos_token_id", 1),
            bos=raw.get("bos_token_id", 2),
        )
        return cls(vision, text, layout, raw)
