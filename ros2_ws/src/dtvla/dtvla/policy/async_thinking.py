"""Thinking and acting at different rates: act on a fresh image with the last finished thought.

A thought changes slowly, an arm does not wait. The acting pass takes the last thought as known text and
costs one pass; a fresh thought is written meanwhile. This changes what the policy does (it acts on words
about an older image), so it is an option, and the age of the words is bounded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtvla.errors import DecisionStopped
from dtvla.policy.policy import Decision, OnText, Policy

Images = Mapping[str, NDArray[np.uint8]]


@dataclass(frozen=True)
class Thought:
    """A finished thought and what it is about."""

    ids: NDArray[np.int64]
    instruction: str
    stamp_ns: int  # capture time of the image it was thought on


@dataclass(frozen=True)
class Question:
    """What to think about next."""

    images: Images
    instruction: str
    stamp_ns: int
    on_text: OnText | None = None


class BackgroundThinker:
    """Thinks in a thread of its own, one question at a time; `newest` is its last finished thought.

    Args:
        policy: decides nothing else at the same time (`Policy.sibling` gives one).
        on_error: told in the thread's own words when a thought failed; the thread goes on.
    """

    def __init__(self, policy: Policy, on_error: Callable[[Exception], None]) -> None:
        self._policy = policy
        self._on_error = on_error
        self._condition = threading.Condition()
        self._question: Question | None = None
        self._running: Question | None = None
        self._newest: Thought | None = None
        self._fresh = False
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="background thought", daemon=True)
        self._thread.start()

    def ask(self, question: Question) -> bool:
        """Starts thinking about a question; False when another one is still being thought about."""
        with self._condition:
            if self._question is not None or self._running is not None:
                return False
            self._question = question
            self._condition.notify()
            return True

    def newest(self, instruction: str, stamp_ns: int, max_age_ns: int) -> Thought | None:
        """The last finished thought, if it is about this instruction and not too old for this image."""
        with self._condition:
            thought = self._newest
        if thought is None or thought.instruction != instruction:
            return None
        return thought if 0 <= stamp_ns - thought.stamp_ns <= max_age_ns else None

    def know(self, thought: Thought) -> None:
        """Takes a thought that was written elsewhere, if it is newer."""
        with self._condition:
            if self._newest is None or self._newest.stamp_ns <= thought.stamp_ns:
                self._newest = thought

    def forget(self) -> None:
        """Gives up what is being thought about and forgets the last thought: a new episode begins."""
        with self._condition:
            self._question = self._running = self._newest = None
            self._fresh = True

    def close(self, timeout_s: float = 5.0) -> None:
        """Ends the thread."""
        with self._condition:
            self._closed = True
            self._question = self._running = None
            self._condition.notify()
        self._thread.join(timeout_s)

    def _loop(self) -> None:
        while True:
            with self._condition:
                while self._question is None and not self._closed:
                    self._condition.wait()
                if self._closed:
                    return
                question, self._question = self._question, None
                self._running = question
                if self._fresh:
                    self._policy.reset()
                    self._fresh = False
            assert question is not None
            self._answer(question)

    def _answer(self, question: Question) -> None:
        def given_up() -> bool:
            return self._running is not question

        try:
            ids = self._policy.think(
                question.images, question.instruction, on_text=question.on_text, should_stop=given_up
            )
        except DecisionStopped:
            return
        except Exception as error:  # whatever it is, the arm goes on with fresh decisions
            self._on_error(error)
            ids = None
        with self._condition:
            if given_up():
                return
            self._running = None
            if ids is not None:
                self._newest = Thought(ids, question.instruction, question.stamp_ns)


class LaggingPolicy:
    """What acting on the last thought does to the result, without threads: one decision behind, always.

    Every image is acted on with the thought about the image before it, then thought about. The first
    decision of an episode thinks first. For evaluation: the same seeds give the same episodes.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._thought: NDArray[np.int64] | None = None

    def reset(self) -> None:
        """Forgets what belongs to an episode."""
        self._policy.reset()
        self._thought = None

    def decide(self, images: Images, instruction: str) -> Decision:
        """One decision (see `Policy.decide`)."""
        if self._thought is None:
            decision = self._policy.decide(images, instruction)
            self._thought = decision.thought_ids
            return decision
        decision = self._policy.act(images, instruction, self._thought)
        self._thought = self._policy.think(images, instruction)
        return decision
