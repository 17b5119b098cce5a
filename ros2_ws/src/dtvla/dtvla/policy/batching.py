"""Decisions for several robots in shared passes: the same results as alone."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtvla.errors import DecisionStopped, InputError, PolicyFault, PolicyInputError
from dtvla.policy.backends.onnxruntime import OnnxRuntimeBackend
from dtvla.policy.backends.onnxruntime_batch import OnnxRuntimeBatch
from dtvla.policy.backends.protocol import BatchBackend, Logits, Pass
from dtvla.policy.decoding import Sampler
from dtvla.policy.policy import Decision, OnText, Policy
from dtvla.policy.stopwatch import Stopwatch


@dataclass(frozen=True)
class Request:
    """What one robot wants decided (see `Policy.decide`)."""

    images: Mapping[str, NDArray[np.uint8]]
    instruction: str
    on_text: OnText | None = None
    should_stop: Callable[[], bool] | None = None


Answer = Decision | PolicyInputError | DecisionStopped | PolicyFault


class PolicyBatch:
    """One policy for `size` robots; not thread-safe. Every robot has its own drafts, draws and cache.

    Args:
        policy: whose weights and options all robots get; its own drafts and cache stay out of it.
        size: number of robots.
        batch: runs the shared passes; None takes the policy's ONNX Runtime sessions.
        samplers: who picks words and actions for each robot; None follows the policy's options.

    Raises:
        InputError: a policy that cannot be batched: the autoregressive baseline is for one robot only.
    """

    def __init__(
        self,
        policy: Policy,
        size: int,
        batch: BatchBackend | None = None,
        samplers: Sequence[Sampler] | None = None,
    ) -> None:
        if size < 1:
            raise InputError(f"A batch serves at least one robot, not {size}.")
        if policy.options.decoding == "autoregressive":
            raise InputError("Autoregressive actions are a baseline for one robot; choose another decoding.")
        if batch is None:
            if not isinstance(policy.backend, OnnxRuntimeBackend):
                raise InputError("Decisions in batches need the onnxruntime backend.")
            batch = OnnxRuntimeBatch(policy.backend, size, slack=policy.bundle.spec.thought_cap + 2)
        if batch.size != size:
            raise InputError(f"The batch has {batch.size} sequences for {size} robots.")
        self._batch = batch
        own: Sequence[Sampler | None] = samplers or [None] * size
        self._robots = [Policy(policy.bundle, policy.backend, policy.options, each) for each in own]

    def __len__(self) -> int:
        return len(self._robots)

    def reset(self, robot: int) -> None:
        """Forgets what belongs to a robot's episode."""
        self._robots[robot].reset()

    def decide(self, requests: Mapping[int, Request]) -> dict[int, Answer]:
        """One decision for each robot that asks.

        Returns:
            The decision, or what kept this robot from one; the others are not held up by it.
        """
        answers: dict[int, Answer] = {}
        running = self._begin(requests, answers)
        passes = {robot: self._advance(robot, deciding, None, answers) for robot, deciding in running.items()}
        while any(step is not None for step in passes.values()):
            logits = self._batch.decode([passes.get(robot) for robot in range(len(self._robots))])
            for robot, step in passes.items():
                if step is not None:
                    passes[robot] = self._advance(robot, running[robot], logits[robot], answers)
        return answers

    def _begin(
        self, requests: Mapping[int, Request], answers: dict[int, Answer]
    ) -> dict[int, Generator[Pass, Logits, Decision]]:
        """Looks with all eyes at once."""
        clocks = {robot: Stopwatch() for robot in requests}
        looks = {}
        for robot, request in requests.items():
            try:
                looks[robot] = self._robots[robot].prepare(request.images, request.instruction, clocks[robot])
            except PolicyInputError as error:
                answers[robot] = error
        if not looks:
            return {}
        pixels = np.concatenate([pixels for _, pixels in looks.values()])
        features = np.split(self._batch.encode(pixels), len(looks))
        running = {}
        for (robot, (prompt, _)), own in zip(looks.items(), features, strict=True):
            clocks[robot].lap("vision")
            request = requests[robot]
            running[robot] = self._robots[robot].deciding(
                prompt, own, clocks[robot], request.on_text, request.should_stop
            )
        return running

    def _advance(
        self,
        robot: int,
        deciding: Generator[Pass, Logits, Decision],
        logits: Logits | None,
        answers: dict[int, Answer],
    ) -> Pass | None:
        """Gives a decision its logits; returns its next pass, or None when there is an answer."""
        try:
            return next(deciding) if logits is None else deciding.send(logits)
        except StopIteration as done:
            answers[robot] = done.value
        except DecisionStopped as stopped:
            answers[robot] = stopped
        except PolicyFault as fault:
            self._batch.clear(robot)
            answers[robot] = fault
        return None
