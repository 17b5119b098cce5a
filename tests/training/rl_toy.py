"""A world without physics for the learner's tests: an episode is won when most actions fall into low columns.

Everything else is real: the policy, its drawn thoughts, the recording, the trajectories.
"""

import json
from dataclasses import replace

import numpy as np
import torch

from model_export.sample import byte_tokenizer, random_config, random_model, random_spec
from training.model.hf_checkpoint import save_model
from training.rl.rollouts import DecisionRecorder, prompts
from training.rl.settings import EvaluationSettings, Rl, RlOptimiserSettings, RolloutSettings
from training.rl.trajectory import Trajectory
from training.rl.workers import LocalRolloutPolicy, RolloutWork

TASKS = ("pick up the can", "go", "open the top drawer of the cabinet")
DECISIONS = 2
STEPS = 5  # executed of each chunk; an episode ends within its second one
FINISH = 8


def write_checkpoint(folder, thought_cap=12, seed=0):
    """A tiny random policy that often ends its thoughts by itself."""
    tokenizer = byte_tokenizer()
    model = random_model(random_config(tokenizer), seed)
    layout = model.config.layout
    with torch.no_grad():
        embedding = model.decoder.embed_tokens.weight
        direction = embedding[layout.end_think].clone()
        embedding[layout.action] = direction * 4
        embedding[layout.end_think] = direction * 4
    save_model(model, folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    spec = random_spec(layout, model.config.vision.image_size, thought_cap)
    (folder / "policy.json").write_text(json.dumps(spec.to_json()))
    return folder


def looks(job):
    rng = np.random.default_rng((job.task, job.seed))
    for _ in range(DECISIONS):
        yield {name: rng.integers(0, 256, (40, 40, 3), np.uint8) for name in ("agentview", "wrist")}


class Toy:
    """`Rollouts` in this process."""

    def __init__(self, work: RolloutWork):
        self.player = LocalRolloutPolicy(work)
        self.version = 0
        self.played = []
        self.prompt_of = prompts(self.player.spec, self.player.tokenizer)

    def sync(self, weights):
        self.player.load(weights.file)
        self.version = weights.version

    def play(self, jobs):
        for job in jobs:
            yield self.one(job)

    def one(self, job):
        spec = self.player.spec
        recorder = DecisionRecorder(self.player, job, spec)
        recorder.reset()
        for images in looks(job):
            decision = recorder.decide(images, TASKS[job.task])
        self.played.append(job)
        values = decision.raw_actions if job.greedy else np.array([move.columns for move in recorder.moves])
        low = float(np.mean(values > 0)) if job.greedy else low_share(recorder.moves, spec.layout.bins)
        return Trajectory(
            job,
            self.prompt_of(TASKS[job.task]),
            tuple(recorder.moves),
            STEPS,
            FINISH,
            low > 0.5,
            0.0,
            self.version,
        )

    def close(self):
        pass


def low_share(moves, bins):
    """Of executed actions: those in the lower half of the columns."""
    executed = np.concatenate([move.columns[: 7 * STEPS] for move in moves])[: 7 * FINISH]
    return float(np.mean(executed < bins // 2))


def settings(folder, out, **changes):
    base = Rl(
        str(folder),
        out,
        iterations=2,
        rollout=RolloutSettings(
            tasks=(0, 1, 2), first_seed=0, seeds=4, prompts=2, group=4, keep=(0.0, 1.0), thought_tokens=12
        ),
        optimiser=RlOptimiserSettings(lr=1e-3, epochs=1, mini_batch=8, micro_batch=3),
        evaluation=EvaluationSettings(every=0, episodes=2),
    )
    return replace(base, **changes)


def experience(folder, config, seed=0, groups=2):
    """Trajectories as a run's first iteration has them."""
    from training.rl.group_sampling import InitialStates

    toy = Toy(RolloutWork(folder, config.rollout, config.evaluation, seed))
    stream = InitialStates(config.rollout, seed)
    jobs = [job for draw in range(groups) for job in stream.group(draw, config.rollout.group)]
    return list(toy.play(jobs))
