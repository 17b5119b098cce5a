"""`Policy`: a loaded bundle that turns two images and a sentence into a chunk of actions."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dtvla.policy.backends import Backend
from dtvla.policy.backends.onnxruntime import OnnxRuntimeBackend
from dtvla.policy.bundle import Bundle
from dtvla.policy.decoding import (
    DECODINGS,
    RANDOM_WORDS,
    Decoding,
    act,
    act_one_by_one,
    check_room,
    given_thought,
    is_complete,
    prefill,
    think,
)
from dtvla.policy.errors import PolicyFault
from dtvla.policy.images import preprocess
from dtvla.policy.prompt import prompt_ids

OnText = Callable[[str, int], None]


@dataclass(frozen=True)
class Decision:
    """What the policy said and thought."""

    raw_actions: NDArray[np.float64]  # [horizon, action_dim], the benchmark's units
    thought: str  # the words between the tags
    thought_ids: NDArray[np.int64]  # with the tags
    truncated: bool  # the cap ended the thought
    timings: Mapping[str, float]  # seconds: preprocess, vision, prefill, think, act, total

    @property
    def tokens(self) -> int:
        """Length of the thought in tokens, tags included."""
        return len(self.thought_ids)


class Policy:
    """A policy that decides; not thread-safe, it holds one key/value cache."""

    def __init__(
        self, bundle: Bundle, backend: Backend, decoding: Decoding = "hybrid", seed: int = 0
    ) -> None:
        self.bundle = bundle
        self.decoding = decoding
        self._backend = backend
        self._seed = seed
        self._rng = np.random.default_rng(seed)
        self._prompts: dict[str, NDArray[np.int64]] = {}

    @classmethod
    def load(
        cls,
        path: str | Path,
        backend: str = "auto",
        threads: int | None = None,
        decoding: Decoding = "hybrid",
        seed: int = 0,
    ) -> Policy:
        """Loads and verifies a bundle.

        Args:
            path: bundle directory.
            backend: "auto" or "onnxruntime".
            threads: threads of one operator; None picks what suits the backend.
            decoding: how decisions are made (`dtvla.policy.decoding.Decoding`).
            seed: of the words of "random" thoughts; `reset` starts them over.

        Raises:
            BundleError: the bundle must not be run.
            ValueError: an unknown backend or decoding.
        """
        if backend not in ("auto", "onnxruntime"):
            raise ValueError(f"Unknown backend {backend!r}; choose 'auto' or 'onnxruntime'.")
        if decoding not in DECODINGS:
            raise ValueError(f"Unknown decoding {decoding!r}; choose one of {', '.join(DECODINGS)}.")
        bundle = Bundle.load(path)
        return cls(bundle, OnnxRuntimeBackend(bundle.path, bundle.spec, threads), decoding, seed)

    def reset(self) -> None:
        """Forgets what belongs to an episode, before the next one begins."""
        self._prompts.clear()
        self._rng = np.random.default_rng(self._seed)

    def decide(
        self,
        images: Mapping[str, NDArray[np.uint8]],
        instruction: str,
        *,
        on_text: OnText | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Decision:
        """Looks, thinks, acts.

        Args:
            images: upright RGB uint8 [H, W, 3] by camera name, exactly the bundle's cameras.
            instruction: one task in words.
            on_text: called after every token with the thought so far and the number of tokens.
            should_stop: asked before every token; True gives up.

        Raises:
            PolicyInputError: an image or the instruction is unfit; nothing was computed.
            DecisionStopped: `should_stop` said so.
            PolicyFault: the model's output is not finite.
        """
        try:
            return self._decide(images, instruction, on_text, should_stop)
        except PolicyFault:
            self._backend.clear()
            raise

    def _decide(
        self,
        images: Mapping[str, NDArray[np.uint8]],
        instruction: str,
        on_text: OnText | None,
        should_stop: Callable[[], bool] | None,
    ) -> Decision:
        spec, layout = self.bundle.spec, self.bundle.spec.layout
        clock = _Stopwatch()
        prompt = self._prompt(instruction)
        pixels = preprocess(images, spec.cameras, spec.image)
        clock.lap("preprocess")
        features = self._backend.encode(pixels)
        clock.lap("vision")
        logits = prefill(self._backend, prompt, features)
        clock.lap("prefill")
        if self.decoding in ("hybrid", "autoregressive"):
            thought, cached = self._think(len(prompt), logits, on_text, should_stop), None
        else:
            thought, cached = given_thought(layout, self.decoding, self._rng), 0
        clock.lap("think")
        if self.decoding == "autoregressive":
            action_logits = act_one_by_one(self._backend, layout, len(prompt), thought)
        else:
            action_logits = act(self._backend, layout, len(prompt), thought, cached=cached)
        values = spec.codec.decode_columns(action_logits.argmax(-1))
        actions = spec.normaliser.unnormalise(values.reshape(layout.horizon, layout.action_dim))
        clock.lap("act")
        return Decision(
            raw_actions=actions,
            thought=self._words(thought.tolist()),
            thought_ids=thought,
            truncated=not is_complete(thought, layout),
            timings=clock.finish(),
        )

    def _think(
        self,
        prefix_len: int,
        first_logits: NDArray[np.float32],
        on_text: OnText | None,
        should_stop: Callable[[], bool] | None,
    ) -> NDArray[np.int64]:
        """The thought's ids, told to `on_text` while it grows."""
        spec = self.bundle.spec
        ids: list[int] = []
        for token in think(
            self._backend, spec.layout, prefix_len, first_logits, spec.thought_cap, should_stop
        ):
            ids.append(token)
            if on_text is not None:
                on_text(self._words(ids), len(ids))
        return np.array(ids, np.int64)

    def _prompt(self, instruction: str) -> NDArray[np.int64]:
        """Prompt ids, kept per instruction: an episode asks the same one hundreds of times."""
        if instruction not in self._prompts:
            spec = self.bundle.spec
            prefix = "" if self.decoding == "none" else spec.prompt_prefix
            prompt = prompt_ids(self.bundle.tokenizer, spec.layout, instruction, prefix)
            longest = RANDOM_WORDS + 3 if self.decoding == "random" else spec.thought_cap
            check_room(spec.layout, prompt, longest, self._backend.cache_length)
            self._prompts[instruction] = prompt
        return self._prompts[instruction]

    def _words(self, ids: list[int]) -> str:
        """The thought's text without its tags."""
        return self.bundle.tokenizer.decode(ids, skip_special_tokens=True).strip()


class _Stopwatch:
    """Seconds per phase of one decision."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self._laps[phase] = now - self._last
        self._last = now

    def finish(self) -> dict[str, float]:
        return {**self._laps, "total": self._last - self._start}
