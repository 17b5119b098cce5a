"""Bins and quantile normalisation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtvla.policy.action_tokenizer import ActionTokenizer, Normaliser

BINS = st.integers(3, 4096)
VALUE = st.floats(-1, 1, allow_nan=False)


@given(BINS, VALUE)
def test_the_corrected_decoder_returns_every_value_to_within_half_a_bin(bins, value):
    codec = ActionTokenizer(bins, action_begin=100, decode_shift=1)
    assert abs(codec.decode(codec.encode(value)) - value) <= 1 / (bins - 1) + 1e-6


@given(BINS, VALUE)
def test_the_reference_decoder_lies_one_bin_higher_than_the_corrected_one(bins, value):
    """Quirk of the reference, kept on request: only the lowest and the top bin escape the bias."""
    ids = ActionTokenizer(bins, 0).encode(value)
    gap = ActionTokenizer(bins, 0, 0).decode(ids) - ActionTokenizer(bins, 0, 1).decode(ids)
    lowest, top = ids == bins - 1, ids == 0
    assert gap == pytest.approx(0 if lowest or top else 2 / (bins - 1))


@given(BINS, VALUE, VALUE)
def test_a_higher_value_never_has_a_higher_id(bins, a, b):
    codec = ActionTokenizer(bins, 7)
    low, high = codec.encode(min(a, b)), codec.encode(max(a, b))
    assert 7 <= high <= low <= 7 + bins - 1


def test_the_published_bins_stand_where_the_reference_puts_them():
    codec = ActionTokenizer(2048, 254976)
    np.testing.assert_array_equal(codec.bin_of([-1.0, 0.0, 1.0]), [0, 1024, 2047])
    np.testing.assert_array_equal(codec.encode([-1.0, 1.0]), [257023, 254976])
    assert codec.value_of(1023) == 0.0  # the gripper command that is neither open nor closed


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_values_outside_the_range_are_clamped(value):
    codec = ActionTokenizer(256, 0)
    assert codec.encode(value) == codec.encode(np.clip(value, -1, 1))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_is_refused(bad):
    with pytest.raises(ValueError, match="NaN or infinity"):
        ActionTokenizer(256, 0).encode([0.0, bad])


@pytest.mark.parametrize("bad", [99, 100 + 256])
def test_an_id_that_is_no_action_is_refused(bad):
    with pytest.raises(ValueError, match="not one of the action ids"):
        ActionTokenizer(256, 100).decode([bad])


@pytest.mark.parametrize(("bins", "shift"), [(2, 0), (256, 2), (256, -1)])
def test_a_codec_that_makes_no_sense_is_refused(bins, shift):
    with pytest.raises(ValueError, match=r"bins|decode_shift"):
        ActionTokenizer(bins, 0, shift)


STATS = {"q01": [-0.5, -2.0, -1.0], "q99": [0.5, 3.0, 1.0], "mask": [True, True, False]}


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=3))
def test_normalising_undoes_unnormalising(values):
    normaliser = Normaliser.from_stats(STATS, 3)
    np.testing.assert_allclose(normaliser.normalise(normaliser.unnormalise(values)), values, atol=1e-9)


def test_an_unmasked_dimension_passes_unchanged():
    normaliser = Normaliser.from_stats(STATS, 3)
    assert normaliser.normalise([0, 0, 17.0])[2] == normaliser.unnormalise([0, 0, 17.0])[2] == 17.0


@pytest.mark.parametrize("missing", ["q01", "q99", "mask"])
def test_a_missing_statistic_is_refused_by_name(missing):
    stats = {key: value for key, value in STATS.items() if key != missing}
    with pytest.raises(ValueError, match=rf"norm_stats\.{missing} is missing"):
        Normaliser.from_stats(stats, 3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"q99": [0.5, -2.0, 1.0]}, "q99 is not above q01 in dimension 1"),
        ({"q99": [0.5, -3.0, 1.0]}, "q99 is not above q01 in dimension 1"),
        ({"q01": [0.0, 0.0]}, r"q01 has shape \[2\]"),
        ({"q01": [0.0, float("nan"), 0.0]}, "finite"),
        ({"q01": ["a", "b", "c"]}, "finite"),
        ({"mask": [1, 1, 0]}, "mask must hold true or false"),
    ],
)
def test_statistics_that_cannot_be_used_are_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        Normaliser.from_stats({**STATS, **change}, 3)


def test_statistics_survive_writing_and_reading():
    normaliser = Normaliser.from_stats(STATS, 3)
    again = Normaliser.from_stats(normaliser.to_stats(), 3)
    np.testing.assert_array_equal(again.unnormalise([0.3, 0.2, 0.1]), normaliser.unnormalise([0.3, 0.2, 0.1]))
