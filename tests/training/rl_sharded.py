"""One of the processes of test_rl_sharded: python rl_sharded.py POLICY ROLLOUTS OUT, under torchrun."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from rl_toy import Toy, settings
from safetensors.torch import save_file

from training.common import parallel
from training.common.run_checkpoints import full_weights
from training.model.hf_checkpoint import load_policy
from training.rl.learner import GrpoLearner, Scorer
from training.rl.loop import Run
from training.rl.trajectory import load


def updated(folder, rollouts, config):
    """The learner after one update with its share of the groups, and the figures."""
    policy = load_policy(folder)
    scorers = []
    for model in (policy.model, load_policy(folder).model):
        scorer = Scorer(model, config.rollout, config.optimiser)
        parallel.shard(scorer, model, torch.float32)
        scorers.append(scorer)
    optimiser = torch.optim.SGD(scorers[0].parameters(), 0.1)
    spec = policy.spec
    learner = GrpoLearner(
        scorers[0],
        optimiser,
        spec.layout,
        spec.image,
        config.loss,
        config.optimiser,
        config.rollout,
        scorers[1],
    )
    own = [t for t in rollouts if t.job.draw % parallel.world() == parallel.rank()]
    return learner, learner.update(own, (0, 0, 0))


def update_config(folder, out):
    """Two epochs, each one update over everything."""
    config = settings(folder, out)
    return replace(
        config,
        loss=replace(config.loss, aggregation="token_mean", kl_coef=0.1),
        optimiser=replace(config.optimiser, epochs=2, mini_batch=64),
    )


def main(folder, rollouts, out):
    torch.set_num_threads(1)
    parallel.begin("cpu")
    learner, figures = updated(folder, load(rollouts), update_config(folder, out))
    weights = full_weights(learner.scorer.model)
    run = Run(settings(folder, out / "run"), Toy)
    run.iterate()
    saved = run.save()
    last = full_weights(run.model)
    if parallel.rank() == 0:
        save_file(weights, out / "updated.safetensors")
        save_file(last, out / "last.safetensors")
        torch.save({"figures": figures, "saved": str(saved)}, out / "figures.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
