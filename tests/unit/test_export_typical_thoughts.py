"""Typical thoughts hold the sentences of a policy and change nothing that it says or does."""

import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtvla.policy.bundle.loading import Bundle
from dtvla.policy.options import DecisionOptions
from dtvla.policy.policy import Policy
from model_export import typical
from model_export.errors import ExportError
from model_export.typical_thoughts import _pieces, number_tokens, typical_thoughts, with_typical
from training.collect import save_episode

REACH = ["the can is 1 cm left. move.", "the can is 2 cm left. move.", "the can is 12 cm left. move."]
WORDS = ["go", "up", "to", "the", "can", "and", "lift", "it", "3", "7"]
HELD = "the can is in the gripper. lift it."


@pytest.fixture
def tokenizer(random_bundle_path):
    return Bundle.load(random_bundle_path).tokenizer


@pytest.fixture
def episodes(tmp_path):
    folder = tmp_path / "episodes"
    folder.mkdir()
    for number, said in enumerate(([*REACH, HELD], [HELD])):
        save_episode(folder / f"{number}.npz", {"thoughts": np.array(said)})
    return folder


def test_thoughts_that_differ_in_numbers_alone_are_one(tokenizer):
    assert typical_thoughts(REACH[:2], tokenizer) == (REACH[0],)


def test_what_is_said_most_comes_first(tokenizer):
    assert typical_thoughts([HELD, *REACH, *REACH], tokenizer)[0] in REACH
    assert typical_thoughts([REACH[0], *[HELD] * 9], tokenizer)[0] == HELD


@given(said=st.lists(st.lists(st.sampled_from(WORDS), max_size=9)))
def test_every_piece_that_was_said_is_in_a_typical_thought(random_bundle_path, said):
    tokenizer = Bundle.load(random_bundle_path).tokenizer
    thoughts = [" ".join(words) for words in said]
    chosen = typical_thoughts(thoughts, tokenizer, count=1000)
    numbers = number_tokens(tokenizer)

    def pieces(group):
        ids = (tokenizer.encode(words, add_special_tokens=False).ids for words in group if words)
        return set().union(*(_pieces(each, numbers) for each in ids))

    assert pieces(chosen) == pieces(thoughts)
    assert set(chosen) <= set(thoughts)
    assert len(chosen) == len(set(chosen))


def test_a_bundle_gets_them_in_place_and_decides_as_before(random_bundle_path, tmp_path, episodes):
    bundle = shutil.copytree(random_bundle_path, tmp_path / "bundle")
    count = typical.add_typical(bundle, episodes)
    before, after = Bundle.load(random_bundle_path), Bundle.load(bundle)
    assert set(after.spec.typical_thoughts) <= {*REACH, HELD}
    assert len(after.typical) == count >= 2
    assert after.files == before.files, "no other file has changed"

    rng = np.random.default_rng(0)
    policies = [Policy.load(path) for path in (random_bundle_path, bundle)]
    for _ in range(4):
        images = {name: rng.integers(0, 256, (64, 64, 3), np.uint8) for name in ("agentview", "wrist")}
        plain, drafted = (policy.decide(images, "pick up the can") for policy in policies)
        np.testing.assert_array_equal(drafted.thought_ids, plain.thought_ids)
        np.testing.assert_array_equal(drafted.raw_actions, plain.raw_actions)


def test_a_policy_that_is_to_think_plainly_tries_none(random_bundle_path, tmp_path, episodes):
    bundle = shutil.copytree(random_bundle_path, tmp_path / "bundle")
    typical.add_typical(bundle, episodes)
    images = {name: np.full((64, 64, 3), 90, np.uint8) for name in ("agentview", "wrist")}
    decision = Policy.load(bundle, options=DecisionOptions(drafts=False)).decide(images, "pick")
    assert (decision.accepted, decision.passes) == (0, decision.tokens + 1)


def test_an_export_takes_them_from_the_episodes_that_it_is_calibrated_on(random_bundle_path, episodes):
    source = Bundle.load(random_bundle_path)
    spec = with_typical(source.spec, source.tokenizer, episodes)
    assert HELD in spec.typical_thoughts
    assert with_typical(source.spec, source.tokenizer, None) == source.spec


def test_a_folder_without_episodes_is_refused(random_bundle_path, tmp_path):
    bundle = shutil.copytree(random_bundle_path, tmp_path / "bundle")
    with pytest.raises(ExportError, match="holds no recorded episodes"):
        typical.add_typical(bundle, tmp_path)
    assert Bundle.load(bundle).fingerprint == Bundle.load(random_bundle_path).fingerprint
