"""The loop: exact resuming, refusals, full disks, groups that teach nothing."""

import errno
import io
import json
import shutil
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from rl_toy import Toy, settings
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.common.run_checkpoints import TrainingError
from training.common.settings import SettingsError, load
from training.model.hf_checkpoint import load_policy
from training.rl import group_sampling, trajectory
from training.rl.group_sampling import InitialStates, sample_groups
from training.rl.loop import Run, learning_rate, train
from training.rl.settings import EvaluationSettings, Rl, RlOptimiserSettings, RolloutSettings
from training.rl.workers import Lost


def quiet():
    return Console(file=io.StringIO(), width=300)


def weights_of(out):
    return load_file(out / "last" / "model.safetensors")


@pytest.fixture(scope="module")
def whole(toy_policy, tmp_path_factory):
    """A run of two iterations in one go, with evaluations."""
    out = tmp_path_factory.mktemp("whole")
    config = settings(toy_policy, out, evaluation=EvaluationSettings(every=1, episodes=2))
    train(config, quiet(), Toy)
    return config


def test_whoever_waits_is_told_how_far_it_is(toy_policy, tmp_path):
    config = settings(toy_policy, tmp_path, evaluation=EvaluationSettings(every=1, episodes=2))
    said = []
    run = Run(config, Toy)
    run.tell = said.append
    run.iterate()
    run.evaluate()
    assert len(said) == 8 + 1 + 2, "rollouts, the update, episodes of the evaluation"
    assert said[7].startswith("iteration 1: 8 rollouts, ")
    assert said[7].endswith(" of 2 groups kept")
    assert said[8] == "iteration 1: 8 rollouts to learn from"
    assert said[9:] == ["evaluation: 1 of 2 episodes", "evaluation: 2 of 2 episodes"]


def test_a_run_that_was_interrupted_ends_with_the_same_weights(whole, toy_policy, tmp_path):
    """It is killed between two checkpoints, when some rollouts of the second iteration are played."""
    config = replace(whole, out=tmp_path)
    train(replace(config, stop_after=1), quiet(), Toy)

    class Killed(Exception):
        pass

    class Dying(Toy):
        def one(self, job):
            if len(self.played) == 3:
                raise Killed
            return super().one(job)

    with pytest.raises(Killed):
        train(config, quiet(), Dying)
    assert len(list(tmp_path.rglob("rollouts_0/**/*.npz"))) == 3
    found = []

    def make(work):
        found.append(Toy(work))
        return found[0]

    train(config, quiet(), make)
    replayed = [job for job in found[0].played if not job.greedy]
    assert len(replayed) == 8 - 3, "what was played is not played again"
    before, after = weights_of(whole.out), weights_of(tmp_path)
    begun = load_file(toy_policy / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(not torch.equal(before[name], begun[name]) for name in before)
    assert not list(tmp_path.glob("rollouts_0/*/*"))


def test_a_checkpoint_is_a_policy_that_can_be_exported_and_says_where_it_comes_from(whole, toy_policy):
    policy = load_policy(whole.out / "last")
    assert policy.spec.provenance["rl"]["iteration"] == 2
    assert policy.spec.provenance["rl"]["from"] == str(toy_policy)
    assert (whole.out / "best").is_dir()


def test_tensorboard_shows_what_matters(whole):
    events = EventAccumulator(str(whole.out))
    events.Reload()
    names = set(events.Tags()["scalars"])
    wanted = {"success", "thought_entropy", "action_entropy", "kl_to_rollout", "clip_share", "thought_length",
              "format_share", "ratio_error_at_start", "grad_norm", "rollout_s", "learning_rate"}  # fmt: skip
    assert {f"rl/{name}" for name in wanted} <= names
    assert [e.step for e in events.Scalars("rl/success")] == [1, 2]
    assert [e.step for e in events.Scalars("evaluation/success")] == [0, 1, 2]
    assert all(e.value < 1e-4 for e in events.Scalars("rl/ratio_error_at_start"))


def test_a_checkpoint_of_other_settings_is_refused(whole):
    changed = replace(whole, loss=replace(whole.loss, clip_low=0.1))
    with pytest.raises(TrainingError, match=r"loss\.clip_low = 0\.2, this run has 0\.1"):
        Run(changed, Toy)
    free = replace(whole, optimiser=replace(whole.optimiser, micro_batch=1), stop_after=2)
    assert Run(free, Toy).iteration == 2


def test_a_folder_with_another_kind_of_checkpoint_is_refused(whole, tmp_path):
    (tmp_path / "step_000001").mkdir()
    (tmp_path / "last").symlink_to("step_000001")
    with pytest.raises(TrainingError, match=r"no checkpoint of a run of training\.rl"):
        Run(replace(whole, out=tmp_path), Toy)


def test_a_full_disk_is_a_sentence_and_the_last_checkpoint_stays_whole(toy_policy, tmp_path, monkeypatch):
    config = settings(toy_policy, tmp_path)
    train(replace(config, stop_after=1), quiet(), Toy)
    before = weights_of(tmp_path)

    def full(*arguments, **keywords):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("training.rl.loop.save_policy", full)
        with pytest.raises(TrainingError, match="No space left on device"):
            train(config, quiet(), Toy)
    shutil.rmtree(tmp_path / "rollouts_0")
    with monkeypatch.context() as patch:
        patch.setattr(trajectory, "save", full)
        with pytest.raises(TrainingError, match="rollouts of iteration 1 cannot be written"):
            train(config, quiet(), Toy)
    after = weights_of(tmp_path)
    assert all(torch.equal(before[name], after[name]) for name in before)
    train(config, quiet(), Toy)
    assert (tmp_path / "last").resolve().name == "step_000002"


@pytest.mark.parametrize("name", ["rl-tiny", "rl-deepthinkvla-2.9b"])
def test_the_configurations_that_come_with_the_project_are_valid(name):
    load(Rl, name)


def test_unknown_keys_and_impossible_values_are_refused(tmp_path):
    for text, words in (
        ('checkpoint = "a"\n[loss]\nclip_lo = 0.2', "loss.clip_low"),
        ('checkpoint = "a"\n[rollout]\ngroup = 1', "compares at least 2"),
        ('checkpoint = "a"\n[rollout]\nthought_temperature = 0.0', "above 0"),
        ('checkpoint = "a"\n[loss.faults]\nunmasked_scores = true', "play_on"),
        ('checkpoint = "a"\n[rollout]\nvariation = "fog:2"', "no variation 'fog'"),
        ('checkpoint = "a"\n[loss]\naggregation = "mean"', "token_mean"),
    ):
        path = tmp_path / "config.toml"
        path.write_text(text)
        with pytest.raises(SettingsError, match=words):
            load(Rl, path)


def test_every_first_state_is_tried_once_before_one_comes_again():
    stream = InitialStates(RolloutSettings(tasks=(0, 2), first_seed=5, seeds=3), seed=1)
    jobs = [stream.group(draw, 2) for draw in range(12)]
    first = {(group[0].task, group[0].seed) for group in jobs[:6]}
    assert first == {(task, seed) for task in (0, 2) for seed in (5, 6, 7)}
    order = [(group[0].task, group[0].seed) for group in jobs]
    assert sorted(order[6:]) == sorted(order[:6])
    assert order[6:] != order[:6]
    assert all(len({job.member for job in group}) == 2 for group in jobs)
    with pytest.raises(TrainingError, match="has no task 9"):
        InitialStates(RolloutSettings(tasks=(9,)), seed=0)


class Told:
    """Rollouts with the successes that a test wants, by number of the group."""

    def __init__(self, successes, lost=()):
        self.successes, self.lost, self.asked = successes, lost, []

    def play(self, jobs):
        self.asked += jobs
        for job in reversed(jobs):
            if (job.draw, job.member) in self.lost:
                yield Lost(job, "gone")
            else:
                won = job.member < self.successes[job.draw]
                yield trajectory.Trajectory(job, None, (), 5, 5, won)


def test_groups_that_all_win_or_all_lose_are_replaced_by_others():
    config = RolloutSettings(tasks=(0,), seeds=9, prompts=2, group=4)
    told = Told({0: 4, 1: 2, 2: 0, 3: 3})
    found = sample_groups(told, InitialStates(config, 0), config, 0, 0, lambda t: 0)
    assert [t.job.draw for t in found.kept] == [1, 1, 1, 1, 3, 3, 3, 3]
    assert [t.job.member for t in found.kept] == [0, 1, 2, 3] * 2
    assert found.next_draw == 4
    assert found.rollouts == 16


def test_the_search_for_useful_groups_ends_and_lost_rollouts_are_left_out():
    config = RolloutSettings(tasks=(0,), seeds=9, prompts=1, group=4, max_rounds=3)
    told = Told({0: 4, 1: 4, 2: 1}, lost=[(2, 3)])
    found = sample_groups(told, InitialStates(config, 0), config, 0, 0, lambda t: 0)
    assert len(found.kept) == 3
    assert [each.reason for each in found.lost] == ["gone"]
    hopeless = sample_groups(
        Told(dict.fromkeys(range(9), 0)), InitialStates(config, 0), config, 0, 0, lambda t: 0
    )
    assert not hopeless.kept
    assert hopeless.rollouts == 12


def test_an_iteration_without_useful_groups_is_skipped(toy_policy, tmp_path):
    config = settings(toy_policy, tmp_path)
    config = replace(config, rollout=replace(config.rollout, keep=(0.999, 0.999), max_rounds=1))
    run = Run(config, Toy)
    figures = run.iterate()
    assert figures["skipped_iterations"] == 1
    assert run.iteration == 1
    assert run.next_draw == 2


def test_the_learning_rate_falls_to_its_share_by_the_iteration():
    config = Rl("x", iterations=10, optimiser=RlOptimiserSettings(lr=1.0, final_lr=0.1))
    assert learning_rate(config, 0) == 1.0
    assert learning_rate(config, 5) == pytest.approx(0.55)
    assert learning_rate(config, 10) == pytest.approx(0.1)


def test_what_is_stored_survives_a_write_that_was_cut(toy_policy, tmp_path):
    from rl_toy import experience

    (first, *_) = experience(toy_policy, settings(toy_policy, tmp_path), groups=1)
    store = group_sampling.RolloutStore(tmp_path / "store")
    store.keep(first)
    assert store.find(first.job, 0) is not None
    assert store.find(first.job, 1) is None, "other weights"
    path = next((tmp_path / "store").rglob("*.npz"))
    path.write_bytes(path.read_bytes()[:200])
    assert store.find(first.job, 0) is None
    assert json.dumps(first.job)
