"""Two evaluations side by side: pairs, McNemar's test, the interval, and what cannot be compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtvla.cli.results import compare as compare_command
from dtvla.evaluation.compare import Counts, compare, pair_up
from dtvla.evaluation.record import EvaluationRecord
from dtvla.evaluation.results import EpisodeResult, EvalOptions, Journal, write_results

EPISODE = EpisodeResult(0, "block", 10_000, True, 3, 1, 1.0, 1.0, 1.0, ("a thought",), "solved")
counts = st.builds(Counts, *[st.integers(0, 60)] * 4)


def episodes(wins: str, first_seed: int = 10_000) -> list[EpisodeResult]:
    """One episode per letter, `+` solved."""
    return [replace(EPISODE, seed=first_seed + i, success=win == "+") for i, win in enumerate(wins)]


def recorded(folder: Path, results: list[EpisodeResult], **options: object) -> Path:
    journal = Journal(folder, EvalOptions("random", **options))  # type: ignore[arg-type]
    for result in results:
        journal.add(result)
    return folder


@settings(deadline=None)
@given(counts)
def test_the_interval_holds_the_difference_and_stays_between_minus_1_and_1(found: Counts) -> None:
    low, high = found.interval
    assert -1 <= low <= found.difference <= high <= 1


@settings(deadline=None)
@given(counts)
def test_exchanging_a_and_b_turns_the_difference_round_and_keeps_the_p_value(found: Counts) -> None:
    other = Counts(found.both, found.only_b, found.only_a, found.neither)
    assert other.difference == -found.difference
    assert other.p_value == pytest.approx(found.p_value)
    assert other.interval == pytest.approx((-found.interval[1], -found.interval[0]))


@settings(deadline=None)
@given(counts)
def test_pairs_that_did_not_change_say_nothing_in_the_test(found: Counts) -> None:
    assert 0 <= found.p_value <= 1
    assert found.p_value == pytest.approx(replace(found, both=found.both + 7, neither=3).p_value)


@settings(deadline=None)
@given(counts.filter(lambda found: found.total > 0))
def test_four_times_as_many_episodes_with_the_same_rates_give_a_narrower_interval(found: Counts) -> None:
    more = Counts(*(4 * each for each in vars(found).values()))
    assert more.interval[1] - more.interval[0] < found.interval[1] - found.interval[0]


def test_the_figures_of_a_case_counted_by_hand() -> None:
    """7 of 8 changes to the worse: p = 2 (1 + 8) / 256; 5 against 0: 2 / 32."""
    assert Counts(0, 7, 1, 0).p_value == pytest.approx(18 / 256)
    assert Counts(10, 5, 0, 0).p_value == pytest.approx(2 / 32)


def test_the_interval_is_newcombes_of_his_own_example() -> None:
    """Newcombe 1998, table III, method 10: 36, 12, 2 and 0 pairs give 0.0569 to 0.3404."""
    low, high = Counts(36, 2, 12, 0).interval
    assert (round(low, 4), round(high, 4)) == (0.0569, 0.3404)


def test_episodes_are_paired_by_task_and_seed_whatever_their_order() -> None:
    a, b = episodes("++-"), list(reversed(episodes("+-+")))
    assert [(pair.seed, pair.a.success, pair.b.success) for pair in pair_up(a, b)] == [
        (10_000, True, True),
        (10_001, True, False),
        (10_002, False, True),
    ]


def test_a_comparison_names_the_episodes_that_changed_and_what_differs(tmp_path: Path) -> None:
    a = recorded(tmp_path / "a", episodes("++--"))
    b = recorded(tmp_path / "b", episodes("+-+-+"), variation="camera:2")
    found = compare(EvaluationRecord.load(a), EvaluationRecord.load(b))
    assert [pair.seed for pair in found.changed] == [10_001, 10_002]
    assert "1 of the 5 episodes of B are not in the other: left out." in found.warnings
    assert "The option variation is none in A and camera:2 in B." in found.warnings
    assert json.loads(found.to_json())["counts"] == {"both": 1, "only_a": 1, "only_b": 1, "neither": 1}


def test_a_summary_and_a_record_of_one_evaluation_agree(tmp_path: Path) -> None:
    results = episodes("+-")
    folder = recorded(tmp_path, results)
    write_results(tmp_path / "results.json", EvalOptions("random"), results)
    found = compare(EvaluationRecord.load(folder), EvaluationRecord.load(tmp_path / "results.json"))
    assert (found.changed, found.warnings) == ([], ())


def test_other_worlds_and_other_episodes_are_refused_in_words(tmp_path: Path) -> None:
    a = EvaluationRecord.load(recorded(tmp_path / "a", episodes("+")))
    other_suite = replace(a, head={**a.head, "suite": "libero_object"})
    with pytest.raises(ValueError, match=r"suite of .*: 'embedded'; suite of .*: 'libero_object'"):
        compare(a, other_suite)
    with pytest.raises(ValueError, match=r"assets of .*stand-in assets"):
        compare(a, replace(a, head={**a.head, "assets": "stand-in assets"}))
    with pytest.raises(ValueError, match="no task and seed in common"):
        compare(a, EvaluationRecord.load(recorded(tmp_path / "b", episodes("+", first_seed=7))))
    with pytest.raises(ValueError, match="holds no evaluation"):
        EvaluationRecord.load(tmp_path)


def test_the_exit_status_tells_a_pipeline_that_b_is_worse(tmp_path: Path) -> None:
    good, bad = recorded(tmp_path / "a", episodes("+" * 8)), recorded(tmp_path / "b", episodes("-" * 8))
    assert compare_command(good, bad, fail_if_worse=True) == 1
    assert compare_command(bad, good, fail_if_worse=True) == 0
    assert compare_command(good, bad) == 0
    assert compare_command(good, bad, fail_if_worse=True, alpha=0.001) == 0  # p = 2 / 2^8
