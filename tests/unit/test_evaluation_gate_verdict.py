"""What a gate lets pass: the record less chance, and nothing that could not be run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtvla.evaluation.gate import judge, load_reference, needed
from dtvla.evaluation.record import EvaluationRecord
from dtvla.evaluation.results import EpisodeResult, EvalOptions

RECORD = Path(__file__).parents[2] / "docs" / "results" / "embedded.json"


def episode(success: bool, error: str = "") -> EpisodeResult:
    return EpisodeResult(0, "can", 1, success, 10, 2, 1.0, 1.0, 1.0, (), error=error)


def record(solved: int, episodes: int) -> EvaluationRecord:
    results = tuple(episode(i < solved) for i in range(episodes))
    return EvaluationRecord(Path("results.json"), EvalOptions("", episodes=episodes), {}, results)


def test_the_shipped_policys_record_says_what_its_episodes_were() -> None:
    found = load_reference(RECORD)
    assert (found.options.suite, found.options.first_seed) == ("embedded", 10_000)
    assert (found.solved, len(found.ran)) == (178, 180)


@given(st.integers(1, 200), st.integers(1, 60), st.data())
def test_as_good_as_the_record_always_passes(of: int, now: int, data: st.DataObject) -> None:
    solved = data.draw(st.integers(0, of))
    fewest = needed(record(solved, of), now)
    assert 0 <= fewest < solved / of * now + 1
    assert judge(record(solved, of), [episode(i < fewest) for i in range(now)]).passed
    if fewest:
        assert not judge(record(solved, of), [episode(i < fewest - 1) for i in range(now)]).passed


def test_an_episode_that_could_not_be_run_is_no_pass_and_says_why() -> None:
    verdict = judge(record(9, 10), [episode(True), episode(False, error="The renderer is missing.")])
    assert not verdict.passed
    assert "1 of 2 episodes could not be run" in verdict.sentence
    assert "The renderer is missing." in verdict.sentence


def test_a_record_without_episodes_is_refused(tmp_path: Path) -> None:
    text = json.loads(RECORD.read_text())
    (tmp_path / "empty.json").write_text(json.dumps(text | {"results": []}))
    with pytest.raises(ValueError, match="no record to hold a policy to"):
        load_reference(tmp_path / "empty.json")
