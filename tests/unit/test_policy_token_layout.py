"""Sequence layout and the mask rule."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtvla.policy.token_layout import NEVER, SLOT, Bounds, TokenLayout, allowed

LAYOUT = TokenLayout(
    vocab_size=300, image=3, think=4, end_think=5, action=6, end_action=7,
    action_begin=200, bins=64, prompt_end=(10, 11), image_tokens=4,
)  # fmt: skip
LENGTHS = st.tuples(st.integers(1, 20), st.integers(1, 15), st.integers(0, 12))


@given(LENGTHS)
def test_the_whole_sequence_mask_is_prefix_causal_and_then_open(lengths):
    prefix, thought, slots = lengths
    size, start = prefix + thought + slots, prefix + thought - 1
    mask = allowed(Bounds(prefix, start, size, 0), size, size)
    i, j = np.indices(mask.shape)
    np.testing.assert_array_equal(mask, (j < prefix) | (j <= i) | (i >= start))


@given(LENGTHS, st.integers(0, 10))
def test_every_cached_phase_sees_what_one_pass_would_see(lengths, spare):
    """Prefill, single steps and the action block are cases of the same mask."""
    prefix, thought, slots = lengths
    size, start = prefix + thought + slots, prefix + thought - 1
    keys = size + spare
    whole = allowed(Bounds(prefix, start, size, 0), size, keys)
    phases = [(Bounds(prefix, NEVER, prefix, 0), prefix)]
    phases += [(Bounds(prefix, NEVER, t + 1, t), 1) for t in range(prefix, start)]
    phases += [(Bounds(prefix, start, size, start), size - start)]
    rows = np.concatenate([allowed(bounds, count, keys) for bounds, count in phases])
    np.testing.assert_array_equal(rows, whole)


@given(LENGTHS, st.integers(1, 10))
def test_a_key_that_does_not_exist_yet_is_never_visible(lengths, spare):
    prefix, thought, slots = lengths
    size = prefix + thought + slots
    mask = allowed(Bounds(prefix, prefix + thought - 1, size, 0), size, size + spare)
    assert not mask[:, size:].any()


def test_the_action_block_is_the_tag_then_empty_slots_then_the_end():
    block = LAYOUT.action_block()
    assert len(block) == LAYOUT.slots + 3
    assert block[0] == LAYOUT.action
    assert (block[1:-2] == SLOT).all()
    assert list(block[-2:]) == [LAYOUT.end_action, LAYOUT.eos]


def test_all_action_ids_and_the_end_of_sequence_are_banned_from_thoughts():
    assert set(LAYOUT.banned()) == {LAYOUT.eos, *range(200, 264)}


@pytest.mark.parametrize("tag", ["pad", "bos", "image", "think", "end_action"])
def test_other_tags_are_not_banned_as_in_the_reference(tag):
    assert getattr(LAYOUT, tag) not in LAYOUT.banned()
