"""Settings of `python -m training.rl`; defaults are the reference's where it has one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dtvla.sim.perturbations.perturbation import Variation
from training.rl.grpo import Aggregation, KlKind


@dataclass(frozen=True)
class RolloutSettings:
    """How experience is gathered. A prompt is one (task, seed): the same first state for its whole group."""

    suite: str = "embedded"
    tasks: tuple[int, ...] = ()  # empty: all of the suite
    variation: str = (
        ""  # how the world differs, also in the evaluation: light:2 (`dtvla.sim.perturbations.perturbation`)
    )
    first_seed: int = 0  # of each task; in LIBERO's suites seeds are the fixed initial states
    seeds: int = 50  # per task
    prompts: int = 64  # groups of an iteration, over all processes
    group: int = 8  # rollouts of a prompt
    keep: tuple[float, float] = (0.1, 0.9)  # mean success of groups that can teach something
    max_rounds: int = 10  # times so many prompts are tried until enough groups are kept
    thought_temperature: float = 1.0
    action_temperature: float = 1.6
    thought_tokens: int = 300
    execute_steps: int | None = None  # rows of a chunk that are executed; None takes the policy's
    max_steps: int | None = None  # of an episode; None takes the suite's
    image_size: int = 128  # of the cameras, in pixels
    drafts: bool = True  # take the last thought as draft of the next one: faster, the same words
    workers: int = 2  # simulators of each process
    episode_timeout_s: float = 600.0
    retries: int = 1  # of an episode whose worker died or was stuck
    ray: str = ""  # address of a Ray cluster, or `local`; empty: processes of this machine
    servers: int = 1  # policy servers on Ray, which decide for several simulators at once
    device: Literal["cpu", "cuda"] = "cpu"  # of the policy in servers; workers without Ray use the CPU
    server_gpus: float = 1.0  # of a server whose device is cuda, as Ray counts them
    play_on: bool = False  # to the step limit, also after success, as the reference does

    def __post_init__(self) -> None:
        Variation.parse(self.variation)
        _positive(self, "seeds", "prompts", "max_rounds", "thought_tokens", "workers", "servers")
        if self.device != "cpu" and not self.ray:
            raise ValueError(
                "Workers of this machine decide on the CPU; for a GPU set rollout.ray = 'local'."
            )
        if self.group < 2:
            raise ValueError(f"group is {self.group}; an advantage compares at least 2 rollouts.")
        if not 0 <= self.keep[0] <= self.keep[1] <= 1:
            raise ValueError(f"keep is {list(self.keep)}; it holds the lowest and the highest mean success.")
        if self.thought_temperature <= 0 or self.action_temperature <= 0:
            raise ValueError(
                "Temperatures of rollouts must be above 0: greedy rollouts of a group are alike."
            )


@dataclass(frozen=True)
class FaultSettings:
    """What the reference does wrong, to be compared with. All are mended by default."""

    visible_pads: bool = False  # log-probabilities are those of a policy that sees its padding
    thought_after_end: bool = False  # counts when the end is a multiple of the horizon; needs play_on
    unmasked_scores: bool = False  # formats after the end count in the score; needs play_on
    sliced_weights: int | None = None  # decisions of a slice whose sum is weighed by its share of tokens
    lone_score: bool = False  # what is alone in its group has its score as advantage


@dataclass(frozen=True)
class LossSettings:
    """What is optimised."""

    acc_coef: float = 1.0  # reward of success
    format_coef: float = 0.4  # reward of well-formed thoughts
    scale_advantages: bool = True  # divide by the group's standard deviation
    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float = 3.0
    aggregation: Aggregation = "seq_mean_token_sum"
    kl_coef: float = 0.0  # penalty for leaving the policy that the run began with
    kl_kind: KlKind = "low_var_kl"
    entropy_coef: float = 0.0
    recompute_old: bool = False  # old log-probabilities from the learner's arithmetic, not the rollout's
    faults: FaultSettings = field(default_factory=FaultSettings)


@dataclass(frozen=True)
class RlOptimiserSettings:
    """How the loss is optimised."""

    lr: float = 2e-6
    final_lr: float = 0.1  # share of `lr` at the end of the cosine; one step of it per iteration
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    clip: float = 1.0  # norm of the gradient
    epochs: int = 2  # over the rollouts of an iteration
    mini_batch: int = 128  # rollouts of one update, over all processes
    micro_batch: int = 8  # decisions of one pass
    head_rows: int = 1024  # rows of one product with the vocabulary
    train_vision: bool = True
    train_projector: bool = True
    precision: Literal["fp32", "bf16"] = "fp32"
    recompute: bool = False  # activations of layers: less memory, one more pass
    onednn: bool = False  # multiply float32 matrices by oneDNN on a CPU (`training.model.onednn`)

    def __post_init__(self) -> None:
        _positive(self, "epochs", "mini_batch", "micro_batch", "head_rows")


@dataclass(frozen=True)
class EvaluationSettings:
    """Greedy episodes with the code of `dtvla eval`."""

    every: int = 4  # iterations; 0: never
    episodes: int = 60
    first_seed: int = 10_000
    max_steps: int | None = None

    def __post_init__(self) -> None:
        _positive(self, "episodes")


@dataclass(frozen=True)
class Rl:
    """A run of reinforcement learning; the same command resumes it."""

    checkpoint: str  # what it begins with: a folder, or a hub id owner/name
    out: Path = Path("runs/rl/run")
    iterations: int = 700
    stop_after: int | None = None  # end at that iteration; the schedule still aims at `iterations`
    seed: int = 429
    threads: int = 1  # of the learner's arithmetic
    device: Literal["cpu", "cuda"] = "cpu"  # of the learner
    save_every: int = 1
    keep: int = 2  # newest checkpoints that stay; the best stays too
    keep_rollouts: bool = True  # of the running iteration, so that a killed one need not begin anew
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    optimiser: RlOptimiserSettings = field(default_factory=RlOptimiserSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)

    def __post_init__(self) -> None:
        _positive(self, "iterations", "threads", "save_every", "keep")
        faults = self.loss.faults
        if (faults.thought_after_end or faults.unmasked_scores) and not self.rollout.play_on:
            raise ValueError(
                "Faults after the end of an episode need rollout.play_on, as there is none else."
            )


# What may differ from the run that a checkpoint is of: how the work is done, not what comes of it.
_FREE = (
    "out", "stop_after", "threads", "device", "save_every", "keep", "keep_rollouts", "evaluation",
    "rollout.workers", "rollout.episode_timeout_s", "rollout.retries", "rollout.ray", "rollout.servers",
    "rollout.device", "rollout.server_gpus", "optimiser.micro_batch", "optimiser.head_rows",
    "optimiser.recompute", "optimiser.onednn",
)  # fmt: skip


def essence(settings: Rl) -> dict[str, Any]:
    """The settings that decide what a run computes, by dotted name."""
    flat: dict[str, Any] = {}

    def walk(value: Any, name: str) -> None:
        if name in _FREE:
            return
        if dataclasses.is_dataclass(value):
            for each in dataclasses.fields(value):
                walk(getattr(value, each.name), f"{name}.{each.name}" if name else each.name)
        else:
            flat[name] = list(value) if isinstance(value, tuple) else value

    walk(settings, "")
    return flat


def _positive(settings: Any, *names: str) -> None:
    for name in names:
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} is {getattr(settings, name)}; it must be 1 or more.")
