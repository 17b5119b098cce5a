"""One episode for the learner: the evaluation's loop and decisions, with drawn words and actions recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from dtvla.evaluation.runner import run_episode
from dtvla.policy.bundle.loading import Bundle, typical_ids
from dtvla.policy.bundle.policy_spec import PolicySpec
from dtvla.policy.decoding import Sampler
from dtvla.policy.images import pictures
from dtvla.policy.options import DecisionOptions
from dtvla.policy.policy import Decision
from dtvla.policy.prompt import load_tokenizer, prompt_ids
from dtvla.policy.token_layout import TokenLayout
from dtvla.sim.env import Observation, SimEnv
from dtvla.sim.perturbations.perturbation import Variation
from training.model.hf_checkpoint import read_config, read_spec
from training.rl.settings import RolloutSettings
from training.rl.trajectory import DecisionStep, RolloutJob, Trajectory


class RecordingSampler(Sampler):
    """Draws as `Sampler` does, and remembers how likely each draw was."""

    def begin(self, seed: Sequence[int]) -> None:
        """Another seed for the draws, from the next restart on."""
        self._seed = seed

    def restart(self) -> None:
        super().restart()
        self._log_probs: list[NDArray[np.float64]] = []
        self._columns = np.empty(0, np.int64)

    def drawn(
        self, indices: NDArray[np.int64], shifted: NDArray[np.float64], sums: NDArray[np.float64]
    ) -> None:
        self._log_probs.append(shifted[np.arange(len(indices)), indices] - np.log(sums))

    def columns(self, logits: NDArray[np.float32]) -> NDArray[np.int64]:
        self._columns = super().columns(logits)
        return self._columns

    def take(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Action columns of the last decision, and the log-probabilities of its words and columns."""
        log_probs, self._log_probs = self._log_probs, []
        return self._columns, np.concatenate([np.empty(0), *log_probs]).astype(np.float32)


Drawn = tuple[Decision, NDArray[np.int64], NDArray[np.float32]]  # a decision and what `take` says of it


class RolloutPolicy(Protocol):
    """Who decides in an episode of a job."""

    def begin(self, job: RolloutJob) -> None: ...

    def decide(self, images: dict[str, NDArray[np.uint8]], instruction: str) -> Drawn: ...


class DecisionRecorder:
    """A `Decider` that keeps what the learner needs of every decision."""

    def __init__(self, player: RolloutPolicy, job: RolloutJob, spec: PolicySpec) -> None:
        self._player, self._job, self._spec = player, job, spec
        self.instruction = ""
        self.moves: list[DecisionStep] = []

    def reset(self) -> None:
        self._player.begin(self._job)

    def decide(self, images: dict[str, NDArray[np.uint8]], instruction: str) -> Decision:
        decision, columns, log_probs = self._player.decide(images, instruction)
        self.instruction = instruction
        count = len(decision.thought_ids)
        if not self._job.greedy:
            self.moves.append(
                DecisionStep(
                    pictures(images, self._spec.cameras, self._spec.image),
                    decision.thought_ids,
                    columns.astype(np.int16),
                    log_probs[:count],
                    log_probs[count:],
                )
            )
        return decision


class EndlessEnv:
    """A world in which success does not end an episode; the step at which it came is kept."""

    def __init__(self, env: SimEnv) -> None:
        self._env = env
        self.solved_at: int | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def step(self, action: NDArray[np.floating], *, look: bool = True) -> Observation:
        obs = self._env.step(action, look=look)
        if obs.success and self.solved_at is None:
            self.solved_at = obs.step
        return replace(obs, success=False)


def play(
    env: SimEnv,
    player: RolloutPolicy,
    job: RolloutJob,
    spec: PolicySpec,
    prompt_of: Callable[[str], Any],
    settings: RolloutSettings,
) -> Trajectory:
    """Plays one episode with the loop of the evaluation.

    Args:
        env: the environment of the job's task.
        player: who decides.
        job: what to play.
        spec: of the policy.
        prompt_of: prompt ids of an instruction.
        settings: how far and how.
    """
    started = time.process_time()
    recorder = DecisionRecorder(player, job, spec)
    steps = settings.execute_steps or spec.execute_steps
    world: Any = EndlessEnv(env) if settings.play_on and not job.greedy else env
    result = run_episode(world, recorder, job.seed, steps)
    solved_at = world.solved_at if isinstance(world, EndlessEnv) else None
    return Trajectory(
        job,
        prompt_of(recorder.instruction),
        tuple(recorder.moves),
        steps,
        solved_at or result.steps,
        bool(solved_at) or result.success,
        time.process_time() - started,
    )


class RolloutEnvironments:
    """One simulator: the scene of the last task stays, since building one takes seconds."""

    def __init__(self, settings: RolloutSettings) -> None:
        self._settings = settings
        self._env: SimEnv | None = None

    def env(self, task: int, max_steps: int | None) -> SimEnv:
        """The environment of a task, with episodes of so many steps (None: the suite's own)."""
        settings = self._settings
        if self._env is None or self._env.info.index != task:
            self.close()
            variation = Variation.parse(settings.variation)
            self._env = SimEnv(settings.suite, task, image_size=settings.image_size, variation=variation)
        self._env.limit(max_steps)
        return self._env

    def close(self) -> None:
        """Frees the renderer."""
        if self._env is not None:
            self._env.close()
        self._env = None


def as_bundle(folder: Path, spec: PolicySpec, tokenizer: Tokenizer) -> Bundle:
    """A checkpoint in the form in which the runtime's policy takes it; what computes is given to it."""
    return Bundle(folder, spec, tokenizer, {}, "", typical=typical_ids(spec, tokenizer))


def prompts(spec: PolicySpec, tokenizer: Tokenizer) -> Callable[[str], NDArray[np.int64]]:
    """What makes prompt ids of an instruction."""
    return lambda text: prompt_ids(tokenizer, spec.layout, text, spec.prompt_prefix)


def frame(folder: Path) -> tuple[PolicySpec, Tokenizer]:
    """What a checkpoint is beside its weights.

    Raises:
        CheckpointError: it cannot be used.
    """
    config = read_config(folder)
    return read_spec(folder, config), load_tokenizer(folder / "tokenizer.json", config.layout)


def drawing(settings: RolloutSettings) -> DecisionOptions:
    """How rollouts decide."""
    return DecisionOptions(
        drafts=settings.drafts,
        temperature=settings.thought_temperature,
        action_temperature=settings.action_temperature,
        thought_tokens=settings.thought_tokens,
    )


def sampler(layout: TokenLayout, settings: RolloutSettings) -> RecordingSampler:
    """Who draws in rollouts."""
    return RecordingSampler(layout, settings.thought_temperature, 0, settings.action_temperature)


def draw_seed(run_seed: int, job: RolloutJob) -> tuple[int, ...]:
    """The seed of an episode's draws."""
    return (run_seed, job.draw, job.task, job.seed, job.member)
