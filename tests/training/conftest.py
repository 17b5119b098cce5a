"""Fixtures of the reinforcement learning tests."""

import pytest
import torch


@pytest.fixture(scope="session")
def toy_policy(tmp_path_factory):
    """The folder of a tiny random checkpoint. Never change it: copy it."""
    from rl_toy import write_checkpoint

    torch.set_num_threads(1)
    return write_checkpoint(tmp_path_factory.mktemp("rl") / "policy")
