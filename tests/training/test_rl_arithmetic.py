"""GRPO's weights, scores and advantages, and what each mended fault of the reference changes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.rl import grpo

MODES = ["token_mean", "seq_mean_token_sum", "seq_mean_token_mean", "seq_mean_token_sum_norm"]


def random_tokens(seed, trajectories=3, decisions=5, tokens=6):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(trajectories, decisions * tokens, generator=generator)
    mask = torch.rand(trajectories, decisions * tokens, generator=generator) < 0.7
    mask[:, 0] = True
    counts = mask.view(trajectories, decisions, tokens).sum(-1).float()
    return values, mask, counts


def weighted(values, mask, weights):
    decisions = weights.shape[1]
    return (values * mask).view(len(values), decisions, -1).sum(-1).double().mul(weights).sum()


@pytest.mark.parametrize("mode", MODES)
def test_weights_of_tokens_sum_to_what_the_aggregation_gives(mode):
    values, mask, counts = random_tokens(1)
    weights = grpo.token_weights(counts, mode, trajectories=3, tokens=int(mask.sum()), longest=mask.shape[1])
    expected = grpo.aggregate(values, mask, mode)
    torch.testing.assert_close(weighted(values, mask, weights).float(), expected)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 999), size=st.integers(1, 6))
def test_weights_by_slices_are_the_references(seed, size):
    values, mask, counts = random_tokens(seed)
    weights = grpo.token_weights(
        counts, "seq_mean_token_sum", trajectories=3, tokens=1, longest=1, slice_steps=size
    )
    expected = grpo.sliced_trajectory_losses(values, mask, steps=5, slice_steps=size).mean()
    torch.testing.assert_close(weighted(values, mask, weights).float(), expected)


def test_parts_on_two_processes_weigh_as_the_whole():
    values, mask, counts = random_tokens(2, trajectories=4)
    totals = {"trajectories": 4, "tokens": int(mask.sum()), "longest": mask.shape[1]}
    for mode in MODES:
        whole = weighted(values, mask, grpo.token_weights(counts, mode, **totals))
        halves = [
            weighted(values[part], mask[part], grpo.token_weights(counts[part], mode, **totals))
            for part in (slice(0, 2), slice(2, 4))
        ]
        torch.testing.assert_close(halves[0] + halves[1], whole)


def test_the_thought_after_the_end_is_mended_and_nothing_else():
    finish = torch.tensor([10, 11, 20])
    actions, thoughts = grpo.trajectory_masks(finish, steps=3, horizon=10)
    assert thoughts.tolist() == [[True, False, False], [True, True, False], [True, True, False]]
    as_it_was, before = grpo.trajectory_masks(finish, steps=3, horizon=10, after_end=True)
    assert (actions == as_it_was).all()
    assert (before != thoughts).sum() == 2, "those whose end is a multiple of the horizon"


def test_thoughts_after_the_end_earn_nothing():
    format_ok = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    inside = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    assert grpo.trajectory_scores(torch.ones(1), format_ok, inside, 1.0, 0.4) == pytest.approx(1.4)
    assert grpo.trajectory_scores(torch.ones(1), format_ok, None, 1.0, 0.4) == pytest.approx(1.1)


def test_scores_of_trajectories_are_the_references_sums_over_tokens():
    success, format_ok = torch.tensor([1.0, 0.0]), torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    tokens = grpo.token_scores(success, format_ok, 5, 70, 1.0, 0.4).sum(1)
    torch.testing.assert_close(grpo.trajectory_scores(success, format_ok, None, 1.0, 0.4), tokens)


def test_what_is_alone_in_its_group_teaches_nothing():
    scores, group = torch.tensor([1.0, 0.0, 5.0]), torch.tensor([0, 0, 1])
    mended = grpo.advantages(scores, group)
    before = grpo.advantages(scores, group, lone_score=True)
    assert mended[2] == 0
    assert before[2] == pytest.approx(5.0, rel=1e-3)
    assert (mended[:2] == before[:2]).all()


def test_a_group_of_equal_scores_teaches_nothing():
    assert grpo.advantages(torch.full((4,), 0.3), torch.zeros(4)).abs().max() < 1e-3
