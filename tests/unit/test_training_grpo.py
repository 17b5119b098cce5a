"""GRPO's arithmetic on cases a person can follow (the golden data has the rest)."""

import pytest
import torch

from training.rl import grpo


def test_scores_of_a_trajectory_sum_to_success_plus_share_of_good_formats():
    scores = grpo.token_scores(
        torch.tensor([1.0, 0.0]), torch.tensor([[1.0, 0.0], [1.0, 1.0]]), 3, 70, 1.0, 0.4
    )
    torch.testing.assert_close(scores.sum(1), torch.tensor([1.2, 0.4]))


def test_a_thought_after_the_end_counts_when_the_end_is_a_multiple_of_the_horizon():
    """Quirk of the reference, on request (tests/training/test_rl_arithmetic.py has the mended form)."""
    finish = torch.tensor([10, 11])
    actions, thoughts = grpo.trajectory_masks(finish, steps=3, horizon=10, after_end=True)
    assert actions.sum(1).tolist() == [10, 11]
    assert thoughts.tolist() == [[True, True, False], [True, True, False]]


def test_advantages_of_a_group_are_centred_and_scaled():
    scores = torch.tensor([[1.0], [0.0], [1.0], [0.0], [5.0]])
    mask = torch.ones(5, 1, dtype=torch.bool)
    group = torch.tensor([0, 0, 0, 0, 1])
    found = grpo.group_advantages(scores, mask, group, lone_score=True)[:, 0]
    torch.testing.assert_close(found[:4].sum(), torch.tensor(0.0))
    assert found[0] == pytest.approx(0.5 / 0.57735, rel=1e-3)
    assert found[4] == pytest.approx(5.0, rel=1e-3)  # alone: mean 0, std 1


def test_the_dual_clip_bounds_the_loss_of_bad_actions():
    old, advantages = torch.zeros(1, 1), torch.tensor([[-2.0]])
    mask = torch.ones(1, 1)
    loss = grpo.policy_loss(old, torch.tensor([[5.0]]), advantages, mask)
    assert loss.per_token.item() == pytest.approx(6.0)  # -3 A, not -A e^5
    assert loss.dual_clip_fraction == 1.0


def test_a_good_action_is_not_pushed_beyond_the_upper_clip():
    loss = grpo.policy_loss(
        torch.zeros(1, 1), torch.tensor([[1.0]], requires_grad=True), torch.ones(1, 1), torch.ones(1, 1)
    )
    assert loss.per_token.item() == pytest.approx(-1.28)


@pytest.mark.parametrize("kind", ["kl", "abs", "mse", "low_var_kl"])
def test_every_estimate_is_zero_for_equal_policies(kind):
    assert grpo.kl_penalty(torch.ones(2, 3), torch.ones(2, 3), kind).abs().max() == 0


def test_a_trajectory_in_one_slice_is_the_plain_sum():
    losses, mask = torch.rand(2, 8), torch.tensor([[1.0] * 8, [1.0] * 4 + [0.0] * 4])
    whole = grpo.sliced_trajectory_losses(losses, mask, steps=4, slice_steps=4)
    torch.testing.assert_close(whole, (losses * mask).sum(1))
