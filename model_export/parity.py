"""Compares an exported policy with the torch model it came from, phase by phase."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from dtvla.policy import decoding
from dtvla.policy.backends.protocol import Backend
from dtvla.policy.token_layout import NEVER, Bounds
from training.model.deepthinkvla import DeepThinkVLA, hybrid_mask

# Of logits. float32 against float64 differs by up to 1e-4 on models of this family; half precision keeps 11
# bits, and logits of the order of 10 are sums of thousands of such products.
TOLERANCES = {"fp32": 5e-4, "fp16": 5e-2}
_THOUGHT = 9
_TEXT = 11


class ParityError(AssertionError):
    """The exported graphs and the torch model disagree."""


@dataclass(frozen=True)
class Parity:
    """One comparison: the largest absolute difference and what is allowed."""

    phase: str
    difference: float
    tolerance: float


def check_parity(
    model: DeepThinkVLA, backend: Backend, seed: int = 0, tolerance: float = TOLERANCES["fp32"]
) -> list[Parity]:
    """Runs a random decision through both: cached phases there, one pass over the whole sequence here.

    Raises:
        ParityError: a phase differs by more than its tolerance.
    """
    layout = model.config.layout
    rng = np.random.default_rng(seed)
    size = model.config.vision.image_size
    pixels = rng.uniform(-1, 1, (layout.images, 3, size, size)).astype(np.float32)
    words = rng.integers(3, layout.vocab_size, _TEXT + _THOUGHT)
    words = np.where(np.isin(words, [layout.image]), layout.bos, words)
    prompt = np.concatenate([np.full(layout.images * layout.image_tokens, layout.image), words[:_TEXT]])
    thought = np.append(words[_TEXT:], layout.closing)
    n, start = len(prompt), len(prompt) + len(thought) - 1
    whole = np.concatenate([prompt, thought, layout.action_block()[1:]])
    with torch.no_grad():
        features = model.image_features(torch.from_numpy(pixels).to(model.decoder.embed_tokens.weight.dtype))
        ids = torch.from_numpy(whole)[None]
        embeds = model.embed(ids, features.flatten(0, 1)[None])
        mask = hybrid_mask(torch.tensor([n]), torch.tensor([start]), torch.tensor([len(whole)]), len(whole))
        hidden = model.hidden(embeds, torch.arange(1, len(whole) + 1)[None], mask)[0]
        said = model.logits(hidden[n - 1 : start]).float().numpy()
        said[:, layout.action_begin : layout.action_end + 1] = -np.inf  # never thought, so not computed
        acted = model.action_logits(hidden[start : start + layout.slots]).float().numpy()
    encoded = backend.encode(pixels)
    first = decoding.prefill(backend, prompt, encoded).copy()
    steps = [
        backend.decode(thought[t : t + 1], Bounds(n, NEVER, n + t + 1, n + t), think_rows=(0,))
        .think[0]
        .copy()
        for t in range(len(thought) - 1)
    ]
    action = decoding.act(backend, layout, n, thought)
    results = [
        Parity(phase, _difference(found, expected), tolerance)
        for phase, found, expected in (
            ("vision", encoded, features.flatten(0, 1).float().numpy()),
            ("prefill", first, said[0]),
            ("think", np.array(steps), said[1:]),
            ("act", action, acted),
        )
    ]
    for result in results:
        if not result.difference <= result.tolerance:
            raise ParityError(
                f"The exported {result.phase} phase differs from torch by {result.difference:.2e}, "
                f"more than {result.tolerance:.0e}; the bundle was not written."
            )
    return results


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    if not np.array_equal(np.isinf(found), np.isinf(expected)):
        return np.inf
    known = np.isfinite(expected)
    return float(np.abs(found[known] - expected[known]).max())
