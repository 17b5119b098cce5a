"""`Policy`: a loaded bundle that turns two images and a sentence into a chunk of actions."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dtvla.errors import DecisionStopped, InputError, PolicyFault
from dtvla.policy.backends.factory import choose_backend
from dtvla.policy.backends.protocol import Backend, Features, Logits, Pass
from dtvla.policy.bundle.loading import Bundle
from dtvla.policy.bundle.policy_spec import PolicySpec
from dtvla.policy.decoding import (
    RANDOM_WORDS,
    Sampler,
    act_one_by_one,
    act_pass,
    check_room,
    given_thought,
    is_complete,
    require_finite,
    whole_pass,
)
from dtvla.policy.draft_lookup import Drafts, number_tokens
from dtvla.policy.images import preprocess
from dtvla.policy.options import BACKENDS, DecisionOptions
from dtvla.policy.prompt import prompt_ids
from dtvla.policy.speculative_decoding import ThoughtLimits, ThoughtWriter
from dtvla.policy.stopwatch import Stopwatch

_Result = TypeVar("_Result")
OnText = Callable[[str, int, int], None]  # the thought so far, its tokens, how many of them were kept
_UNFINISHED_CHARACTER = "\ufffd"


@dataclass(frozen=True)
class Decision:
    """What the policy said and thought."""

    raw_actions: NDArray[np.float64]  # [horizon, action_dim], the benchmark's units
    thought: str  # the words between the tags
    thought_ids: NDArray[np.int64]  # with the tags
    truncated: bool  # a limit ended the thought
    timings: Mapping[str, float]  # seconds, by `stopwatch.TIMINGS`
    accepted: int = 0  # tokens of the thought that a draft had right
    passes: int = 0  # of the decoder, the action pass included

    @property
    def tokens(self) -> int:
        """Length of the thought in tokens, tags included."""
        return len(self.thought_ids)


class Policy:
    """A policy that decides; not thread-safe, it holds one key/value cache."""

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        options: DecisionOptions | None = None,
        sampler: Sampler | None = None,
        runs_on: str = "",
    ) -> None:
        self.bundle = bundle
        self.runs_on = runs_on  # a sentence for logs: backend, device, and why not another
        self.options = options or DecisionOptions()
        self.backend = backend
        self._sampler = sampler or Sampler(
            bundle.spec.layout, self.options.temperature, self.options.seed, self.options.action_temperature
        )
        typical = bundle.typical if self.options.drafts else ()
        self._drafts = Drafts(number_tokens(bundle.tokenizer), typical)
        self._prompts: dict[str, NDArray[np.int64]] = {}
        self.reset()

    @classmethod
    def load(
        cls,
        path: str | Path,
        backend: str = "auto",
        threads: int | None = None,
        options: DecisionOptions | None = None,
        trusted_key: str | Path = "",
    ) -> Policy:
        """Loads and verifies a bundle.

        Args:
            path: bundle directory.
            backend: one of `BACKENDS`; "auto" takes TensorRT where the bundle has engines for this machine.
            threads: threads of one operator; None picks what suits the backend.
            options: how decisions are made.
            trusted_key: file of the public key that must have signed the bundle; empty takes any bundle.

        Raises:
            BundleError: the bundle must not be run.
            ValueError: an unknown backend, or a key that cannot be read.
        """
        if backend not in BACKENDS:  # before a large bundle is read
            raise InputError(f"Unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}.")
        bundle = Bundle.load(path, trusted_key)
        chosen = choose_backend(bundle, backend, threads)
        return cls(bundle, chosen.backend, options, runs_on=chosen.sentence)

    def sibling(self) -> Policy:
        """A second policy that decides for itself, in another thread: the same weights, its own cache."""
        return Policy(self.bundle, self.backend.sibling(), self.options, runs_on=self.runs_on)

    def reset(self) -> None:
        """Forgets what belongs to an episode, before the next one begins."""
        self._prompts.clear()
        self._drafts.clear()
        self._sampler.restart()
        self._rng = np.random.default_rng(self.options.seed)

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
        with self._cleared_after_a_fault():
            prompt, features, clock = self._look(images, instruction)
            return self._run(self.deciding(prompt, features, clock, on_text, should_stop))

    def think(
        self,
        images: Mapping[str, NDArray[np.uint8]],
        instruction: str,
        *,
        on_text: OnText | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> NDArray[np.int64]:
        """Looks and thinks, without acting: the thought's ids, to be given to `act`. Errors as `decide`."""
        with self._cleared_after_a_fault():
            prompt, features, clock = self._look(images, instruction)
            writer = self._run(self._thinking(prompt, features, clock, on_text, should_stop))
            return np.array(writer.ids, np.int64)

    def act(
        self, images: Mapping[str, NDArray[np.uint8]], instruction: str, thought: NDArray[np.int64]
    ) -> Decision:
        """Looks and acts in one pass, on a thought that is known before. Errors as `decide`."""
        with self._cleared_after_a_fault():
            prompt, features, clock = self._look(images, instruction)
            out = whole_pass(self.bundle.spec.layout, prompt, features, thought).run(self.backend)
            return self._decision(out.action, thought, clock, accepted=len(thought), passes=1)

    def prepare(
        self, images: Mapping[str, NDArray[np.uint8]], instruction: str, clock: Stopwatch
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The prompt's ids and the normalised images [N, 3, S, S] of one decision.

        Raises:
            PolicyInputError: an image or the instruction is unfit.
        """
        prompt = self._prompt(instruction)
        pixels = preprocess(images, self.bundle.spec.cameras, self.bundle.spec.image)
        clock.lap("preprocess")
        return prompt, pixels

    def deciding(
        self,
        prompt: NDArray[np.int64],
        features: Features,
        clock: Stopwatch,
        on_text: OnText | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Generator[Pass, Logits, Decision]:
        """One decision as the passes it needs: whoever runs them sends their logits back.

        So that several decisions can share a pass (`dtvla.policy.batching`).
        """
        layout, decoding = self.bundle.spec.layout, self.options.decoding
        if decoding in ("masked", "random", "none"):
            thought = given_thought(layout, decoding, self._rng)
            out = yield whole_pass(layout, prompt, features, thought)
            return self._decision(out.action, thought, clock, accepted=0, passes=1)
        writer = yield from self._thinking(prompt, features, clock, on_text, should_stop)
        thought = np.array(writer.ids, np.int64)
        if decoding == "autoregressive":
            logits = act_one_by_one(self.backend, layout, len(prompt), thought)
            return self._decision(logits, thought, clock, writer.accepted, writer.passes + layout.slots)
        if writer.action_logits is not None:  # the pass that ended the thought has decided as well
            return self._decision(writer.action_logits, thought, clock, writer.accepted, writer.passes)
        out = yield act_pass(layout, len(prompt), thought)
        return self._decision(out.action, thought, clock, writer.accepted, writer.passes + 1)

    def _run(self, passes: Generator[Pass, Logits, _Result]) -> _Result:
        """Runs the passes for the one sequence of this policy's backend."""
        try:
            step = next(passes)
            while True:
                step = passes.send(step.run(self.backend))
        except StopIteration as done:
            result: _Result = done.value
            return result

    def _look(
        self, images: Mapping[str, NDArray[np.uint8]], instruction: str
    ) -> tuple[NDArray[np.int64], Features, Stopwatch]:
        """The prompt's ids, the image features, and the clock of the decision that begins."""
        clock = Stopwatch()
        prompt, pixels = self.prepare(images, instruction, clock)
        features = self.backend.encode(pixels)
        clock.lap("vision")
        return prompt, features, clock

    def _decision(
        self,
        logits: NDArray[np.float32],
        thought: NDArray[np.int64],
        clock: Stopwatch,
        accepted: int,
        passes: int,
    ) -> Decision:
        require_finite(logits)
        spec = self.bundle.spec
        actions = raw_actions(spec, self._sampler.columns(logits))
        clock.lap("act")
        return Decision(
            raw_actions=actions,
            thought=self._words(thought.tolist()),
            thought_ids=thought,
            truncated=not is_complete(thought, spec.layout),
            timings=clock.finish(),
            accepted=accepted,
            passes=passes,
        )

    @contextmanager
    def _cleared_after_a_fault(self) -> Iterator[None]:
        try:
            yield
        except PolicyFault:
            self.backend.clear()
            raise

    def _thinking(
        self,
        prompt: NDArray[np.int64],
        features: Features,
        clock: Stopwatch,
        on_text: OnText | None,
        should_stop: Callable[[], bool] | None,
    ) -> Generator[Pass, Logits, ThoughtWriter]:
        """The passes of a thought, which is told to `on_text` while it grows."""
        cap = min(self.options.thought_tokens or self.bundle.spec.thought_cap, self.bundle.spec.thought_cap)
        seconds = self.options.thought_seconds
        limits = ThoughtLimits(cap, lambda: seconds is not None and clock.elapsed() > seconds)
        writer = ThoughtWriter(
            self.bundle.spec.layout,
            self._sampler,
            limits,
            self._drafts,
            self.backend.row_cost,
            prompt,
            features,
        )
        while not writer.finished:
            if should_stop is not None and should_stop():
                raise DecisionStopped("The decision was stopped while thinking.")
            writer.take((yield writer.plan()))
            if writer.passes == 1:
                clock.lap("prefill")
            if on_text is not None:
                on_text(self._words(writer.ids), len(writer.ids), writer.accepted)
        clock.lap("think")
        if self.options.drafts and self.options.decoding == "hybrid":
            self._drafts.remember(writer.ids)
        return writer

    def _prompt(self, instruction: str) -> NDArray[np.int64]:
        """Prompt ids, kept per instruction: an episode asks the same one hundreds of times."""
        if instruction not in self._prompts:
            spec = self.bundle.spec
            decoding = self.options.decoding
            prefix = "" if decoding == "none" else spec.prompt_prefix
            prompt = prompt_ids(self.bundle.tokenizer, spec.layout, instruction, prefix)
            longest = RANDOM_WORDS + 3 if decoding == "random" else spec.thought_cap
            check_room(spec.layout, prompt, longest, self.backend.cache_length)
            self._prompts[instruction] = prompt
        return self._prompts[instruction]

    def _words(self, ids: list[int]) -> str:
        """The thought's text without its tags; a character whose bytes are not all there yet is left out."""
        text = self.bundle.tokenizer.decode(ids, skip_special_tokens=True)
        return text.rstrip(_UNFINISHED_CHARACTER).strip()


def raw_actions(spec: PolicySpec, columns: NDArray[np.int64]) -> NDArray[np.float64]:
    """Action columns [slots] as actions [horizon, action_dim] in the benchmark's units."""
    values = spec.codec.decode_columns(columns)
    return spec.normaliser.unnormalise(values.reshape(spec.layout.horizon, spec.layout.action_dim))
