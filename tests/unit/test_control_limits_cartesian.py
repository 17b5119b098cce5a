"""Limits are pure functions: tables of cases, and properties that hold for every number."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from test_control_action_chunk import make_chunk

from dtvla.control.limits.cartesian import (
    Limits,
    check_age,
    check_chunk,
    check_layout,
    clamp_gripper,
    clamp_length,
)

LIMITS = Limits()
GOOD = {"translations": 30, "rotations": 30, "gripper_openings": 10, "raw_actions": 70}
vectors = arrays(np.float64, 3, elements=st.floats(-1e6, 1e6))


@given(vectors, st.floats(1e-3, 1e3))
def test_a_clamped_vector_is_short_enough_and_keeps_its_direction(vector: np.ndarray, longest: float) -> None:
    clamped = clamp_length(vector, longest)
    assert np.linalg.norm(clamped) <= longest * (1 + 1e-12)
    np.testing.assert_allclose(
        np.cross(clamped / longest, vector / max(np.abs(vector).max(), 1)), 0, atol=1e-6
    )


@given(vectors)
def test_a_short_vector_passes_with_every_bit(vector: np.ndarray) -> None:
    assert clamp_length(vector, 1e7) is vector


@given(st.floats(-1e3, 1e3))
def test_the_gripper_stays_in_its_range(opening_m: float) -> None:
    assert 0.0 <= clamp_gripper(opening_m, LIMITS) <= 0.08


def test_a_good_layout_passes() -> None:
    assert check_layout(horizon=10, execute_steps=5, period_s=0.05, sizes=GOOD) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"horizon": 0}, "0 rows"),
        ({"horizon": 4000}, "4000 rows"),
        ({"execute_steps": 0}, "0 of its 10 rows"),
        ({"execute_steps": 11}, "11 of its 10 rows"),
        ({"period_s": 0.0}, "0.0 s"),
        ({"period_s": math.nan}, "nan s"),
        ({"period_s": math.inf}, "inf s"),
        ({"sizes": {**GOOD, "rotations": 29}}, "rotations hold 29"),
        ({"sizes": {**GOOD, "raw_actions": 0}}, "raw_actions hold 0"),
    ],
)
def test_a_bad_layout_is_named(change: dict[str, object], words: str) -> None:
    good = {"horizon": 10, "execute_steps": 5, "period_s": 0.05, "sizes": GOOD}
    assert words in (check_layout(**{**good, **change}) or "")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["translations", "rotations", "gripper_openings", "raw_actions"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused_with_its_row(name: str, value: float) -> None:
    chunk = make_chunk()
    array = getattr(chunk, name).copy()
    array[7] = value
    sentence = check_chunk(replace(chunk, **{name: array}), LIMITS)
    assert sentence is not None
    assert name in sentence
    assert "row 7" in sentence


@pytest.mark.parametrize(
    ("length", "refused"), [(0.0866, False), (0.3, False), (0.37, True), (1e9, True)]
)  # limit 1.8 m/s, 50 ms, four times that is nonsense: 0.36 m
def test_only_absurd_translations_are_refused_others_are_clamped_later(length: float, refused: bool) -> None:
    chunk = make_chunk()
    chunk.translations[3, 1] = length
    assert (check_chunk(chunk, LIMITS) is not None) == refused


@pytest.mark.parametrize(("age_s", "refused"), [(0.0, False), (0.99, False), (1.01, True), (-1.01, True)])
def test_a_chunk_too_old_or_from_the_future_is_refused(age_s: float, refused: bool) -> None:
    assert (check_age(0, round(age_s * 1e9), 1.0) is not None) == refused
