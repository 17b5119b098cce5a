"""The learning rate's way over a run, which both trainers take."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.common.schedules import cosine_share
from training.rl.loop import learning_rate
from training.rl.settings import Rl
from training.sft.optimisers import factor
from training.sft.settings import OptimiserSettings

shares = st.floats(0, 1)
steps = st.integers(0, 2000)


def test_it_warms_up_evenly_and_ends_where_it_should() -> None:
    found = [cosine_share(step, 20, 4, 0.1) for step in (0, 2, 4, 12, 20, 99)]
    assert found == pytest.approx([0.2, 0.6, 1.0, 0.55, 0.1, 0.1])


@given(step=steps, length=st.integers(1, 2000), warmup=st.integers(0, 100), share=shares)
def test_it_stays_between_its_ends(step: int, length: int, warmup: int, share: float) -> None:
    lowest = min(share, 1 / (warmup + 1))
    assert lowest - 1e-12 <= cosine_share(step, length, warmup, share) <= 1 + 1e-12


@given(step=steps, length=st.integers(1, 2000), share=shares, lr=st.floats(1e-8, 1))
def test_reinforcement_learning_has_the_bits_it_had(step: int, length: int, share: float, lr: float) -> None:
    settings = Rl("a checkpoint")
    optimiser = replace(settings.optimiser, lr=lr, final_lr=share)
    progress = min(1.0, step / length)
    expected = lr * (share + (1 - share) * 0.5 * (1 + math.cos(math.pi * progress)))
    assert learning_rate(replace(settings, iterations=length, optimiser=optimiser), step) == expected


def test_fine_tuning_has_the_bits_it_had() -> None:
    """Written down before both trainers had one function."""
    settings = OptimiserSettings("adamw", warmup=7, final_share=0.03)
    assert [factor(settings, step, 61).hex() for step in (0, 7, 20, 60, 61)] == [
        "0x1.0000000000000p-3",
        "0x1.0000000000000p+0",
        "0x1.bc4d2a0955331p-1",
        "0x1.f8f6ba50420f5p-6",
        "0x1.eb851eb851eb8p-6",
    ]
