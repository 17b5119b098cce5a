"""Results on the disk hold real values, are read back as they were, and old files stay readable."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dtvla.evaluation.record import EvaluationRecord
from dtvla.evaluation.results import EpisodeResult, EvalOptions, Journal, failed, write_results
from dtvla.policy.bundle.loading import Bundle

EPISODE = EpisodeResult(0, "block", 10_000, True, 3, 1, 1.0, 1.0, 1.0, ("a thought",), "solved")
# Options that hold a number, a tuple, nothing, a word and a flag.
OPTIONS = EvalOptions("bundles/x", tasks=(0, 2), delay=0.1, variation="camera:2", watched=True)


@pytest.fixture
def summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A summary of OPTIONS with an episode that was solved and one that could not be run."""
    monkeypatch.setattr(Bundle, "load", lambda path: SimpleNamespace(fingerprint="f"))
    path = tmp_path / "results.json"
    write_results(path, OPTIONS, [failed(1, 10_000, "no renderer"), EPISODE])
    return path


def test_options_are_written_as_json_values(summary: Path) -> None:
    options = json.loads(summary.read_text())["options"]
    assert options["tasks"] == [0, 2]
    assert options["delay"] == 0.1
    assert options["max_steps"] is None
    assert options["watched"] is True
    assert options["seed0"] == 10_000
    assert "policy" not in options


def test_a_summary_says_again_what_was_evaluated(summary: Path) -> None:
    record = EvaluationRecord.load(summary)
    assert record.options == replace(OPTIONS, policy="x", seed0=10_000)
    assert (record.head["policy"], record.head["suite"], record.head["fingerprint"]) == ("x", "embedded", "f")
    assert [(result.task, result.error) for result in record.results] == [(0, ""), (1, "no renderer")]
    assert (record.solved, len(record.ran), record.complete) == (1, 1, True)


def test_a_summary_of_version_0_1_is_read_as_the_same(summary: Path) -> None:
    """It held every option as Python's `str` of it, and less beside."""
    now = EvaluationRecord.load(summary)
    old: dict[str, Any] = json.loads(summary.read_text())
    values = vars(OPTIONS) | {"seed0": OPTIONS.first_seed}
    old["options"] = {name: str(value) for name, value in values.items() if name != "policy"}
    assert (old["options"]["tasks"], old["options"]["max_steps"]) == ("(0, 2)", "None")
    del old["assets"]
    summary.write_text(json.dumps(old))
    assert EvaluationRecord.load(summary).options == now.options
    assert EvaluationRecord.load(summary).head == now.head


def test_a_folder_has_the_episodes_of_both_files_and_the_summarys_machine(summary: Path) -> None:
    folder = summary.parent
    begun = Journal(folder, EvalOptions("random"))
    begun.add(replace(EPISODE, actions="AAAA"))
    record = EvaluationRecord.load(folder)
    assert [(result.task, result.actions) for result in record.results] == [(0, "AAAA"), (1, "")]
    assert record.head["machine"] == json.loads(summary.read_text())["machine"]
    summary.unlink()
    record = EvaluationRecord.load(folder)
    assert (len(record.results), record.complete, "machine" in record.head) == (1, False, False)


@pytest.mark.parametrize(("change", "sentence"), [({"dely": 1}, "dely"), ({"backend": "best"}, "backend")])
def test_options_of_another_version_are_refused_by_name(
    summary: Path, change: dict[str, Any], sentence: str
) -> None:
    data = json.loads(summary.read_text())
    summary.write_text(json.dumps({**data, "options": {**data["options"], **change}}))
    with pytest.raises(ValueError, match=rf"The options in .*results\.json are not those .*{sentence}"):
        EvaluationRecord.load(summary)
