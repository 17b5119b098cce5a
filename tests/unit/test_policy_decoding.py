"""Thinking and acting, and the variants the paper compares, over a backend that says what it is told."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from dtvla.policy import decoding
from dtvla.policy.backends.protocol import Logits
from dtvla.policy.bundle.loading import Bundle
from dtvla.policy.decoding import Sampler
from dtvla.policy.draft_lookup import Drafts
from dtvla.policy.options import DECODINGS, DecisionOptions
from dtvla.policy.policy import Policy
from dtvla.policy.speculative_decoding import ThoughtLimits, ThoughtWriter
from dtvla.policy.token_layout import NEVER, Bounds, TokenLayout

LAYOUT = TokenLayout(
    vocab_size=300, image=3, think=4, end_think=5, action=6, end_action=7,
    action_begin=200, bins=64, prompt_end=(10, 11), image_tokens=4,
)  # fmt: skip
PROMPT = np.arange(20, 30)


class Script:
    """A backend whose model says given ids one after the other; it records every pass."""

    cache_length = 1000

    def __init__(self, says):
        self.says = iter(says)
        self.passes = []

    def clear(self):
        pass

    def decode(self, ids, bounds, *, features=None, think_rows=(), action_rows=()):
        self.passes.append((np.array(ids), bounds))
        think = np.zeros((len(think_rows), LAYOUT.vocab_size), np.float32)
        for row in think:
            row[next(self.says)] = 1.0
        action = np.zeros((len(action_rows), LAYOUT.bins), np.float32)
        action[:, 5] = 1.0
        return Logits(think, action)


def say(words, cap=100):
    backend = Script(words)
    writer = ThoughtWriter(LAYOUT, Sampler(LAYOUT), ThoughtLimits(cap), Drafts(), 1.0, PROMPT, None)
    return writer.write(backend), backend


def test_thinking_stops_at_the_closing_pair_and_nowhere_else():
    words = [4, 40, 6, 41, 5, 5, 42, 5, 6, 43]  # <action> alone and </think> alone do not stop
    thought, _ = say(words)
    assert thought == words[:-1]


def test_thinking_stops_at_the_cap():
    assert say(itertools.repeat(50), cap=7)[0] == [50] * 7


def test_every_step_sees_the_prompt_and_what_was_thought_before_it():
    _, backend = say([4, 40, 5, 6])
    n = len(PROMPT)
    assert backend.passes[0][1] == Bounds(n, NEVER, n, 0)
    assert [bounds for _, bounds in backend.passes[1:]] == [
        Bounds(n, NEVER, n + t + 1, n + t) for t in range(3)
    ]


def test_a_banned_id_is_never_thought_however_likely():
    logits = np.zeros((2, LAYOUT.vocab_size), np.float32)
    logits[:, [*LAYOUT.banned()]] = 10.0
    logits[[0, 1], [77, 78]] = 1.0
    assert decoding.choose(logits, LAYOUT) == [77, 78]


def test_the_action_block_follows_the_thought_and_sees_everything():
    backend = Script([])
    thought = np.array([4, 40, 5, 6])
    logits = decoding.act(backend, LAYOUT, len(PROMPT), thought)
    ids, bounds = backend.passes[0]
    start = len(PROMPT) + 3
    np.testing.assert_array_equal(ids, LAYOUT.action_block())
    assert bounds == Bounds(len(PROMPT), start, start + 73, start)
    assert logits.shape == (70, 64)


@pytest.mark.parametrize(
    ("thought", "tail"),
    [([4, 40], [40, 5, 6]), ([4, 40, 5], [5, 6]), ([4, 40, 6], [6, 5, 6]), ([4, 5, 6], [6])],
)
def test_a_cut_thought_gets_exactly_the_tags_it_lacks(thought, tail):
    backend = Script([])
    decoding.act(backend, LAYOUT, len(PROMPT), np.array(thought))
    ids, bounds = backend.passes[0]
    assert ids[: len(tail)].tolist() == tail
    assert bounds.action_start == bounds.q_start + len(tail) - 1


def test_the_reference_lets_the_last_word_stand_for_action():
    backend = Script([])
    decoding.act(backend, LAYOUT, len(PROMPT), np.array([4, 40]), close=False)
    ids, bounds = backend.passes[0]
    assert ids[0] == 40
    assert bounds.action_start == bounds.q_start


def test_autoregressive_actions_are_causal():
    backend = Script([])
    decoding.act_one_by_one(backend, LAYOUT, len(PROMPT), np.array([4, 40, 5, 6]))
    assert len(backend.passes) == 70
    assert all(bounds.action_start == NEVER for _, bounds in backend.passes)
    first = len(PROMPT) + 3
    assert [bounds.q_start for _, bounds in backend.passes] == list(range(first, first + 70))
    assert all(ids.tolist() == [LAYOUT.action_begin + 5] for ids, _ in backend.passes[1:])


def test_random_thoughts_hold_words_only_and_are_reproducible():
    draw = [decoding.given_thought(LAYOUT, "random", np.random.default_rng(s)) for s in (1, 1, 2)]
    np.testing.assert_array_equal(draw[0], draw[1])
    assert not np.array_equal(draw[0], draw[2])
    words = draw[0][1:-2]
    assert len(words) == 128
    structure = {0, 1, 2, 3, 4, 5, 6, 7, *LAYOUT.banned()}
    assert not structure & set(words.tolist())


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return {name: rng.integers(0, 256, (32, 32, 3), np.uint8) for name in ("agentview", "wrist")}


@pytest.mark.parametrize("variant", DECODINGS)
def test_every_decoding_variant_decides(random_bundle_path: Path, images, variant):
    policy = Policy.load(random_bundle_path, options=DecisionOptions(decoding=variant))
    decision = policy.decide(images, "pick up the can")
    policy.reset()
    again = policy.decide(images, "pick up the can")
    np.testing.assert_array_equal(decision.raw_actions, again.raw_actions)
    assert decision.raw_actions.shape == (10, 7)
    layout = policy.bundle.spec.layout
    if variant in ("masked", "none"):
        assert decision.thought_ids.tolist() == [layout.think, layout.end_think, layout.action]
        assert decision.thought == ""


def test_without_thought_the_prompt_loses_its_thinking_prefix(random_bundle_path: Path):
    import dataclasses

    from dtvla.policy.backends.onnxruntime import OnnxRuntimeBackend

    bundle = Bundle.load(random_bundle_path)
    spec = dataclasses.replace(bundle.spec, prompt_prefix="Think first. ")
    bundle = dataclasses.replace(bundle, spec=spec)
    backend = OnnxRuntimeBackend(bundle.path, spec)
    lengths = {
        name: len(Policy(bundle, backend, DecisionOptions(decoding=name))._prompt("pick"))
        for name in ("masked", "none")
    }
    assert lengths["masked"] - lengths["none"] == len("Think first. ")


def test_an_unknown_decoding_is_refused(random_bundle_path: Path):
    with pytest.raises(ValueError, match="Unknown decoding 'fast'"):
        DecisionOptions(decoding="fast")


def test_a_pad_that_was_thought_stays_in_its_place():
    """The reference moves it behind the end; here it is a token like any other."""
    thought, backend = say([4, 0, 40, 5, 6])
    decoding.act(backend, LAYOUT, len(PROMPT), np.array(thought))
    fed = [int(token) for ids, _ in backend.passes[1:-1] for token in ids]
    assert fed == [4, 0, 40, 5]
    assert backend.passes[-1][1].action_start == len(PROMPT) + 4


def test_a_prompt_that_leaves_no_room_for_the_thought_is_refused():
    decoding.check_room(LAYOUT, PROMPT, cap=20, cache_length=10 + 20 + 74)
    with pytest.raises(ValueError, match="room for 9"):
        decoding.check_room(LAYOUT, PROMPT, cap=20, cache_length=10 + 20 + 73)
