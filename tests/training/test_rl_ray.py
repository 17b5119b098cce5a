"""Rollouts on a real local Ray cluster, with actors that die and hang."""

import os
import signal

import pytest
import torch
from rl_toy import write_checkpoint

from training.common.run_checkpoints import TrainingError
from training.model.hf_checkpoint import load_policy
from training.rl.decisions import Decisions
from training.rl.learner import Scorer
from training.rl.settings import EvaluationSettings, RlOptimiserSettings, RolloutSettings
from training.rl.trajectory import RolloutJob, Trajectory
from training.rl.workers import RolloutWork, Weights

pytestmark = pytest.mark.sim


def pid_of(crew, actor):
    return crew._ray.get(actor.__ray_call__.remote(lambda self: os.getpid()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("ray") / "policy")


@pytest.fixture(scope="module")
def rollout():
    return RolloutSettings(
        max_steps=10, image_size=48, thought_tokens=6, workers=2, ray="local", episode_timeout_s=240.0
    )


@pytest.fixture(scope="module")
def crew(folder, rollout):
    from training.rl.ray_rollouts import crew

    made = crew(RolloutWork(folder, rollout, EvaluationSettings(max_steps=5), 7))
    yield made
    made.close()


def jobs(count, draw):
    return [RolloutJob(0, 5, member, draw) for member in range(count)]


def test_simulators_share_a_server_and_its_log_probs_are_the_learners(crew, folder, rollout):
    found = list(crew.play([*jobs(3, 0), RolloutJob(0, 6, greedy=True)]))
    assert all(isinstance(each, Trajectory) for each in found), found
    checkpoint = load_policy(folder)
    scorer = Scorer(checkpoint.model, rollout, RlOptimiserSettings())
    drawn = [each for each in found if not each.job.greedy]
    decisions = Decisions(drawn, checkpoint.spec.layout, checkpoint.spec.image)
    with torch.no_grad():
        log_probs, _ = scorer(decisions.batch(range(len(decisions))))
    assert ((log_probs - decisions.log_probs()).exp() - 1).abs()[decisions.mask()].max() < 1e-4
    assert next(each for each in found if each.job.greedy).finish_step == 5


@pytest.mark.parametrize("fault", ["simulator killed", "simulator stuck", "server killed"])
def test_what_dies_or_hangs_costs_no_episode(crew, fault):
    actor = crew.servers[0] if fault == "server killed" else next(iter(crew.simulators.values()))
    victim = pid_of(crew, actor)
    if fault == "simulator stuck":
        crew._work = RolloutWork(
            crew._work.folder,
            RolloutSettings(**{**vars(crew._work.rollout), "episode_timeout_s": 45.0}),
            EvaluationSettings(),
            7,
        )
    os.kill(victim, signal.SIGSTOP if fault == "simulator stuck" else signal.SIGKILL)
    found = list(crew.play(jobs(4, 1)))
    if fault == "simulator stuck":
        os.kill(victim, signal.SIGKILL)
    assert sorted(each.job.member for each in found) == [0, 1, 2, 3]
    assert all(isinstance(each, Trajectory) for each in found), found


def test_new_weights_reach_the_server(crew, folder, tmp_path):
    from safetensors.torch import load_file, save_file

    before = next(iter(crew.play(jobs(1, 2))))
    changed = {name: tensor + 0.05 for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(changed, tmp_path / "weights.safetensors")
    crew.sync(Weights(tmp_path / "weights.safetensors", 1))
    after = next(iter(crew.play(jobs(1, 2))))
    assert after.version == 1
    assert (before.moves[0].pixels == after.moves[0].pixels).all()
    assert not (before.moves[0].columns == after.moves[0].columns).all()


def test_a_server_without_a_policy_is_a_sentence(tmp_path, rollout, crew):
    from training.rl.ray_rollouts import RayRollouts

    while crew.simulators:  # the cluster has three processors, and they hold two
        crew._ray.kill(crew.simulators.popitem()[1])
    with pytest.raises(TrainingError, match=r"policy server did not start.*config\.json is missing"):
        RayRollouts(crew._ray, RolloutWork(tmp_path, rollout, EvaluationSettings(), 0))
