"""The gate: the shipped policy closes the loop as it is on record."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from dtvla.evaluation.runner import OUTCOMES, EpisodeResult, EvalOptions, evaluate, outcome
from dtvla.evaluation.statistics import wilson
from dtvla.policy.bundle.loading import Bundle
from dtvla.resources import default_bundle, resource

RESULTS = Path(__file__).parents[2] / "docs/results"


@pytest.fixture(scope="module")
def shipped() -> Path:
    return default_bundle()


@pytest.fixture(scope="module", params=["embedded", "embedded_tray"])
def record(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What `dtvla eval --suite SUITE --episodes 180 --seed0 10000` wrote of the shipped bundle."""
    return json.loads((RESULTS / f"{request.param}.json").read_text())


def test_the_shipped_bundle_is_whole_small_and_says_where_it_comes_from(shipped: Path) -> None:
    bundle = Bundle.load(shipped)
    assert sum(file.stat().st_size for file in shipped.iterdir()) < 20e6
    assert {"code", "run", "dataset"} <= set(bundle.spec.provenance)


def test_the_recorded_result_is_of_the_very_bundle_that_ships(shipped: Path, record: dict[str, Any]) -> None:
    assert record["fingerprint"] == Bundle.load(shipped).fingerprint
    assert record["episodes"] == len(record["results"]) == 180
    assert record["errors"] == 0
    assert min(result["seed"] for result in record["results"]) == 10_000


def test_the_shipped_bundle_was_made_of_the_float32_one_beside_it(shipped: Path) -> None:
    bundle, base = Bundle.load(shipped), Bundle.load(resource("bundles/embedded"))
    assert (bundle.spec.precision, base.spec.precision) == ("int8", "fp32")
    assert bundle.spec.provenance["quantised_from"] == base.fingerprint


@pytest.mark.sim
def test_the_shipped_policy_solves_again_what_it_solved(shipped: Path, record: dict[str, Any]) -> None:
    """One recorded success per task, in closed loop. One may differ: another processor rounds otherwise."""
    solved = {r["task"]: r["seed"] for r in record["results"] if r["success"]}
    options = [
        EvalOptions(shipped, suite=record["suite"], episodes=1, seed0=seed, tasks=(task,))
        for task, seed in solved.items()
    ]
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # one environment per process
        results: list[EpisodeResult] = [pool.apply(evaluate, (one,))[0] for one in options]
    assert not [r.error for r in results if r.error]
    assert sum(r.success for r in results) >= max(1, len(solved) - 1), [r.task_name for r in results]
    assert all(r.phase_stated > 0.9 for r in results), "thoughts are not in the form that can be checked"


@pytest.mark.parametrize(
    ("success", "lifted", "ending"),
    [
        (True, ["can_1"], "solved"),
        (True, ["cube_1", "can_1"], "solved"),
        (False, [], "picked up nothing"),
        (False, ["cube_1", "can_1"], "another object first"),
        (False, ["can_1", "cube_1"], "picked it up, did not place it"),
    ],
)
def test_a_failure_is_told_by_what_was_picked_up(success: bool, lifted: list[str], ending: str) -> None:
    assert outcome(success, lifted, "can_1") == ending
    assert ending in OUTCOMES


def test_wilson_intervals_hold_the_rate_and_stay_between_0_and_1() -> None:
    for wins, trials in [(0, 3), (3, 3), (42, 60), (1, 1000)]:
        low, high = wilson(wins, trials)
        assert 0 <= low <= wins / trials <= high <= 1
    assert wilson(0, 0) == (0.0, 1.0)
