"""A policy of middle size with random weights, to measure time with.

python -m tools.benchmarks.midsize runs/midsize      # hidden 512, 8 layers, 2 x 256 image tokens
python -m tools.benchmarks --larger runs/midsize
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import Positional

from dtvla.policy.bundle.loading import Bundle
from dtvla.policy.images import ImageSpec
from dtvla.resources import default_bundle
from model_export.bundle import export_bundle
from model_export.sample import random_config, random_model
from training.model.deepthinkvla import DeepThinkVLA

PROMPT_WORDS = 64  # tokens of the longest prompt around an instruction


def midsize_model(small: Bundle) -> DeepThinkVLA:
    """A model of middle size with the vocabulary of a small policy."""
    layout = small.spec.layout
    raw: dict[str, Any] = {
        **random_config(small.tokenizer),
        "action_token_begin_idx": layout.action_begin,
        "action_token_end_idx": layout.action_end,
        "vision_config": {
            "image_size": 224,
            "patch_size": 14,
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
        },
        "text_config": {
            "vocab_size": layout.vocab_size,
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 64,
        },
    }
    return random_model(raw, seed=0, scale=0.02)


def random_weights_bundle(model: DeepThinkVLA, out: Path, like: Bundle) -> Path:
    """Writes a bundle of a model with the tokenizer, prompts and limits of another one.

    Args:
        model: whose vocabulary is that of `like`.
        out: directory to create.
        like: a bundle whose thoughts it can be dictated (`python -m tools.benchmarks --larger`).
    """
    layout = model.config.layout
    prompt = layout.images * layout.image_tokens + PROMPT_WORDS
    spec = replace(
        like.spec,
        layout=layout,
        image=ImageSpec(model.config.vision.image_size),
        cache_length=-(-(prompt + like.spec.thought_cap + layout.slots + 4) // 64) * 64,
        provenance={"note": "random weights, to measure time only"},
    )
    export_bundle(model, spec, like.tokenizer, out)
    return out


def main(out: Positional[Path], like: Path | None = None) -> None:
    """Writes the bundle to OUT, with the tokenizer and limits of LIKE (default: the shipped bundle)."""
    small = Bundle.load(like or default_bundle())
    print(random_weights_bundle(midsize_model(small), out, small))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
