"""Scripts that decide in place of a policy, and the record that an evaluation leaves."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.pool import Pool
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from dtvla.cli.common import task_numbers
from dtvla.evaluation.policy_adapters import RandomActions, SwappedThoughtPolicy, script
from dtvla.evaluation.results import (
    Journal,
    begun_options,
    mean_agreement,
    pack_actions,
    read_journal,
    unpack_actions,
    write_results,
)
from dtvla.evaluation.runner import EpisodeResult, EvalOptions, evaluate, plan
from dtvla.nodes.bridge.simulation_session import SimulationSession
from dtvla.policy.policy import Policy

EPISODE = EpisodeResult(0, "block", 10_000, True, 3, 1, 1.0, 1.0, 1.0, ("a thought",), "solved")
OPTIONS = EvalOptions("random", episodes=2)


@pytest.fixture(scope="module")
def worker() -> Iterator[Pool]:
    """One process for the simulator: one environment at a time."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        yield pool


@pytest.fixture(scope="module")
def recorded(worker: Pool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The record of two expert episodes of the embedded suite."""
    options = EvalOptions("expert", episodes=2)
    folder = tmp_path_factory.mktemp("expert")
    journal = Journal(folder, options)
    for result in worker.apply(evaluate, (options,)):
        journal.add(result)
    return journal.path


@pytest.mark.sim
def test_the_expert_solves_the_embedded_tasks_and_its_thoughts_are_true(recorded: Path) -> None:
    _, results = read_journal(recorded)
    assert [(r.task, r.seed) for r in results] == [(0, 10_000), (1, 10_000)]
    assert all(r.success and r.phase_stated == r.target_within_3cm == 1.0 for r in results)
    assert all(r.agreement == {"target": 1.0, "side": 1.0, "phase": 1.0} for r in results)


def test_a_swapped_thought_is_about_another_task_and_the_prompt_about_this_one() -> None:
    asked: list[tuple[str, str]] = []

    class Told:
        def think(self, images: Any, instruction: str) -> str:
            asked.append(("think", instruction))
            return f"thought about {instruction}"

        def act(self, images: Any, instruction: str, thought: str) -> str:
            asked.append(("act", instruction))
            return thought

    policy = SwappedThoughtPolicy(cast(Policy, Told()), ["the can", "the block", "the box", "the tin"])
    assert policy.decide({}, "the box") == "thought about the can"
    assert asked == [("think", "the can"), ("act", "the box")]
    with pytest.raises(ValueError, match="own words"):
        EvalOptions("random", decoding="swapped", variation="instruction:2")


def test_agreement_is_weighed_by_decisions_and_left_out_where_it_is_not_known() -> None:
    known = replace(EPISODE, decisions=1, agreement={"side": 0.0}), replace(EPISODE, decisions=3)
    right = replace(EPISODE, decisions=3, agreement={"side": 1.0})
    assert mean_agreement([*known, right]) == {"side": 0.75}
    assert mean_agreement([EPISODE]) == {}


@pytest.mark.sim
def test_a_replay_gives_the_recorded_episode_to_the_last_bit(worker: Pool, recorded: Path) -> None:
    again = worker.apply(evaluate, (EvalOptions(f"replay:{recorded}", episodes=2),))
    _, results = read_journal(recorded)
    assert [r.state_sha256 for r in again] == [r.state_sha256 for r in results]
    assert [(r.steps, r.success) for r in again] == [(r.steps, r.success) for r in results]


@pytest.mark.sim
def test_a_replay_of_an_episode_that_was_not_recorded_is_an_error_in_words(
    worker: Pool, recorded: Path
) -> None:
    options = EvalOptions(f"replay:{recorded}", episodes=1, seed0=7)
    (result,) = worker.apply(evaluate, (options,))
    assert "holds no episode of task 0 of 'embedded' with seed 7" in result.error


def _through_the_world(actions: np.ndarray, seed: int) -> str:
    world = SimulationSession(image_size=32, fast=True, max_steps=0)
    world.load("embedded", 0)
    world.reset(seed)
    for action in actions:
        world.step(action)
    world.close()
    return world.fingerprint


@pytest.mark.sim
def test_the_bridges_world_and_an_evaluation_go_through_the_same_states(worker: Pool, recorded: Path) -> None:
    """So an episode through the ROS graph can be compared with one in process by one number."""
    first = read_journal(recorded)[1][0]
    fingerprint = worker.apply(_through_the_world, (unpack_actions(first.actions), first.seed))
    assert fingerprint == first.state_sha256


def test_random_actions_are_the_same_for_the_same_task_and_seed_only() -> None:
    def drawn(task: int, seed: int) -> list[float]:
        policy = RandomActions()
        env: Any = SimpleNamespace(info=SimpleNamespace(index=task))
        obs: Any = None
        policy.start(env, seed, obs)
        return policy.decide(obs).raw_actions[0].tolist()

    assert drawn(1, 5) == drawn(1, 5)
    assert len({tuple(drawn(task, seed)) for task in (0, 1) for seed in (5, 6)}) == 4
    assert all(-1 <= value <= 1 for value in drawn(0, 0))


def test_an_unknown_script_and_a_file_that_is_no_record_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no script 'teacher'"):
        script("teacher")
    (tmp_path / "notes.txt").write_text("dear diary")
    with pytest.raises(ValueError, match=r"notes\.txt is no record"):
        script(f"replay:{tmp_path / 'notes.txt'}")


def test_packed_actions_keep_every_bit() -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 7))
    assert (unpack_actions(pack_actions(list(actions))) == actions).all()


def test_an_interrupted_evaluation_goes_on_without_losing_an_episode(tmp_path: Path) -> None:
    journal = Journal(tmp_path, OPTIONS)
    journal.add(EPISODE)
    journal.add(replace(EPISODE, task=1, error="the worker process died"))
    with journal.path.open("a") as file:  # killed in the middle of a line
        file.write(json.dumps({"task": 2, "task_na": "can"})[:12])
    resumed = Journal(tmp_path, begun_options(tmp_path))
    assert [(r.task, r.thoughts) for r in resumed.finished] == [(0, ("a thought",))], (
        "what failed is tried again"
    )
    resumed.add(replace(EPISODE, task=1))
    assert [r.task for r in Journal(tmp_path, OPTIONS).finished] == [0, 1]


def test_finished_episodes_are_not_run_again() -> None:
    finished = [replace(EPISODE, task=task) for task, _ in plan(OPTIONS)]
    assert evaluate(OPTIONS, finished=finished) == finished


def test_the_workers_may_change_on_the_way_but_nothing_else(tmp_path: Path) -> None:
    Journal(tmp_path, OPTIONS)
    Journal(tmp_path, replace(OPTIONS, workers=3))
    with pytest.raises(ValueError, match="was begun with options"):
        Journal(tmp_path, replace(OPTIONS, episodes=3))


def test_the_summary_says_suite_and_assets_and_leaves_the_actions_to_the_record(tmp_path: Path) -> None:
    write_results(tmp_path / "results.json", OPTIONS, [replace(EPISODE, actions="AAAA")])
    summary = json.loads((tmp_path / "results.json").read_text())
    assert (summary["policy"], summary["suite"], summary["assets"]) == ("random", "embedded", "none needed")
    assert summary["options"]["seed0"] == 10000
    assert "actions" not in summary["results"][0]


def test_trials_are_counted_per_task_and_start_at_initial_state_0_in_libero() -> None:
    pairs = plan(EvalOptions("expert", suite="libero_object", tasks=(3, 4), trials=3))
    assert pairs == [(3, 0), (3, 1), (3, 2), (4, 0), (4, 1), (4, 2)]


def test_more_trials_than_initial_states_are_refused() -> None:
    with pytest.raises(ValueError, match="has 50 initial states, not 51"):
        plan(EvalOptions("expert", suite="libero_goal", tasks=(0,), trials=51))


def test_a_task_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match="has tasks 0 to 2, not 9"):
        plan(EvalOptions("expert", tasks=(1, 9)))


def test_tasks_are_given_as_numbers_and_ranges() -> None:
    assert task_numbers("") == ()
    assert task_numbers("0-2, 7,1") == (0, 1, 2, 7)
    for wrong in ("a", "3-", "-1", "1..3"):
        with pytest.raises(ValueError, match="--tasks takes numbers"):
            task_numbers(wrong)
