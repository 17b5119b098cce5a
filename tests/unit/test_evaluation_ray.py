"""An evaluation on a real local Ray cluster, and what is refused before one starts."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace

import pytest

from dtvla.evaluation import ray_cluster
from dtvla.evaluation.results import EpisodeResult, EvalOptions
from dtvla.evaluation.runner import evaluate, plan
from dtvla.resources import default_bundle

STEPS = 12


def _facts(results: list[EpisodeResult]) -> list[tuple[object, ...]]:
    return sorted((r.task, r.seed, r.error, r.steps, r.state_sha256, r.thoughts) for r in results)


def _play(options: EvalOptions) -> list[EpisodeResult]:
    return list(evaluate(options))


@pytest.mark.sim
def test_episodes_on_a_cluster_are_those_of_one_process_bit_for_bit() -> None:
    options = EvalOptions(default_bundle(), episodes=2, max_steps=STEPS, workers=2)
    together = list(ray_cluster.runner(ray_cluster.LOCAL, servers=1)(options, plan(options)))
    assert [r.error for r in together] == ["", ""]
    # Not in this process: Mesa's LLVM, which draws the pictures, and that of Triton in later tests collide.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        alone = pool.apply(_play, (replace(options, workers=0),))
    assert _facts(together) == _facts(alone)


@pytest.mark.parametrize(
    "changes", [{"thinking": "lagging"}, {"decoding": "autoregressive"}, {"delay": "measured"}], ids=str
)
def test_what_policy_servers_do_not_do_is_refused(changes: dict[str, str]) -> None:
    options = replace(EvalOptions(default_bundle()), **changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"are for --in-process"):
        ray_cluster.check(options)
