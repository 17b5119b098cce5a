"""The learner against the rollout's own numbers, its masks, and whether it learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from rl_toy import experience, low_share, settings

from training.model import sequence_forward
from training.model.hf_checkpoint import load_policy
from training.rl.decisions import Decisions
from training.rl.learner import GrpoLearner, Scorer
from training.rl.loop import Run, prepared
from training.rl.settings import FaultSettings, LossSettings, RlOptimiserSettings
from training.rl.trajectory import load, save


def make(folder, config, reference=False, descent=False):
    """A learner; with `descent` its updates are the gradient, as Adam's first ones are its sign alone."""
    policy = load_policy(folder)
    scorer = Scorer(prepared(policy.model, config), config.rollout, config.optimiser)
    parameters = [p for p in scorer.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(parameters, 0.1) if descent else torch.optim.AdamW(parameters, 1e-3)
    other = Scorer(load_policy(folder).model, config.rollout, config.optimiser) if reference else None
    spec = policy.spec
    return GrpoLearner(
        scorer, optimiser, spec.layout, spec.image, config.loss, config.optimiser, config.rollout, other
    )


@pytest.fixture(scope="module")
def config(toy_policy, tmp_path_factory):
    return settings(toy_policy, tmp_path_factory.mktemp("out"))


@pytest.fixture(scope="module")
def played(toy_policy, config):
    """Two groups, with thoughts of several lengths; some ended by themselves, some cut by the cap."""
    return experience(toy_policy, config)


@pytest.fixture(scope="module")
def decisions(played, toy_policy):
    spec = load_policy(toy_policy).spec
    return Decisions(played, spec.layout, spec.image)


def test_the_experience_has_what_the_tests_are_about(decisions, toy_policy):
    layout = load_policy(toy_policy).spec.layout
    lengths = {len(move.thought) for move in decisions.moves}
    ended = [len(move.closed(layout)) == len(move.thought) for move in decisions.moves]
    assert len(lengths) > 2
    assert any(ended) and not all(ended)  # noqa: PT018 - one fact


@pytest.mark.parametrize("drafts", [True, False])
def test_the_first_ratio_is_one_for_every_token(toy_policy, config, drafts):
    """Ragged thoughts in padded batches, cut thoughts, drafts: the rollout's logits against one pass."""
    changed = replace(config, rollout=replace(config.rollout, drafts=drafts))
    learner = make(toy_policy, changed)
    spec = load_policy(toy_policy).spec
    own = Decisions(experience(toy_policy, changed), spec.layout, spec.image)
    found, entropy = learner.log_probs(own)
    mask = own.mask()
    assert mask.sum() > 500
    assert ((found - own.log_probs()).exp() - 1).abs()[mask].max() < 1e-4
    assert (entropy[mask] >= 0).all()


def test_visible_pads_make_another_policy_of_it(toy_policy, config, decisions):
    faults = replace(config, loss=replace(config.loss, faults=FaultSettings(visible_pads=True)))
    learner = make(toy_policy, faults)
    learner.scorer._pads = True
    found, _ = learner.log_probs(decisions)
    off = ((found - decisions.log_probs()).exp() - 1).abs()[decisions.mask()]
    assert off.max() > 0.01


def test_only_what_was_drawn_and_executed_is_masked_in(decisions, toy_policy):
    layout = load_policy(toy_policy).spec.layout
    mask = decisions.mask()
    for i, move in enumerate(decisions.moves):
        assert mask[i, : decisions.longest].sum() == len(move.thought), "no tag that the cap has put"
        steps = 5 if decisions.number[i] == 0 else 3  # of 8, five are executed of each chunk
        actions = mask[i, decisions.longest :].view(layout.horizon, layout.action_dim)
        assert actions[:steps].all()
        assert not actions[steps:].any()


def test_a_thought_after_the_end_counts_only_on_request(played, decisions):
    early = [replace(t, finish_step=5) for t in played]
    spec = decisions._layout, decisions._image
    mended, before = Decisions(early, *spec).mask(), Decisions(early, *spec).mask(after_end=True)
    second = decisions.number == 1
    assert not mended[second].any()
    assert before[second, 0].all()
    assert not before[second, decisions.longest :].any()
    assert (mended[~second] == before[~second]).all()


def test_gradients_do_not_reach_what_is_masked_out(toy_policy, config, decisions):
    learner = make(toy_policy, config)
    index = list(range(4))
    log_prob, entropy = learner._score(learner.scorer, decisions, index)
    log_prob = log_prob.detach().requires_grad_()
    mask = decisions.mask()[index]
    width = log_prob.shape[1]
    mask = torch.cat([mask[:, : width - 70], mask[:, -70:]], 1)
    loss, _ = learner._loss_of(
        log_prob, entropy.detach(), log_prob.detach() - 0.1, None, torch.ones(4, 1), mask, torch.ones(4, 1)
    )
    (gradient,) = torch.autograd.grad(loss, log_prob)
    assert (gradient[~mask] == 0).all()
    assert (gradient[mask] != 0).all()


@pytest.mark.parametrize("mode", ["token_mean", "seq_mean_token_mean"])
def test_micro_batches_of_any_size_give_the_same_update(toy_policy, config, played, mode):
    found = []
    for size in (1, 5, 16):
        changed = replace(
            config,
            loss=replace(config.loss, aggregation=mode, kl_coef=0.1),
            optimiser=replace(config.optimiser, micro_batch=size, head_rows=7 if size == 5 else 1000),
        )
        learner = make(toy_policy, changed, reference=True, descent=True)
        learner.update(played, (0, 0, 0))
        found.append(torch.cat([p.detach().flatten() for p in learner.scorer.parameters()]))
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=0)
    torch.testing.assert_close(found[0], found[2], atol=1e-6, rtol=0)


def test_a_gradient_that_is_not_finite_changes_nothing(toy_policy, config, played):
    learner = make(toy_policy, config)
    before = [p.detach().clone() for p in learner.scorer.parameters()]
    broken = [
        replace(t, moves=tuple(replace(m, action_log_probs=m.action_log_probs * np.nan) for m in t.moves))
        for t in played
    ]
    figures = learner.update(broken, (0, 0, 0))
    assert figures["skipped_updates"] == 1
    assert all(torch.equal(a, b) for a, b in zip(before, learner.scorer.parameters(), strict=True))


def test_frozen_parts_stay_as_they_are(toy_policy, config, played):
    frozen = replace(config, optimiser=replace(config.optimiser, train_vision=False, train_projector=False))
    learner = make(toy_policy, frozen)
    before = {name: p.detach().clone() for name, p in learner.scorer.named_parameters()}
    learner.update(played, (0, 0, 0))
    changed = {n for n, p in learner.scorer.named_parameters() if not torch.equal(before[n], p)}
    assert changed
    assert all("language_model" in name for name in changed)


def test_layers_that_forget_their_activations_give_the_same_update(toy_policy, config, played):
    found = []
    for recompute in (False, True):
        changed = replace(config, optimiser=replace(config.optimiser, recompute=recompute))
        learner = make(toy_policy, changed, descent=True)
        learner.update(played, (0, 0, 0))
        found.append(torch.cat([p.detach().flatten() for p in learner.scorer.parameters()]))
    torch.testing.assert_close(*found, atol=1e-6, rtol=0)


def test_a_penalty_keeps_the_policy_near_the_one_it_began_with(toy_policy, config, played):
    moved = []
    for coefficient in (0.0, 100.0):
        changed = replace(
            config,
            loss=LossSettings(kl_coef=coefficient, aggregation="token_mean"),
            optimiser=replace(config.optimiser, epochs=5),
        )
        learner = make(toy_policy, changed, reference=coefficient > 0)
        own = Decisions(played, learner._layout, learner._image)
        before = learner.log_probs(own)[0]
        learner.update(played, (0, 0, 0))
        moved.append((learner.log_probs(own)[0] - before)[own.mask()].abs().mean())
    assert moved[1] < 0.6 * moved[0]


def test_learning_raises_the_reward(toy_policy, tmp_path):
    """A rule says what is good: low columns. The share of them must rise by itself, in few iterations."""
    from rl_toy import Toy

    config = settings(toy_policy, tmp_path, iterations=8, keep_rollouts=False)
    config = replace(
        config,
        loss=LossSettings(aggregation="token_mean", format_coef=0.0),
        rollout=replace(config.rollout, prompts=3, group=6, tasks=(1,), seeds=2, thought_tokens=4),
        optimiser=RlOptimiserSettings(lr=6e-3, epochs=1, mini_batch=18, micro_batch=36),
    )
    run = Run(config, Toy)
    shares = []
    for _ in range(config.iterations):
        seen = []
        toy = run.rollouts
        original = toy.one
        toy.one = lambda job, original=original, seen=seen: (seen.append(original(job)), seen[-1])[1]
        figures = run.iterate()
        toy.one = original
        assert figures["ratio_error_at_start"] < 1e-4
        shares.append(np.mean([low_share(t.moves, run.policy.spec.layout.bins) for t in seen]))
    assert np.mean(shares[-2:]) > shares[0] + 0.1, shares


def test_trajectories_come_back_from_disk_as_they_were(played, tmp_path):
    save(tmp_path / "some.npz", played)
    for before, after in zip(played, load(tmp_path / "some.npz"), strict=True):
        assert before.job == after.job
        assert (before.finish_step, before.success) == (after.finish_step, after.success)
        np.testing.assert_array_equal(before.prompt, after.prompt)
        for a, b in zip(before.moves, after.moves, strict=True):
            for name in ("pixels", "thought", "columns", "thought_log_probs", "action_log_probs"):
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    (tmp_path / "bad.npz").write_bytes(b"no rollouts")
    with pytest.raises(ValueError, match=r"bad\.npz holds no rollouts"):
        load(tmp_path / "bad.npz")


def test_a_model_in_bf16_gives_finite_scores(toy_policy, config, decisions):
    learner = make(toy_policy, config)
    learner.scorer.bfloat16()
    found, entropy = learner.log_probs(decisions)
    assert torch.isfinite(found).all()
    assert torch.isfinite(entropy).all()
    assert sequence_forward  # the same functions as the golden check's
