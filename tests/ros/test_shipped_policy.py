"""The gate: the shipped policy closes the loop, through the graph and in process alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dtvla.policy.bundle import Bundle
from dtvla.resources import resource
from dtvla.sim.evaluation import EvalOptions, evaluate, wilson

pytestmark = [pytest.mark.sim]

SEEDS = 10_000  # never seen in training (training.collect starts at 100,000)


@pytest.fixture(scope="module")
def shipped() -> Path:
    return Path(resource("bundles/embedded"))


def test_the_shipped_bundle_is_whole_small_and_says_where_it_comes_from(shipped: Path) -> None:
    bundle = Bundle.load(shipped)
    assert sum(file.stat().st_size for file in shipped.iterdir()) < 20e6
    assert {"code", "run", "dataset"} <= set(bundle.spec.provenance)


def test_the_shipped_policy_solves_unseen_scenes(shipped: Path) -> None:
    """One episode per task; the recorded rate on 60 (docs/results) makes two failures a rare accident."""
    results = evaluate(EvalOptions(shipped, episodes=3, seed0=SEEDS))
    assert not [r.error for r in results if r.error]
    assert sum(r.success for r in results) >= 2, [r.task_name for r in results if not r.success]
    assert all(r.phase_stated > 0.9 for r in results), "thoughts are not in the form that can be checked"


def test_the_recorded_result_is_above_the_promise() -> None:
    """The README's figure is a file that the evaluation wrote, of the very bundle that ships."""
    record = json.loads((Path(__file__).parents[2] / "docs/results/embedded.json").read_text())
    assert record["episodes"] == 60
    assert record["errors"] == 0
    assert record["success_rate"] >= 0.70
    assert record["fingerprint"] == Bundle.load(resource("bundles/embedded")).fingerprint


def test_wilson_intervals_hold_the_rate_and_stay_between_0_and_1() -> None:
    for wins, trials in [(0, 3), (3, 3), (42, 60), (1, 1000)]:
        low, high = wilson(wins, trials)
        assert 0 <= low <= wins / trials <= high <= 1
    assert wilson(0, 0) == (0.0, 1.0)
