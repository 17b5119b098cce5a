"""Acting on the last thought while the next one is written, with a tiny random policy."""

import threading
import time

import numpy as np
import pytest

from dtvla.policy.async_thinking import BackgroundThinker, LaggingPolicy, Question, Thought
from dtvla.policy.policy import Policy

INSTRUCTION = "pick up the can"
S = 1_000_000_000


@pytest.fixture(scope="module")
def policy(random_bundle_path):
    return Policy.load(random_bundle_path)


@pytest.fixture
def thinker(policy):
    errors = []
    thinker = BackgroundThinker(policy.sibling(), errors.append)
    thinker.errors = errors
    yield thinker
    thinker.close()


def look(value):
    return {name: np.full((64, 64, 3), value, np.uint8) for name in ("agentview", "wrist")}


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_acting_on_a_known_thought_is_what_thinking_it_first_would_give(policy):
    decision = policy.decide(look(90), INSTRUCTION)
    again = policy.act(look(90), INSTRUCTION, decision.thought_ids)
    np.testing.assert_array_equal(again.raw_actions, decision.raw_actions)
    assert again.thought == decision.thought
    assert again.passes == 1


def test_a_thought_alone_is_the_one_a_decision_has(policy):
    policy.reset()
    ids = policy.think(look(30), INSTRUCTION)
    policy.reset()
    np.testing.assert_array_equal(ids, policy.decide(look(30), INSTRUCTION).thought_ids)


def test_siblings_decide_at_the_same_time_without_disturbing_each_other(policy):
    alone = {value: policy.decide(look(value), INSTRUCTION).raw_actions for value in (10, 200)}
    sibling, wrong = policy.sibling(), []

    def decide(one, value):
        for _ in range(8):
            one.reset()
            if (one.decide(look(value), INSTRUCTION).raw_actions != alone[value]).any():
                wrong.append(value)

    threads = [threading.Thread(target=decide, args=pair) for pair in ((policy, 10), (sibling, 200))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_finished_thought_is_given_for_its_instruction_and_up_to_its_age(thinker):
    assert thinker.newest(INSTRUCTION, 0, S) is None
    assert thinker.ask(Question(look(50), INSTRUCTION, 5 * S))
    wait_for(lambda: thinker.newest(INSTRUCTION, 5 * S, S) is not None)
    assert thinker.newest(INSTRUCTION, 6 * S, S).stamp_ns == 5 * S
    assert thinker.newest(INSTRUCTION, 6 * S + 1, S) is None, "too old"
    assert thinker.newest(INSTRUCTION, 5 * S - 1, S) is None, "about a later image"
    assert thinker.newest("open the drawer", 5 * S, S) is None
    thinker.forget()
    assert thinker.newest(INSTRUCTION, 5 * S, S) is None


def test_one_question_at_a_time_and_a_forgotten_one_leaves_no_thought(thinker):
    started, go_on = threading.Event(), threading.Event()

    def on_text(*_):
        started.set()
        go_on.wait(60)

    assert thinker.ask(Question(look(50), INSTRUCTION, S, on_text))
    assert started.wait(60)
    assert not thinker.ask(Question(look(60), INSTRUCTION, 2 * S))
    thinker.forget()
    assert thinker.ask(Question(look(60), INSTRUCTION, 3 * S)), "a forgotten question makes room"
    go_on.set()
    wait_for(lambda: thinker.newest(INSTRUCTION, 3 * S, S) is not None)
    assert thinker.newest(INSTRUCTION, 3 * S, 3 * S).stamp_ns == 3 * S


def test_a_thought_that_fails_is_told_and_the_thread_goes_on(thinker):
    assert thinker.ask(Question({}, INSTRUCTION, S))
    wait_for(lambda: thinker.errors)
    assert thinker.ask(Question(look(1), INSTRUCTION, S))
    wait_for(lambda: thinker.newest(INSTRUCTION, S, S) is not None)


def test_a_newer_thought_is_not_replaced_by_an_older_one(thinker):
    newer = Thought(np.array([4, 5, 6]), INSTRUCTION, 9 * S)
    thinker.know(newer)
    thinker.know(Thought(np.array([4, 5, 6]), INSTRUCTION, 8 * S))
    assert thinker.newest(INSTRUCTION, 9 * S, S) is newer


def test_the_lagging_policy_acts_on_the_thought_about_the_image_before(policy):
    lagging = LaggingPolicy(policy)
    lagging.reset()
    images = [look(value) for value in (20, 120, 220)]
    decisions = [lagging.decide(image, INSTRUCTION) for image in images]
    own = [policy.sibling().think(image, INSTRUCTION) for image in images]
    np.testing.assert_array_equal(decisions[0].thought_ids, own[0])
    np.testing.assert_array_equal(decisions[1].thought_ids, own[0])
    np.testing.assert_array_equal(decisions[2].thought_ids, own[1])
