"""Rollouts: what is drawn and recorded, batched policies, the simulator, workers that die or are stuck."""

import os
import signal
import time
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from rl_toy import TASKS, settings
from safetensors.torch import load_file, save_file

from dtvla.policy.batching import PolicyBatch, Request
from dtvla.policy.bundle.loading import GRAPHS
from dtvla.policy.decoding import Sampler
from dtvla.policy.images import normalise, pictures, preprocess
from dtvla.policy.options import DecisionOptions
from dtvla.policy.policy import Policy
from training.common.exported_graphs import Graphs, put_weights
from training.common.run_checkpoints import TrainingError
from training.model.hf_checkpoint import load_policy
from training.model.kv_cache_decoder import TorchBackend, TorchBatch
from training.rl import rollouts
from training.rl.decisions import Decisions
from training.rl.learner import Scorer
from training.rl.settings import EvaluationSettings, RlOptimiserSettings, RolloutSettings
from training.rl.trajectory import RolloutJob, Trajectory
from training.rl.workers import READY, LocalRolloutPolicy, Lost, RolloutActor, RolloutWork, Weights, Workers


def look(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.integers(0, 256, (40, 40, 3), np.uint8) for name in ("agentview", "wrist")}


def test_actions_can_be_drawn_at_another_temperature_than_words(toy_policy):
    layout = load_policy(toy_policy).spec.layout
    logits = np.random.default_rng(0).normal(size=(4000, layout.bins)).astype(np.float32)
    logits[:] = logits[0]
    for hot in (0.5, 3.0):
        columns = Sampler(layout, 1.0, 0, action_temperature=hot).columns(logits)
        expected = torch.softmax(torch.from_numpy(logits[0]) / hot, -1)
        found = np.bincount(columns, minlength=layout.bins) / len(columns)
        assert np.abs(found - expected.numpy()).max() < 0.03
    same = Sampler(layout, 1.0, 0).columns(logits)
    np.testing.assert_array_equal(same, Sampler(layout, 1.0, 0, action_temperature=1.0).columns(logits))
    greedy = Sampler(layout, 1.0, 0, action_temperature=0.0)
    assert (greedy.columns(logits) == logits[0].argmax()).all()
    assert len(set(greedy.words(np.zeros((30, layout.vocab_size), np.float32)))) > 10, "words are drawn"
    with pytest.raises(ValueError, match="temperature"):
        Sampler(layout, 1.0, 0, action_temperature=-1.0)


def test_the_chooser_that_records_draws_what_the_other_draws(toy_policy):
    layout = load_policy(toy_policy).spec.layout
    logits = np.random.default_rng(0).normal(size=(9, layout.vocab_size)).astype(np.float32)
    actions = np.random.default_rng(1).normal(size=(layout.slots, layout.bins)).astype(np.float32)
    plain, recording = Sampler(layout, 0.7, (1, 2), 1.6), rollouts.RecordingSampler(layout, 0.7, 0, 1.6)
    recording.begin((1, 2))
    recording.restart()
    words = [list(each.words(logits.copy())) for each in (plain, recording)]
    assert words[0] == words[1]
    drawn = plain.columns(actions)
    np.testing.assert_array_equal(drawn, recording.columns(actions))
    columns, log_probs = recording.take()
    np.testing.assert_array_equal(columns, drawn)
    logits[:, layout.banned()] = -np.inf
    expected = torch.log_softmax(torch.from_numpy(logits) / 0.7, -1)[torch.arange(9), words[0]]
    np.testing.assert_allclose(log_probs[:9], expected, atol=1e-5)
    expected = torch.log_softmax(torch.from_numpy(actions) / 1.6, -1)[torch.arange(70), drawn]
    np.testing.assert_allclose(log_probs[9:], expected, atol=1e-5)
    assert len(recording.take()[1]) == 0


def test_pictures_for_the_learner_are_what_the_policy_saw(toy_policy):
    spec = load_policy(toy_policy).spec
    accepted = pictures(look(3), spec.cameras, spec.image)
    assert accepted.dtype == np.uint8
    np.testing.assert_array_equal(
        normalise(accepted, spec.image), preprocess(look(3), spec.cameras, spec.image)
    )


@pytest.mark.parametrize("drafts", [True, False])
def test_a_batch_in_torch_decides_what_each_robot_decides_alone(toy_policy, drafts):
    """Also when a thought holds an image id, which is text there."""
    checkpoint = load_policy(toy_policy)
    spec = checkpoint.spec
    options = DecisionOptions(drafts=drafts, temperature=1.0, seed=4, action_temperature=1.6)
    bundle = rollouts.as_bundle(toy_policy, spec, checkpoint.tokenizer)
    batch = TorchBatch(checkpoint.model, 3, spec.cache_length, spec.thought_cap + 2)
    policy = Policy(bundle, TorchBackend(checkpoint.model, spec.cache_length), options)
    together = PolicyBatch(policy, 3, batch)
    alone = [Policy(bundle, TorchBackend(checkpoint.model, spec.cache_length), options) for _ in range(3)]
    for turn in range(4):
        asking = [0, 1, 2] if turn != 2 else [0, 2]
        answers = together.decide({robot: Request(look(robot), TASKS[robot]) for robot in asking})
        for robot in asking:
            own = alone[robot].decide(look(robot), TASKS[robot])
            np.testing.assert_array_equal(answers[robot].thought_ids, own.thought_ids)
            np.testing.assert_allclose(answers[robot].raw_actions, own.raw_actions, atol=1e-6)
            assert answers[robot].passes == own.passes


def test_an_image_id_in_a_thought_is_text_in_every_pass(toy_policy):
    checkpoint = load_policy(toy_policy)
    layout, model = checkpoint.spec.layout, checkpoint.model
    ids = torch.tensor([[layout.image] * 8 + [40, layout.image], [40] * 9 + [layout.image]])
    features = torch.randn(2, 8, 32)
    x = model.embed(ids, features)
    assert torch.equal(x[0, :8], features[0])
    text = model.embed(torch.tensor([[layout.image]]), None)[0, 0]
    assert torch.equal(x[0, 9], text)


def test_a_batch_of_another_size_than_its_robots_is_refused(toy_policy):
    checkpoint = load_policy(toy_policy)
    bundle = rollouts.as_bundle(toy_policy, checkpoint.spec, checkpoint.tokenizer)
    policy = Policy(bundle, TorchBackend(checkpoint.model, 512))
    with pytest.raises(ValueError, match="2 sequences for 3 robots"):
        PolicyBatch(policy, 3, TorchBatch(checkpoint.model, 2, 512, 14))


class _Env:
    """A world that is solved at a step, for the loop around it."""

    def __init__(self, solved_at):
        self.solved_at = solved_at

    def step(self, action, *, look=True):
        from dtvla.sim.env import Observation

        self.now = getattr(self, "now", 0) + 1
        nothing = np.zeros(7)
        return Observation(
            {}, nothing, nothing, 0.0, nothing, nothing, {}, self.now, self.now >= self.solved_at
        )


def test_a_world_that_plays_on_keeps_the_step_of_success():
    env = rollouts.EndlessEnv(_Env(3))
    assert [env.step(np.zeros(7)).success for _ in range(5)] == [False] * 5
    assert env.solved_at == 3


@pytest.fixture(scope="module")
def graphs(toy_policy):
    made = Graphs(toy_policy)
    yield made
    made.close()


@pytest.fixture(scope="module")
def simulated(toy_policy, graphs):
    """Two episodes of ten steps in the embedded suite, each played twice."""
    rollout = RolloutSettings(max_steps=12, image_size=48, thought_tokens=6)
    actor = RolloutActor(
        RolloutWork(toy_policy, rollout, EvaluationSettings(max_steps=5), 7, graphs=graphs.exported())
    )
    try:
        jobs = [
            RolloutJob(0, 5, 0, 1),
            RolloutJob(0, 5, 1, 1),
            RolloutJob(0, 5, 0, 1),
            RolloutJob(0, 5, greedy=True),
            RolloutJob(99, 0),
        ]
        return toy_policy, rollout, [actor.play(job, Weights()) for job in jobs]
    finally:
        actor._environments.close()


@pytest.mark.sim
def test_an_episode_of_the_simulator_leaves_all_that_the_learner_needs(simulated):
    folder, rollout, (first, *_) = simulated
    assert isinstance(first, Trajectory), first
    assert first.finish_step == 12
    assert len(first.moves) == 3, "5 + 5 + 2 steps"
    checkpoint = load_policy(folder)
    scorer = Scorer(checkpoint.model, rollout, RlOptimiserSettings())
    decisions = Decisions([first], checkpoint.spec.layout, checkpoint.spec.image)
    with torch.no_grad():
        found, _ = scorer(decisions.batch(range(3)))
    mask = decisions.mask()
    assert mask[2, decisions.longest :].sum() == 2 * 7
    assert ((found - decisions.log_probs()).exp() - 1).abs()[mask].max() < 1e-4


@pytest.mark.sim
def test_equal_jobs_give_equal_episodes_and_members_of_a_group_differ(simulated):
    first, second, again, *_ = simulated[2]
    for a, b in zip(first.moves, again.moves, strict=True):
        np.testing.assert_array_equal(a.pixels, b.pixels)
        np.testing.assert_array_equal(a.thought, b.thought)
        np.testing.assert_array_equal(a.action_log_probs, b.action_log_probs)
    np.testing.assert_array_equal(first.moves[0].pixels, second.moves[0].pixels)
    assert not np.array_equal(first.moves[0].columns, second.moves[0].columns)


@pytest.mark.sim
def test_evaluation_is_greedy_and_a_broken_episode_costs_no_other(simulated):
    *_, greedy, broken = simulated[2]
    assert greedy.finish_step == 5
    assert greedy.moves == ()
    assert isinstance(broken, Lost)
    assert "task 99 does not exist" in broken.reason


class Troubled(Workers):
    """Workers whose processes do what the seed of a job says."""

    def __init__(self, work, seconds=60.0):
        rollout = replace(work.rollout, episode_timeout_s=seconds)
        super().__init__(replace(work, rollout=rollout), _troubled, "fork")  # it renders nothing


def _troubled(work, pipe):
    marks = work.folder
    try:
        pipe.send(READY)
        while True:
            job, weights = pipe.recv()
            once = marks / f"job_{job.seed}"
            if job.seed >= 900 or (job.seed in (3, 5) and not once.exists()):
                once.touch()
                if job.seed == 5:
                    time.sleep(600)
                os.kill(os.getpid(), signal.SIGKILL)
            pipe.send(Trajectory(job, np.zeros(1, np.int64), (), 5, 5, True, 0.0, weights.version))
    except EOFError:
        return


def test_dead_workers_are_replaced_and_stuck_episodes_end(toy_policy, tmp_path):
    work = RolloutWork(tmp_path, settings(toy_policy, tmp_path).rollout, EvaluationSettings(), 0)
    crew = Troubled(work, seconds=3.0)
    try:
        crew.sync(Weights(tmp_path / "none", 4))
        found = list(crew.play([RolloutJob(0, seed) for seed in range(7)]))
    finally:
        crew.close()
    assert sorted(each.job.seed for each in found) == list(range(7)), "the lost ones were played again"
    assert all(isinstance(each, Trajectory) and each.version == 4 for each in found)
    assert {path.name for path in tmp_path.iterdir()} == {"job_3", "job_5"}


def test_workers_that_die_one_after_the_other_are_given_up(toy_policy, tmp_path):
    work = RolloutWork(tmp_path, settings(toy_policy, tmp_path).rollout, EvaluationSettings(), 0)
    crew = Troubled(replace(work, rollout=replace(work.rollout, workers=1)))
    try:
        with pytest.raises(TrainingError, match=r"3 rollout workers ended one after the other.*SIGKILL"):
            list(crew.play([RolloutJob(0, seed) for seed in range(900, 905)]))
    finally:
        crew.close()


def test_a_checkpoint_that_workers_cannot_read_is_a_sentence(tmp_path):
    crew = Workers(RolloutWork(tmp_path, RolloutSettings(workers=1), EvaluationSettings(), 0))
    try:
        with pytest.raises(TrainingError, match=r"config\.json is missing"):
            list(crew.play([RolloutJob(0, 0)]))
    finally:
        crew.close()


def moved(toy_policy, file):
    """Other weights for the toy policy, some of them alike."""
    weights = {name: tensor + 0.05 for name, tensor in load_file(toy_policy / "model.safetensors").items()}
    for name, tensor in weights.items():
        if name.endswith("layernorm.weight"):
            tensor.fill_(0.1)
    save_file(weights, file)
    return file


def test_a_player_takes_other_weights_and_decides_in_graphs_what_it_decides_in_torch(
    toy_policy, graphs, tmp_path
):
    work = RolloutWork(toy_policy, settings(toy_policy, tmp_path).rollout, EvaluationSettings(), 0)
    in_torch, in_graphs = (
        LocalRolloutPolicy(work),
        LocalRolloutPolicy(replace(work, graphs=graphs.exported())),
    )
    said = []
    for file in (None, moved(toy_policy, tmp_path / "other.safetensors"), toy_policy / "model.safetensors"):
        if file:
            in_torch.load(file)
            in_graphs.load(graphs.fitted(file))
        for player in (in_torch, in_graphs):
            player.begin(RolloutJob(0, 0))
        for turn in range(3):  # drafts of the thoughts before join in
            found = [player.decide(look(turn // 2), "go") for player in (in_torch, in_graphs)]
            (torchs, *drawn), (graphs_own, *again) = found
            np.testing.assert_array_equal(torchs.thought_ids, graphs_own.thought_ids)
            np.testing.assert_array_equal(torchs.raw_actions, graphs_own.raw_actions)
            assert torchs.passes == graphs_own.passes
            np.testing.assert_array_equal(drawn[0], again[0])
            np.testing.assert_allclose(drawn[1], again[1], atol=2e-5)
        said.append(graphs_own.raw_actions)
    assert not np.array_equal(said[0], said[1])
    np.testing.assert_array_equal(said[0], said[2])


@pytest.mark.sim
def test_workers_play_with_the_weights_of_the_learner(toy_policy, tmp_path):
    rollout = RolloutSettings(max_steps=5, image_size=48, thought_tokens=6, workers=1)
    crew = Workers(RolloutWork(toy_policy, rollout, EvaluationSettings(), 7))
    file = moved(toy_policy, tmp_path / "weights_000003.safetensors")
    try:
        (before,) = crew.play([RolloutJob(0, 5, 0, 1)])
        crew.sync(Weights(file, 3))
        (after,) = crew.play([RolloutJob(0, 5, 0, 1)])
    finally:
        crew.close()
    assert isinstance(before, Trajectory), before
    assert isinstance(after, Trajectory), after
    assert (before.version, after.version) == (0, 3)
    checkpoint = load_policy(toy_policy)
    for played, weights in ((before, toy_policy / "model.safetensors"), (after, file)):
        checkpoint.model.load_state_dict(load_file(weights))
        decisions = Decisions([played], checkpoint.spec.layout, checkpoint.spec.image)
        with torch.no_grad():
            found, _ = Scorer(checkpoint.model, rollout, RlOptimiserSettings())(decisions.batch([0]))
        assert ((found - decisions.log_probs()).exp() - 1).abs()[decisions.mask()].max() < 1e-4


def test_weights_of_another_model_do_not_get_into_the_graphs(toy_policy, graphs, tmp_path):
    weights = load_file(toy_policy / "model.safetensors")
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    for wrong, reason in (
        ({**weights, name: torch.zeros(3, 3)}, f"no weight for model.{name} of decoder.onnx"),
        ({**weights, "one.more": torch.zeros(3)}, "has a place for model.one.more"),
    ):
        save_file(wrong, tmp_path / "wrong.safetensors")
        with pytest.raises(TrainingError, match=reason):
            graphs.fitted(tmp_path / "wrong.safetensors")


def test_the_graphs_of_older_weights_are_removed(toy_policy, graphs, tmp_path):
    first = graphs.fitted(moved(toy_policy, tmp_path / "weights_000001.safetensors"))
    second = graphs.fitted(moved(toy_policy, tmp_path / "weights_000002.safetensors"))
    assert not first.exists()
    assert {path.name for path in second.iterdir()} == {"vision.onnx", "decoder.onnx"}
    assert graphs.exported().is_dir()


def test_weights_beside_a_large_graph_are_replaced_there(toy_policy, graphs, tmp_path):
    large, file = tmp_path / "large", moved(toy_policy, tmp_path / "other.safetensors")
    large.mkdir()
    for name in GRAPHS:
        graph = onnx.load(str(graphs.exported() / name))
        location = f"{name}.data"
        onnx.save(graph, str(large / name), save_as_external_data=True, location=location)
    for _ in range(2):
        put_weights(large, file, tmp_path / "out")
    small = graphs.fitted(file)
    for name in GRAPHS:
        sizes = [(folder / f"{name}.data").stat().st_size for folder in (large, tmp_path / "out")]
        assert sizes[0] == sizes[1], "written anew, not behind the old ones"
        found = [onnx.load(str(folder / name)).graph.initializer for folder in (small, tmp_path / "out")]
        for one, other in zip(*found, strict=True):
            np.testing.assert_array_equal(onnx.numpy_helper.to_array(one), onnx.numpy_helper.to_array(other))


def test_a_full_disk_under_the_graphs_is_a_sentence(toy_policy, graphs, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.common.exported_graphs.onnx.save", full)
    with pytest.raises(TrainingError, match=r"weights of .* cannot be written: No space left"):
        graphs.fitted(toy_policy / "model.safetensors")
