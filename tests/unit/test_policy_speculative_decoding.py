"""Drafts make thinking faster and change nothing: the words and the actions are those of plain decoding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtvla.policy import decoding
from dtvla.policy.backends.protocol import Logits
from dtvla.policy.bundle.loading import Bundle
from dtvla.policy.decoding import Sampler
from dtvla.policy.draft_lookup import Drafts, Proposal, number_tokens
from dtvla.policy.options import DecisionOptions
from dtvla.policy.policy import Policy
from dtvla.policy.speculative_decoding import ThoughtLimits, ThoughtWriter
from dtvla.policy.token_layout import SLOT, TokenLayout

LAYOUT = TokenLayout(
    vocab_size=300, image=3, think=4, end_think=5, action=6, end_action=7,
    action_begin=200, bins=64, prompt_end=(10, 11), image_tokens=4,
)  # fmt: skip
PROMPT = np.arange(20, 30)
OPEN, CLOSE = [4], [5, 6]


class Model:
    """A backend whose next word follows from all words before it, as a causal model's does.

    It keeps the sequence the way a cache does, by position, so that a wrong cut would be seen: action
    logits name the sequence they saw, up to and with `<action>`.
    """

    cache_length = 1000

    def __init__(self, next_logits):
        self.next_logits = next_logits
        self.cache = {}
        self.rows = []

    def decode(self, ids, bounds, *, features=None, think_rows=(), action_rows=()):
        self.rows.append(len(ids))
        for row, token in enumerate(ids):
            self.cache[bounds.q_start + row] = int(token)

        def seen(row):
            return tuple(self.cache[i] for i in range(bounds.q_start + row + 1))

        think = np.array([self.next_logits(seen(row)) for row in think_rows], np.float32)
        action = np.zeros((len(action_rows), LAYOUT.bins), np.float32)
        if len(action_rows):
            assert bounds.action_start == bounds.q_start + action_rows[0]
            assert bounds.kv_len == bounds.q_start + len(ids)
            assert [self.cache[bounds.action_start + 1 + i] for i in range(70)] == [SLOT] * 70
            action[:, 0] = hash(seen(action_rows[0])) % 1_000_003
        return Logits(think.reshape(len(think_rows), LAYOUT.vocab_size), action)


def says(thought):
    """Next-word logits of a model that says one thought whatever it has said before."""

    def next_logits(sequence):
        logits = np.zeros(LAYOUT.vocab_size, np.float32)
        said = len(sequence) - len(PROMPT)
        logits[thought[min(said, len(thought) - 1)]] = 1.0
        return logits

    return next_logits


def random_model(seed, words):
    """Next-word logits drawn anew for every sequence, over a few words and the closing tags."""

    def next_logits(sequence):
        logits = np.full(LAYOUT.vocab_size, -9.0, np.float32)
        rng = np.random.default_rng([seed, *(abs(token) for token in sequence[-3:]), len(sequence) % 5])
        logits[[*words, *CLOSE]] = rng.normal(size=len(words) + 2)
        if sequence[-1] == LAYOUT.end_think:
            logits[LAYOUT.action] = 5.0
        return logits

    return next_logits


def write(model, drafts, cap=40, row_cost=0.1, temperature=0.0, out_of_time=lambda: False):
    sampler = Sampler(LAYOUT, temperature, seed=1)
    limits = ThoughtLimits(cap, out_of_time)
    writer = ThoughtWriter(LAYOUT, sampler, limits, drafts, row_cost, PROMPT, None)
    while not writer.finished:
        writer.take(writer.plan().run(model))
    logits = writer.action_logits
    decided = logits is not None
    if not decided:
        logits = decoding.act(model, LAYOUT, len(PROMPT), np.array(writer.ids))
    return writer, logits, decided


def remembering(*thoughts, numbers=(), typical=()):
    drafts = Drafts(numbers, typical)
    for thought in thoughts:
        drafts.remember(thought)
    return drafts


@settings(deadline=None)
@given(
    seed=st.integers(0, 10_000),
    drafts=st.lists(st.lists(st.sampled_from([40, 41, 42, 43, 5, 6]), max_size=30), max_size=5),
    row_cost=st.sampled_from([0.0, 0.01, 0.1, 1.0]),
    cap=st.integers(1, 40),
    temperature=st.sampled_from([0.0, 1.0]),
    numbers=st.sets(st.sampled_from([40, 41, 42, 43])),
    typical=st.lists(st.lists(st.sampled_from([40, 41, 42, 43, 5, 6]), max_size=30), max_size=3),
)
def test_any_draft_gives_the_words_and_actions_of_plain_decoding(
    seed, drafts, row_cost, cap, temperature, numbers, typical
):
    logits = random_model(seed, [40, 41, 42, 43])
    plain, plain_action, _ = write(Model(logits), Drafts(), cap, temperature=temperature)
    half = len(plain.ids) // 2
    good = [*plain.ids[:half], 44, *plain.ids[half:]]
    memory = remembering(*drafts, good, numbers=numbers, typical=typical)
    for _ in range(3):  # the record of what stood grows, the passes change
        again, action, _ = write(Model(logits), memory, cap, row_cost, temperature)
        assert again.ids == plain.ids
        np.testing.assert_array_equal(action, plain_action)
        memory.remember(again.ids)


def test_without_drafts_thinking_is_token_by_token():
    thought = [*OPEN, 40, 41, 42, *CLOSE]
    writer, _, decided = write(Model(says(thought)), Drafts())
    assert writer.ids == thought
    assert (writer.passes, writer.accepted, decided) == (len(thought), 0, False)


def test_a_thought_that_comes_again_is_decided_in_one_pass():
    thought = [*OPEN, 40, 41, 42, *CLOSE]
    model = Model(says(thought))
    writer, _, decided = write(model, remembering(thought))
    assert (writer.passes, writer.accepted, decided) == (1, len(thought), True)
    assert model.rows == [len(PROMPT) + len(thought) - 1 + 73]


def test_one_changed_number_costs_one_more_pass():
    old = [*OPEN, 40, 41, 50, 42, 43, 44, *CLOSE]
    new = [*OPEN, 40, 41, 51, 42, 43, 44, *CLOSE]
    writer, _, decided = write(Model(says(new)), remembering(old))
    assert writer.ids == new
    assert (writer.passes, writer.accepted, decided) == (2, len(new) - 1, True)


def test_words_moved_elsewhere_are_found_again():
    """The thought turns to a sentence that an older thought had."""
    newest = [*OPEN, 40, 41, 42, 43, *CLOSE]
    older = [*OPEN, 60, 61, 62, 63, 64, 65, 66, *CLOSE]
    new = [*OPEN, 60, 61, 62, 63, 64, 65, 66, *CLOSE]
    writer, _, _ = write(Model(says(new)), remembering(older, newest))
    assert writer.ids == new
    assert writer.passes < len(new) - 3


def test_numbers_that_all_change_cost_one_more_pass_as_the_rows_behind_the_first_guess_the_others():
    old = [*OPEN, 40, 50, 41, 50, 42, 50, 43, *CLOSE]
    new = [*OPEN, 40, 51, 41, 52, 42, 53, 43, *CLOSE]
    writer, _, decided = write(Model(says(new)), remembering(old, numbers={50, 51, 52, 53}), row_cost=0.001)
    assert writer.ids == new
    assert (writer.passes, decided) == (2, True)


def test_a_wrong_guess_costs_a_pass_and_no_word():
    """The second number hangs on the first one, so that its guess, made behind the old one, is wrong."""
    old, new = [*OPEN, 50, 41, 50, 42, *CLOSE], [*OPEN, 51, 41, 52, 42, *CLOSE]

    def next_logits(sequence):
        return says(new if 51 in sequence else [*OPEN, 51, 41, 53, 42, *CLOSE])(sequence)

    writer, _, decided = write(Model(next_logits), remembering(old, numbers={50, 51, 52, 53}), row_cost=0.001)
    assert writer.ids == new
    assert (writer.passes, decided) == (3, True)


def test_a_word_that_turns_the_sentence_is_followed_by_what_an_earlier_thought_said_behind_it():
    """What the rows behind the old word guess goes on with the old sentence."""
    lift, carry = [*OPEN, 40, 41, 42, *CLOSE], [*OPEN, 40, 60, 61, 62, 63, 64, 65, *CLOSE]

    def next_logits(sequence):
        return says(carry if 60 in sequence else [*OPEN, 40, 60, 42, *CLOSE])(sequence)

    writer, _, decided = write(Model(next_logits), remembering(carry, lift), row_cost=0.001)
    assert writer.ids == carry
    assert (writer.passes, decided) == (2, True)


def test_where_numbers_never_stand_rows_behind_them_are_not_tried():
    old, new = [*OPEN, 40, 50, 42, 43, 44, *CLOSE], [*OPEN, 40, 51, 42, 43, 44, *CLOSE]
    memory = remembering(old)
    for _ in range(20):
        write(Model(says(new)), memory)
    frugal, lavish = Model(says(new)), Model(says(new))
    write(frugal, memory, row_cost=0.15)
    write(lavish, memory, row_cost=0.0)
    assert frugal.rows[0] < lavish.rows[0]


@pytest.mark.parametrize("cap", [1, 3, 4, 5, 6])
def test_a_cap_cuts_a_kept_draft_where_it_cuts_a_plain_thought(cap):
    thought = [*OPEN, 40, 41, 42, *CLOSE]
    plain = write(Model(says(thought)), Drafts(), cap)
    accepted = write(Model(says(thought)), remembering(thought), cap)
    assert accepted[0].ids == plain[0].ids == thought[:cap]
    np.testing.assert_array_equal(accepted[1], plain[1])


def test_out_of_time_closes_the_thought_and_acts():
    thought = [*OPEN, *[40] * 30, *CLOSE]
    clock = iter([False, False, True, True])
    writer, logits, _ = write(Model(says(thought)), Drafts(), out_of_time=lambda: next(clock))
    assert writer.ids == thought[:3]
    assert logits.shape == (70, 64)


def test_drawn_words_follow_the_models_distribution():
    logits = np.full(LAYOUT.vocab_size, -30.0, np.float32)
    logits[[40, 41]] = np.log([0.25, 0.75])
    sampler = Sampler(LAYOUT, temperature=1.0, seed=3)
    drawn = np.array(list(sampler.words(np.tile(logits, (4000, 1)))))
    assert set(drawn) == {40, 41}
    assert (drawn == 41).mean() == pytest.approx(0.75, abs=0.03)


def test_a_drawn_decision_is_the_same_for_the_same_seed_and_another_for_another(random_bundle_path):
    images = {name: np.full((64, 64, 3), 90, np.uint8) for name in ("agentview", "wrist")}

    def decide(seed, drafts=True):
        options = DecisionOptions(temperature=1.0, seed=seed, drafts=drafts)
        policy = Policy.load(random_bundle_path, options=options)
        policy.decide(images, "pick")
        return policy.decide(images, "pick")

    first, again, plain, other = decide(1), decide(1), decide(1, drafts=False), decide(2)
    np.testing.assert_array_equal(first.raw_actions, again.raw_actions)
    np.testing.assert_array_equal(first.thought_ids, plain.thought_ids)
    assert (first.raw_actions != other.raw_actions).any()


def test_drafts_change_no_decision_of_the_real_graphs(random_bundle_path):
    rng = np.random.default_rng(5)
    with_drafts = Policy.load(random_bundle_path)
    plain = Policy.load(random_bundle_path, options=DecisionOptions(drafts=False))
    image = rng.integers(0, 256, (2, 64, 64, 3))
    accepted = 0
    for _ in range(12):
        image = np.clip(image + rng.integers(-6, 7, image.shape), 0, 255)  # like neighbouring pictures
        images = dict(zip(("agentview", "wrist"), image.astype(np.uint8), strict=True))
        quick, slow = (policy.decide(images, "pick up the can") for policy in (with_drafts, plain))
        np.testing.assert_array_equal(quick.thought_ids, slow.thought_ids)
        np.testing.assert_array_equal(quick.raw_actions, slow.raw_actions)
        assert quick.passes <= slow.passes
        accepted += quick.accepted
    assert accepted > 0


def test_a_character_whose_bytes_are_not_all_written_is_left_out(random_bundle_path):
    policy = Policy.load(random_bundle_path)
    ids = policy.bundle.tokenizer.encode("go 拾う", add_special_tokens=False).ids
    texts = [policy._words(ids[: i + 1]) for i in range(len(ids))]
    assert not any("\ufffd" in text for text in texts)
    assert texts[-1] == "go 拾う"


@pytest.mark.parametrize(
    "wrong",
    [{"decoding": "fast"}, {"thought_tokens": 0}, {"thought_seconds": 0.0}, {"thought_seconds": -1.0}],
)
def test_options_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong)) if "decoding" not in wrong else "decoding"):
        DecisionOptions(**wrong)


def test_an_episodes_first_thought_is_drafted_from_typical_ones():
    thought = [*OPEN, 40, 41, 42, 43, *CLOSE]
    writer, _, decided = write(Model(says(thought)), Drafts(typical=[thought]))
    assert (writer.ids, writer.passes, writer.accepted, decided) == (thought, 1, len(thought), True)


def test_a_sentence_that_no_last_thought_had_is_found_among_typical_ones():
    lift, carry = [*OPEN, 40, 41, 42, *CLOSE], [*OPEN, 60, 61, 62, 63, 64, 65, 66, *CLOSE]
    without, having = Drafts(), Drafts(typical=[lift, carry])
    for memory in (without, having):
        memory.remember(lift)
    (slow, *_), (quick, *_) = (write(Model(says(carry)), memory) for memory in (without, having))
    assert slow.ids == quick.ids == carry
    assert quick.passes <= 4 < slow.passes


def test_the_newest_thought_comes_before_typical_ones_and_a_new_episode_begins_with_these():
    memory = Drafts(typical=[[*OPEN, 40, *CLOSE]])
    memory.remember([*OPEN, 41, *CLOSE])
    assert [proposal.token for proposal in memory.newest()] == [*OPEN, 41, *CLOSE]
    assert memory.lookup([*OPEN, 41])[:2] == tuple(CLOSE)
    memory.clear()
    assert [proposal.token for proposal in memory.newest()] == [*OPEN, 40, *CLOSE]
    assert memory.lookup([*OPEN, 41]) == ()


def test_words_are_continued_from_the_longest_match_and_its_first_place():
    memory = remembering([40, 41, 50, 40, 41, 51, 43, 41, 52])
    assert memory.lookup([40, 41])[0] == 50, "the first place"
    assert memory.lookup([50, 40, 41])[0] == 51, "the longer match"
    assert memory.lookup([41, 52]) == (), "nothing follows it"
    assert memory.lookup([41]) == (), "one token says too little"


def test_numbers_are_doubted_from_the_start_and_words_are_not():
    memory = Drafts(numbers={50})
    number, word, guess = Proposal(50, guessed=False), Proposal(41, guessed=False), Proposal(50, guessed=True)

    def chance(proposal):
        return memory.chances((4, 40), [proposal])[0]

    assert chance(number) < 0.5 < chance(guess) < chance(word)
    for _ in range(5):
        memory.record((4, 40), [number], stood=1)
        memory.record((4, 40), [guess], stood=0)
    assert chance(number) > 0.8  # what was seen counts more than the first opinion
    assert chance(guess) < 0.2  # and guesses are counted apart


def test_what_stands_behind_a_word_is_recorded_up_to_the_first_that_did_not_stand():
    memory = Drafts()
    tried = [Proposal(token, guessed=False) for token in (41, 42, 43)]
    for _ in range(20):
        memory.record((4, 40), tried, stood=1)
    first, second, third = memory.chances((4, 40), tried)
    assert (first, third) == (1.0, 1.0), "41 stood; 43 was never reached"
    assert second < 0.1


def test_a_draft_stops_at_a_doubtful_number_when_rows_are_dear_and_goes_on_when_they_are_cheap():
    thought = [4, 40, 50, 41, 42, 43, 44, 5, 6]
    rows = {}
    for row_cost in (0.2, 0.001):
        model, memory = Model(says(thought)), Drafts(numbers={50})
        memory.remember(thought)
        write(model, memory, row_cost=row_cost)
        rows[row_cost] = model.rows[0] - len(PROMPT)
    assert rows[0.2] == 2  # `<think>` and the word before the number, which is only compared
    assert rows[0.001] > len(thought)  # all of it, and the action block


def test_tokens_with_digits_are_numbers(random_bundle_path):
    tokenizer = Bundle.load(random_bundle_path).tokenizer
    numbers = number_tokens(tokenizer)
    assert {tokenizer.token_to_id(digit) for digit in "0123456789"} == set(numbers)
