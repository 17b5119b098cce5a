"""The throughput of rollouts is held against simulators that do the same."""

import numpy as np
import pytest

from training.rl import bench
from training.rl.rollouts import frame
from training.rl.settings import RolloutSettings
from training.rl.trajectory import RolloutJob, Trajectory


def test_the_simulators_alone_repeat_the_rollouts_to_the_step(toy_policy):
    rollout = RolloutSettings(thought_tokens=8, max_steps=12, execute_steps=5, workers=1, tasks=(0,), seeds=2)
    found = bench.measure(bench.RlBench(str(toy_policy), episodes=2, rounds=2, rollout=rollout))
    assert found.simulators > 0
    assert found.rollouts > 0
    assert min(found.shares) <= found.share <= max(found.shares)
    assert found.decision_tokens <= 8


class _Crew:
    """Workers that make so many steps."""

    def __init__(self, steps):
        self.steps = steps

    def play(self, jobs):
        for job in jobs:
            yield Trajectory(job, np.zeros(1, np.int64), (), 5, self.steps, success=False, seconds=1.0)


@pytest.mark.parametrize("number", [0, 1])
def test_simulators_that_do_something_else_are_not_compared(number):
    """With random actions they met fewer things, and were faster than with the policy's."""
    with pytest.raises(RuntimeError, match="made 8 steps where the rollouts made 7"):
        bench._both(_Crew(7), _Crew(8), [RolloutJob(0, 0)], number)


def test_a_repeated_decision_is_the_one_that_was_made(toy_policy):
    spec, _ = frame(toy_policy)
    columns = np.random.default_rng(0).integers(0, spec.layout.bins, spec.layout.slots).astype(np.int16)
    job = RolloutJob(0, 0)
    player = bench._Repeating(spec, {job: [columns]})
    player.begin(job)
    decision, again, log_probs = player.decide({}, "go")
    np.testing.assert_array_equal(again, columns)
    assert decision.raw_actions.shape == (spec.layout.horizon, spec.layout.action_dim)
    assert len(log_probs) == len(columns) + len(decision.thought_ids)
