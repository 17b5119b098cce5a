"""Two processes with FSDP2 learn what one learns, and one goes on from their checkpoint."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rl_sharded import update_config, updated
from rl_toy import Toy, experience, settings
from safetensors.torch import load_file

from training.rl.loop import Run
from training.rl.trajectory import save

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def together(toy_policy, tmp_path_factory):
    """What two processes made of three groups: shares of different size."""
    out = tmp_path_factory.mktemp("sharded")
    rollouts = experience(toy_policy, settings(toy_policy, out), groups=3)
    save(out / "rollouts.npz", rollouts)
    paths = [
        str(HERE.parents[1]),
        str(HERE.parents[1] / "ros2_ws/src/dtvla"),
        os.environ.get("PYTHONPATH", ""),
    ]
    command = [
        sys.executable,
        str(HERE / "rl_sharded.py"),
        *map(str, (toy_policy, out / "rollouts.npz", out)),
    ]
    with socket.socket() as free:  # what torchrun does, without a third process that imports torch
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(command, env=common | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)[-3000:]
    return out, rollouts


def test_two_processes_learn_what_one_learns(together, toy_policy):
    out, rollouts = together
    learner, alone = updated(toy_policy, rollouts, update_config(toy_policy, out))
    figures = torch.load(out / "figures.pt", weights_only=False)["figures"]
    for name, value in alone.items():
        assert figures[name] == pytest.approx(value, abs=1e-5), name
    weights = load_file(out / "updated.safetensors")
    before = learner.reference.model.state_dict()
    for name, tensor in learner.scorer.model.state_dict().items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-5, rtol=0)
    assert any((weights[name] - before[name]).abs().max() > 1e-3 for name in before)


def test_one_process_goes_on_from_the_checkpoint_of_two(together, toy_policy):
    out, _ = together
    run = Run(settings(toy_policy, out / "run"), Toy)
    assert run.iteration == 1
    assert run.next_draw == 2
    for name, tensor in load_file(out / "last.safetensors").items():
        assert torch.equal(run.model.state_dict()[name], tensor)
    moments = run.learner.optimiser.state_dict()["state"]
    assert moments
    assert all(state["step"] == 1 for state in moments.values())
