"""Intervals by hand are those of scipy."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from dtvla.evaluation.statistics import mcnemar, wilson


@settings(deadline=None)
@given(st.integers(1, 500), st.data())
def test_wilsons_interval_is_scipys(trials: int, data: st.DataObject) -> None:
    wins = data.draw(st.integers(0, trials))
    interval = binomtest(wins, trials).proportion_ci(0.95, method="wilson")
    z = float(norm.ppf(0.975))
    assert wilson(wins, trials, z) == pytest.approx((interval.low, interval.high), abs=1e-12)


def test_pairs_that_did_not_change_have_a_p_value_of_1() -> None:
    assert mcnemar(0, 0) == 1.0


def test_results_are_written_and_read_without_the_second_that_scipys_statistics_take() -> None:
    check = (
        "import sys, dtvla.evaluation.results, dtvla.evaluation.compare; print('scipy.stats' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", check], text=True).strip() == "False"
