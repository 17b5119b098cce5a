"""Evaluation with a delay: the controller's executor on simulated time, and the figures of a motion."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np
import pytest

from dtvla.cli.evaluate import delay_s
from dtvla.cli.sweeps import numbers
from dtvla.evaluation.runner import EpisodeResult, EvalOptions, evaluate
from dtvla.evaluation.smoothness import Smoothness
from dtvla.evaluation.sweeps.delay_plot import draw_delays
from dtvla.evaluation.sweeps.delay_sweep import markdown, points, summarise
from dtvla.evaluation.sweeps.sweep import Sweep, run_sweep
from dtvla.resources import default_bundle

PERIOD_S = 0.05
USUAL = EvalOptions(default_bundle(), episodes=1)


@pytest.fixture(scope="module")
def worker() -> Iterator[Pool]:
    """One process for the simulator: one environment at a time."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        yield pool


@pytest.fixture(scope="module")
def usual(worker: Pool) -> EpisodeResult:
    """An episode in which the world waits for the policy."""
    return run(worker, USUAL)


def run(worker: Pool, options: EvalOptions) -> EpisodeResult:
    (result,) = worker.apply(evaluate, (options,))
    assert not result.error
    return result


@pytest.mark.sim
@pytest.mark.parametrize("mode", ["open_loop", "receding"])
def test_without_a_delay_an_episode_is_the_usual_one_bit_for_bit(
    worker: Pool, usual: EpisodeResult, mode: str
) -> None:
    """Receding too: its chunks then come when the ones before are used up."""
    result = run(worker, replace(USUAL, delay=0.0, chunk_mode=mode))
    assert result.state_sha256 == usual.state_sha256
    assert replace(result, latency_p50_ms=0.0) == replace(usual, latency_p50_ms=0.0)


@pytest.mark.sim
def test_a_delay_leaves_an_open_loop_only_the_rows_that_are_not_past(worker: Pool) -> None:
    """Of five rows of 50 ms four are past after 200 ms: the arm is told to stay in 4 of 5 ticks."""
    result = run(worker, replace(USUAL, delay=0.2, tasks=(0,)))
    assert result.motion["held"] == pytest.approx(0.8, abs=0.01)
    assert result.decided_at[:3] == (0, 5, 10)


@pytest.mark.sim
def test_with_a_delay_two_runs_agree_and_the_arm_goes_on_from_chunk_to_chunk(worker: Pool) -> None:
    options = replace(USUAL, delay=0.2, chunk_mode="receding", chunk_seam="spline")
    first, second = run(worker, options), run(worker, options)
    assert first.state_sha256 == second.state_sha256
    assert first.motion["held"] < 0.05  # only before the first chunk
    assert run(worker, replace(options, delay=0.19)).state_sha256 == first.state_sha256  # up to the tick


def test_the_figures_of_a_motion_whose_figures_are_known() -> None:
    """A cubic has a constant third derivative; one commanded step changes by 1 cm."""
    times = np.arange(12) * PERIOD_S
    positions = np.stack([2.0 * times**3, 0 * times, 0 * times], 1)
    commands = np.zeros((11, 3))
    commands[5:, 1] = 0.01
    motion = Smoothness.of(positions, commands, [5], 3, PERIOD_S)
    assert motion.jerk_rms_m_s3 == pytest.approx(12.0)
    assert motion.jerk_max_m_s3 == pytest.approx(12.0)
    assert motion.path_m == pytest.approx(2.0 * times[-1] ** 3)
    assert motion.command_jump_mean_m_s == pytest.approx(0.01 / PERIOD_S)
    steps = np.diff(positions[:, 0]) / PERIOD_S
    assert motion.jump_mean_m_s == motion.jump_max_m_s == pytest.approx(steps[5] - steps[4])
    assert motion.held == 3 / 11


def test_an_episode_of_one_step_has_figures_too() -> None:
    motion = Smoothness.of([np.zeros(3), np.ones(3)], [np.ones(3)], [], 0, PERIOD_S)
    assert (motion.jerk_rms_m_s3, motion.jump_mean_m_s) == (0.0, 0.0)


def test_what_cannot_be_delayed_is_said() -> None:
    with pytest.raises(ValueError, match="0 to 1 s are"):
        EvalOptions("bundle", delay=1.5)
    with pytest.raises(ValueError, match="'expert' is none"):
        EvalOptions("expert", delay=0.1)
    with pytest.raises(ValueError, match="need a --delay"):
        EvalOptions("bundle", chunk_mode="receding")
    with pytest.raises(ValueError, match="leave --chunk-seam"):
        EvalOptions("bundle", delay=0.1, chunk_seam="spline")
    with pytest.raises(ValueError, match="not 'soon'"):
        delay_s("soon")
    with pytest.raises(ValueError, match="not '0,x'"):
        numbers("0,x")
    with pytest.raises(ValueError, match="no way 'backwards'"):
        points(USUAL, ways=("backwards",))


def test_the_controllers_age_limit_bounds_the_delay() -> None:
    from dtvla.evaluation.results import MAX_DELAY_S
    from dtvla.nodes.common.parameters import CONTROLLER

    assert {p.name: p.default for p in CONTROLLER}["max_chunk_age_s"] == MAX_DELAY_S


def test_a_sweep_is_summed_up_by_way_and_delay(tmp_path: Path) -> None:
    base = replace(USUAL, episodes=2)
    evaluations = points(base, (0.2, 0.0), ("receding", "open_loop"))
    motion = vars(Smoothness(1.0, 2.0, 3.0, 0.1, 0.2, 0.3, 0.0))
    solved = EpisodeResult(0, "b", 1, True, 100, 1, 1.0, 1.0, 1.0, ("",), motion=motion)
    results = {name: [solved, replace(solved, success=False)] for name in evaluations}
    found = summarise(evaluations, results)
    assert [(point.way, point.delay_s, point.solved) for point in found] == [
        ("open_loop", 0.0, 1),
        ("open_loop", 0.2, 1),
        ("receding", 0.0, 1),
        ("receding", 0.2, 1),
    ]
    assert found[0].figures["completion_s"].mean == 5.0  # of the solved episode alone
    assert "| receding | 200 | 1 of 2 |" in markdown(found)
    draw_delays(tmp_path / "delay.png", found, "a title")
    assert (tmp_path / "delay.png").stat().st_size > 10_000


@pytest.mark.sim
def test_an_interrupted_study_goes_on_where_it_was(tmp_path: Path) -> None:
    names = {"none": replace(USUAL, policy="random", episodes=1), "noise_1": None}
    names["noise_1"] = replace(names["none"], variation="noise:1")
    sweep = Sweep("variations", names)
    seen: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run_sweep(tmp_path, sweep, 1, _stop_after_the_first(seen))
    assert seen == ["none"]
    again: list[str] = []
    results = run_sweep(tmp_path, Sweep.begun(tmp_path), 1, lambda name, result: again.append(name))
    assert again == ["none", "noise_1"]
    assert {name: len(found) for name, found in results.items()} == {"none": 1, "noise_1": 1}
    with pytest.raises(ValueError, match="holds no study"):
        Sweep.begun(tmp_path / "none")


def _stop_after_the_first(seen: list[str]):
    def on_result(name: str, result: EpisodeResult) -> None:
        seen.append(name)
        raise KeyboardInterrupt

    return on_result
