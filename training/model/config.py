"""Sizes of a model: the published configuration file as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from dtvla.policy.token_layout import TokenLayout

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
            config = cls._read(raw)
        except KeyError as missing:
            raise ValueError(
                f"config.json lacks the field {missing}, which a DeepThinkVLA model needs."
            ) from None
        _check(config)
        return config

    @classmethod
    def _read(cls, raw: dict[str, Any]) -> ModelConfig:
        v, t = _Section(raw, "vision_config"), _Section(raw, "text_config")
        top = _Section({"": raw}, "")
        vision = VisionConfig(
            image_size=v.count("image_size", SIGLIP_IMAGE_SIZE),
            patch_size=v.count("patch_size"),
            hidden_size=v.count("hidden_size"),
            intermediate_size=v.count("intermediate_size"),
            layers=v.count("num_hidden_layers"),
            heads=v.count("num_attention_heads"),
            layer_norm_eps=v.get("layer_norm_eps", 1e-6),
            stem=tuple(v.get("stem_channels", ())),
        )
        text = TextConfig(
            vocab_size=t.count("vocab_size"),
            hidden_size=t.count("hidden_size"),
            intermediate_size=t.count("intermediate_size"),
            layers=t.count("num_hidden_layers"),
            heads=t.count("num_attention_heads"),
            kv_heads=t.count("num_key_value_heads"),
            head_dim=t.count("head_dim", GEMMA_HEAD_DIM),
            rms_norm_eps=t.get("rms_norm_eps", 1e-6),
            rope_theta=t.get("rope_theta", 10000.0),
        )
        token = partial(top.token, vocab_size=text.vocab_size)
        begin = token("action_token_begin_idx")
        layout = TokenLayout(
            vocab_size=text.vocab_size,
            image=token("image_token_index"),
            think=token("think_start_token_index"),
            end_think=token("think_end_token_index"),
            action=token("action_start_token_index"),
            end_action=token("action_end_token_index"),
            action_begin=begin,
            bins=token("action_token_end_idx") - begin + 1,
            prompt_end=_prompt_end(top.get("prompt_end_token_id", PROMPT_END)),
            image_tokens=vision.tokens,
            images=top.count("num_images", 2),
            horizon=top.count("action_horizon", 10),
            action_dim=top.count("action_dim", 7),
            pad=token("pad_token_id", 0),
            eos=token("eos_token_id", 1),
            bos=token("bos_token_id", 2),
        )
        return cls(vision, text, layout, raw)


class _Section:
    """One object of config.json, read field by field; null counts as left out."""

    def __init__(self, raw: dict[str, Any], name: str) -> None:
        self._fields, self._prefix = raw[name], f"{name}." if name else ""
        if not isinstance(self._fields, dict):
            raise ValueError(f"{name} must hold a JSON object, not {self._fields!r}.")

    def get(self, field: str, default: Any) -> Any:
        value = self._fields.get(field)
        return default if value is None else value

    def _integer(self, field: str, default: int | None) -> int:
        value = self.get(field, default)
        if value is None:
            raise KeyError(self._prefix + field)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"{self._prefix}{field} must be a whole number, not {value!r}.")
        return value

    def count(self, field: str, default: int | None = None) -> int:
        """A size or a number of things: 1 or more."""
        value = self._integer(field, default)
        if value < 1:
            raise ValueError(f"{self._prefix}{field} must be 1 or more, not {value}.")
        return value

    def token(self, field: str, default: int | None = None, *, vocab_size: int) -> int:
        """A token id: one of the vocabulary's."""
        value = self._integer(field, default)
        if not 0 <= value < vocab_size:
            raise ValueError(f"{self._prefix}{field} is {value}, but the ids are 0 to {vocab_size - 1}.")
        return value


def _prompt_end(value: Any) -> tuple[int, int]:
    if not (isinstance(value, (list, tuple)) and len(value) == 2 and all(type(i) is int for i in value)):
        raise ValueError(f"prompt_end_token_id must hold two token ids, not {value!r}.")
    return value[0], value[1]


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
