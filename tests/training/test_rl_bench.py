"""The throughput of rollouts is held against simulators that do the same."""

import numpy as np
import pytest

from training.rl import bench
from training.rl.playing import frame
from training.rl.settings import Rollout
from training.rl.trajectory import Job, Trajectory


def test_the_simulators_alone_repeat_the_rollouts_to_the_step(toy_policy):
    rollout = Rollout(thought_tokens=8, max_steps=12, execute_steps=5, workers=1, tasks=(0,), seeds=2)
    found = bench.measure(bench.RlBench(str(toy_policy), episodes=1, rollout=rollout))
    assert found.simulators > 0
    assert found.rollouts > 0
    assert found.decision_tokens <= 8


def test_simulators_that_do_something_else_are_not_compared(toy_policy, monkeypatch):
    """With random actions they met fewer things, and were faster than with the policy's."""
    steps = iter((7, 8))

    def timed(*_):
        made = next(steps)
        played = Trajectory(Job(0, 0), np.zeros(1, np.int64), (), 5, made, success=False, seconds=1.0)
        return bench._Timed([], [played], 1.0)

    monkeypatch.setattr(bench, "_timed", timed)
    with pytest.raises(RuntimeError, match="made 8 steps where the rollouts made 7"):
        bench.measure(bench.RlBench(str(toy_policy), rollout=Rollout(tasks=(0,))))


def test_a_repeated_decision_is_the_one_that_was_made(toy_policy):
    spec, _ = frame(toy_policy)
    columns = np.random.default_rng(0).integers(0, spec.layout.bins, spec.layout.slots).astype(np.int16)
    job = Job(0, 0)
    player = bench._Repeating(spec, {job: [columns]})
    player.begin(job)
    decision, again, log_probs = player.decide({}, "go")
    np.testing.assert_array_equal(again, columns)
    assert decision.raw_actions.shape == (spec.layout.horizon, spec.layout.action_dim)
    assert len(log_probs) == len(columns) + len(decision.thought_ids)
