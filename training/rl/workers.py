"""Rollouts on this machine: processes with one simulator and one policy each, which stay between iterations.

Each worker decides for itself, with one thread of the runtime that evaluates too: nobody waits for anybody,
an episode is the same whoever plays it and whatever else runs (a batch's arithmetic depends on who shares
it, in the last bits), and a worker that dies takes one episode with it. Batched servers pay where a pass
waits for the weights, on a GPU: `training.rl.ray_rollouts`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors.torch import load_file

from dtvla.evaluation.work_queue import MOST_DEATHS, WorkQueue
from dtvla.evaluation.worker_pool import READY, WorkerDied, WorkerPool, WorkerProcess
from dtvla.policy.backends.onnxruntime import OnnxRuntimeBackend
from dtvla.policy.backends.protocol import Backend
from dtvla.policy.policy import Policy
from training.common.exported_graphs import Graphs
from training.common.run_checkpoints import TrainingError
from training.model.deepthinkvla import DeepThinkVLA
from training.model.hf_checkpoint import load_policy
from training.model.kv_cache_decoder import TorchBackend
from training.rl import rollouts
from training.rl.settings import EvaluationSettings, RolloutSettings
from training.rl.trajectory import RolloutJob, Trajectory

START_TIMEOUT_S = 600.0  # imports and a large checkpoint, before an episode's own time begins


@dataclass(frozen=True)
class Weights:
    """Where the weights of a version lie; version 0 is the checkpoint itself."""

    file: Path | None = None  # of tensors; for a worker with graphs, the folder of those
    version: int = 0


@dataclass(frozen=True)
class Lost:
    """An episode that could not be played to its end, and why."""

    job: RolloutJob
    reason: str


@dataclass(frozen=True)
class RolloutWork:
    """What a worker must know to play."""

    folder: Path  # of the checkpoint
    rollout: RolloutSettings
    evaluation: EvaluationSettings
    seed: int  # of the run
    precision: Literal["fp32", "bf16"] = "fp32"  # of the policy
    graphs: Path | None = None  # of the checkpoint, for ONNX Runtime; None decides in torch

    @property
    def dtype(self) -> torch.dtype:
        """The same as torch's."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32


class Rollouts(Protocol):
    """Plays episodes, here or elsewhere."""

    def sync(self, weights: Weights) -> None:
        """From now on episodes are decided with these weights."""
        ...

    def play(self, jobs: Sequence[RolloutJob]) -> Iterator[Trajectory | Lost]:
        """Plays all jobs; yields them as they end.

        Raises:
            TrainingError: none can be played.
        """
        ...

    def close(self) -> None:
        """Ends all workers."""
        ...


class LocalRolloutPolicy:
    """Decides in this process, as one robot does.

    Args:
        work: the run.
    """

    def __init__(self, work: RolloutWork) -> None:
        self.spec, self.tokenizer = rollouts.frame(work.folder)
        self._seed = work.seed
        self._model: DeepThinkVLA | None = None
        backend: Backend
        if work.graphs is None:
            self._model = load_policy(work.folder, work.dtype).model
            backend = TorchBackend(self._model, self.spec.cache_length)
        else:
            backend = self._opened(work.graphs)
        bundle = rollouts.as_bundle(work.folder, self.spec, self.tokenizer)
        self._sampler = rollouts.sampler(self.spec.layout, work.rollout)
        self._drawing = Policy(bundle, backend, rollouts.drawing(work.rollout), self._sampler)
        self._greedy = Policy(bundle, backend)
        self._policy = self._drawing

    def load(self, weights: Path) -> None:
        """Takes other weights (see `Weights.file`)."""
        if self._model is not None:
            self._model.load_state_dict(load_file(weights))
            return
        backend = self._opened(weights)
        for policy in (self._drawing, self._greedy):
            policy.backend = backend

    def _opened(self, graphs: Path) -> OnnxRuntimeBackend:
        return OnnxRuntimeBackend(graphs, replace(self.spec, precision="fp32"), threads=1)

    def begin(self, job: RolloutJob) -> None:
        self._sampler.begin(rollouts.draw_seed(self._seed, job))
        self._policy = self._greedy if job.greedy else self._drawing
        self._policy.reset()

    def decide(self, images: dict[str, Any], instruction: str) -> rollouts.Drawn:
        decision = self._policy.decide(images, instruction)
        return (decision, *self._sampler.take())


class RolloutActor:
    """One simulator with its policy: what a worker process is made of."""

    def __init__(self, work: RolloutWork) -> None:
        torch.set_num_threads(1)
        self._work, self._version = work, 0
        self._player = LocalRolloutPolicy(work)
        self._environments = rollouts.RolloutEnvironments(work.rollout)
        self._prompt_of = rollouts.prompts(self._player.spec, self._player.tokenizer)

    def play(self, job: RolloutJob, weights: Weights) -> Trajectory | Lost:
        """One episode; what breaks it costs no other."""
        try:
            if weights.version != self._version:
                assert weights.file is not None, "only version 0 is the checkpoint itself"
                self._player.load(weights.file)
                self._version = weights.version
            limit = self._work.evaluation.max_steps if job.greedy else self._work.rollout.max_steps
            env, settings = self._environments.env(job.task, limit), self._work.rollout
            played = rollouts.play(env, self._player, job, self._player.spec, self._prompt_of, settings)
            return replace(played, version=self._version)
        except Exception as error:  # of the simulator, of the policy: one broken episode
            self._environments.close()
            return Lost(job, f"{type(error).__name__}: {error}")


class Workers:
    """Worker processes of one learner.

    Args:
        work: the run.
        target: what a process does with its end of a pipe.
        start: how processes begin; a renderer does not survive a fork.
    """

    def __init__(
        self,
        work: RolloutWork,
        target: Callable[[RolloutWork, Connection], None] | None = None,
        start: str = "spawn",
    ) -> None:
        self._work, self._target = work, target or _worker
        self._graphs = Graphs(work.folder) if target is None and work.precision == "fp32" else None
        self._weights = Weights()
        self._context: Any = multiprocessing.get_context(start)
        self._pool = WorkerPool(
            self._start,
            work.rollout.workers,
            stay=True,
            start_timeout_s=START_TIMEOUT_S,
            job_timeout_s=work.rollout.episode_timeout_s,
        )

    def sync(self, weights: Weights) -> None:
        """See `Rollouts.sync`."""
        if self._graphs and weights.file:
            weights = replace(weights, file=self._graphs.fitted(weights.file))
        self._weights = weights

    def play(self, jobs: Sequence[RolloutJob]) -> Iterator[Trajectory | Lost]:
        """See `Rollouts.play`."""
        waiting = list(jobs)
        for attempt in range(1 + self._work.rollout.retries):
            last = attempt == self._work.rollout.retries
            again: list[RolloutJob] = []
            for result in self._round(waiting):
                if isinstance(result, Lost) and not last:
                    again.append(result.job)
                else:
                    yield result
            waiting = again

    def close(self) -> None:
        """See `Rollouts.close`."""
        self._pool.close()
        if self._graphs:
            self._graphs.close()

    def _round(self, jobs: Sequence[RolloutJob]) -> Iterator[Trajectory | Lost]:
        """Plays every job once."""
        queue = WorkQueue((job.task, index) for index, job in enumerate(jobs))
        results = self._pool.results(queue, lambda pair: (jobs[pair[1]], self._weights))
        with contextlib.closing(results):
            for (_, index), result in results:
                if not isinstance(result, WorkerDied):
                    yield result
                    continue
                yield Lost(jobs[index], f"The worker {result.how}.")
                if queue.hopeless:
                    raise TrainingError(
                        f"{MOST_DEATHS} rollout workers ended one after the other without an "
                        f"episode; the last one {result.how}. See the messages above."
                    )

    def _start(self) -> WorkerProcess:
        graphs = self._graphs.exported() if self._graphs else None
        return WorkerProcess.start(self._context, self._target, replace(self._work, graphs=graphs))


def _worker(work: RolloutWork, pipe: Connection) -> None:
    """A worker's process: takes jobs from the pipe and puts trajectories into it, until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the learner, which then ends us
    try:
        actor = RolloutActor(work)
    except (ValueError, RuntimeError, OSError) as error:
        pipe.send(TrainingError(str(error)))
        return
    try:
        pipe.send(READY)
        while True:
            pipe.send(actor.play(*pipe.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the learner is gone; nobody counts on the rest
