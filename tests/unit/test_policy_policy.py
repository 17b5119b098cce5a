"""A policy from images to actions, on a tiny model with random weights."""

import numpy as np
import pytest

from dtvla.errors import DecisionStopped, PolicyFault, PolicyInputError
from dtvla.policy.policy import Policy

INSTRUCTION = "pick up the can"


@pytest.fixture(scope="module")
def policy(random_bundle_path):
    return Policy.load(random_bundle_path)


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return {name: rng.integers(0, 256, (64, 64, 3), np.uint8) for name in ("agentview", "wrist")}


def test_a_decision_holds_a_chunk_a_thought_and_its_timings(policy, images):
    decision = policy.decide(images, INSTRUCTION)
    assert decision.raw_actions.shape == (10, 7)
    assert decision.raw_actions.dtype == np.float64
    assert np.abs(decision.raw_actions).max() <= 1.0
    assert decision.tokens == len(decision.thought_ids) == 12
    assert decision.truncated
    assert set(decision.timings) == {"preprocess", "vision", "prefill", "think", "act", "total"}
    parts = sum(seconds for phase, seconds in decision.timings.items() if phase != "total")
    assert parts == pytest.approx(decision.timings["total"])


def test_the_same_input_gives_the_same_decision_whatever_came_before(policy, images):
    first = policy.decide(images, INSTRUCTION)
    policy.decide({name: 255 - image for name, image in images.items()}, "open the drawer")
    again = policy.decide(images, INSTRUCTION)
    np.testing.assert_array_equal(first.raw_actions, again.raw_actions)
    np.testing.assert_array_equal(first.thought_ids, again.thought_ids)


def test_the_thought_is_told_while_it_grows(policy, images):
    policy.reset()
    told = []
    decision = policy.decide(images, INSTRUCTION, on_text=lambda text, tokens, _: told.append((text, tokens)))
    assert [tokens for _, tokens in told] == list(range(1, decision.tokens + 1))
    assert told[-1][0] == decision.thought


def test_thinking_can_be_stopped_between_two_tokens(policy, images):
    policy.reset()
    told = []
    with pytest.raises(DecisionStopped):
        policy.decide(
            images, INSTRUCTION, on_text=lambda *_: told.append(1), should_stop=lambda: len(told) == 3
        )
    assert len(told) == 3


def test_an_instruction_too_long_for_the_cache_is_refused_before_anything_runs(policy, images):
    with pytest.raises(PolicyInputError, match="has room for"):
        policy.decide(images, "a " * 240)


def test_bad_images_are_refused(policy, images):
    with pytest.raises(PolicyInputError, match="wrist"):
        policy.decide({"agentview": images["agentview"]}, INSTRUCTION)


def test_a_model_that_answers_with_nan_is_a_fault_not_an_action(policy, images, monkeypatch):
    """Without the check, argmax would quietly turn NaN into column 0: a full-speed motion."""
    encode = policy.backend.encode
    monkeypatch.setattr(policy.backend, "encode", lambda pixels: encode(pixels) * np.nan)
    with pytest.raises(PolicyFault, match="NaN"):
        policy.decide(images, INSTRUCTION)


def test_nan_does_not_stay_in_the_cache_and_change_later_decisions(policy, images, monkeypatch):
    """Bug: a hidden key has weight 0, but 0 * NaN is NaN, so one bad image spoilt every decision after it."""
    before = policy.decide(images, INSTRUCTION)
    encode = policy.backend.encode
    with monkeypatch.context() as patch:
        patch.setattr(policy.backend, "encode", lambda pixels: encode(pixels) * np.nan)
        with pytest.raises(PolicyFault):
            policy.decide(images, INSTRUCTION)
    np.testing.assert_array_equal(policy.decide(images, INSTRUCTION).raw_actions, before.raw_actions)


def test_reset_leaves_a_policy_that_decides_the_same(policy, images):
    first = policy.decide(images, INSTRUCTION)
    policy.reset()
    np.testing.assert_array_equal(policy.decide(images, INSTRUCTION).raw_actions, first.raw_actions)
