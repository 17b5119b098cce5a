"""Rollouts on a Ray cluster: simulators, and few policy servers that decide for several of them at once.

A simulator that dies is replaced, one that is stuck is ended, and the episode is played again. A server that
dies is started anew by Ray: the episodes that it decided for are lost and played again, since their draws
are. Every machine needs the code, the checkpoint, the run's folder and the assets at the same paths.

A batch's arithmetic depends on who shares it, in its last bits, so that a run through Ray is not repeated
exactly by the same command: what was played before it was killed is kept on disk (`keep_rollouts`).
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file

from dtvla.evaluation.ray_cluster import SERVER_STARTS, BatchServer, connect
from dtvla.evaluation.work_queue import MOST_DEATHS, WorkQueue
from dtvla.policy.batching import Answer, PolicyBatch, Request
from dtvla.policy.policy import Policy
from training.common.run_checkpoints import TrainingError
from training.model.hf_checkpoint import load_policy
from training.model.kv_cache_decoder import TorchBackend, TorchBatch
from training.rl import rollouts
from training.rl.trajectory import RolloutJob, Trajectory
from training.rl.workers import START_TIMEOUT_S, Lost, RolloutWork, Weights


class RolloutServer(BatchServer):
    """Decides for some simulators, in batches; draws in rollouts and is greedy in evaluations.

    Args:
        work: the run.
        slots: number of simulators.
    """

    def __init__(self, work: RolloutWork, slots: int) -> None:
        self._work, self._version = work, 0
        checkpoint = load_policy(work.folder, work.dtype)
        self._model, spec = checkpoint.model.to(work.rollout.device), checkpoint.spec
        bundle = rollouts.as_bundle(work.folder, spec, checkpoint.tokenizer)
        batch = TorchBatch(self._model, slots, spec.cache_length, spec.thought_cap + 2)
        self._samplers = [rollouts.sampler(spec.layout, work.rollout) for _ in range(slots)]
        backend = TorchBackend(self._model, spec.cache_length)
        drawing = Policy(bundle, backend, rollouts.drawing(work.rollout))
        super().__init__(PolicyBatch(drawing, slots, batch, self._samplers))
        self._greedy = PolicyBatch(Policy(bundle, backend), slots, batch)
        self._jobs: dict[int, RolloutJob] = {}

    async def begin(self, slot: int, job: RolloutJob, weights: Weights) -> None:
        """An episode of a simulator begins, under these weights."""
        if weights.version != self._version:
            self._jobs.clear()  # nobody's episode goes on with other weights
            assert weights.file is not None, "only version 0 is the checkpoint itself"
            self._model.load_state_dict(load_file(weights.file, device=self._work.rollout.device))
            self._version = weights.version
        self._jobs[slot] = job
        self._samplers[slot].begin(rollouts.draw_seed(self._work.seed, job))
        (self._greedy if job.greedy else self._batch).reset(slot)

    async def draw(self, slot: int, images: dict[str, NDArray[np.uint8]], instruction: str) -> rollouts.Drawn:
        """A decision, and how likely its words and actions were."""
        if slot not in self._jobs:
            raise RuntimeError("The policy server was started anew in the middle of this episode.")
        decision = await self.decide(slot, images, instruction)
        return (decision, *self._samplers[slot].take())

    def _together(self, requests: dict[int, Request]) -> dict[int, Answer]:
        drawn = {slot: each for slot, each in requests.items() if not self._jobs[slot].greedy}
        greedy = {slot: each for slot, each in requests.items() if slot not in drawn}
        return self._batch.decide(drawn) | self._greedy.decide(greedy)


class RemoteRolloutPolicy:
    """A `Player` that asks a server.

    Args:
        server: the actor.
        slot: our number there.
    """

    def __init__(self, server: Any, slot: int) -> None:
        self._ray: Any = importlib.import_module("ray")
        self._server, self._slot = server, slot
        self.weights = Weights()

    def begin(self, job: RolloutJob) -> None:
        self._ray.get(self._server.begin.remote(self._slot, job, self.weights))

    def decide(self, images: dict[str, NDArray[np.uint8]], instruction: str) -> rollouts.Drawn:
        drawn: rollouts.Drawn = self._ray.get(self._server.draw.remote(self._slot, images, instruction))
        return drawn


class RaySimulator:
    """Plays one episode after the other.

    Args:
        work: the run.
        server: the actor that decides.
        slot: our number there.
    """

    def __init__(self, work: RolloutWork, server: Any, slot: int) -> None:
        self._work = work
        self._player = RemoteRolloutPolicy(server, slot)
        self._environments = rollouts.RolloutEnvironments(work.rollout)
        self._spec, tokenizer = rollouts.frame(work.folder)
        self._prompt_of = rollouts.prompts(self._spec, tokenizer)

    def play(self, job: RolloutJob, weights: Weights) -> Trajectory | Lost:
        """One episode; what breaks it costs no other."""
        self._player.weights = weights
        limit = self._work.evaluation.max_steps if job.greedy else self._work.rollout.max_steps
        try:
            env = self._environments.env(job.task, limit)
            played = rollouts.play(env, self._player, job, self._spec, self._prompt_of, self._work.rollout)
            return replace(played, version=weights.version)
        except Exception as error:  # of the simulator, of the policy, of the way to its server
            self._environments.close()
            return Lost(job, f"{type(error).__name__}: {_last_line(error)}")


class RayRollouts:
    """The actors of one learner: `Rollouts` on Ray.

    Args:
        ray: the module, connected.
        work: the run.
    """

    def __init__(self, ray: Any, work: RolloutWork) -> None:
        self._ray, self._work = ray, work
        rollout = work.rollout
        self.simulators: dict[int, Any] = {}
        servers = max(1, min(rollout.servers, rollout.workers))
        gpus = rollout.server_gpus if rollout.device == "cuda" else 0
        make = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=SERVER_STARTS)(RolloutServer)
        self.servers = [make.remote(work, -(-rollout.workers // servers)) for _ in range(servers)]
        self._weights = Weights()
        try:
            ray.get([server.ready.remote() for server in self.servers], timeout=START_TIMEOUT_S)
        except ray.exceptions.GetTimeoutError:
            raise TrainingError(
                f"The policy servers did not start within {START_TIMEOUT_S:g} s. Each needs a free "
                f"processor of the cluster{' and a GPU (rollout.server_gpus)' if gpus else ''}."
            ) from None
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            raise TrainingError(f"A policy server did not start: {_last_line(cause)}") from error

    def sync(self, weights: Weights) -> None:
        """See `Rollouts.sync`; servers read them when the next episode begins."""
        self._weights = weights

    def play(self, jobs: Sequence[RolloutJob]) -> Iterator[Trajectory | Lost]:
        """See `Rollouts.play`."""
        waiting, retries = list(jobs), self._work.rollout.retries
        for attempt in range(1 + retries):
            again: list[RolloutJob] = []
            for result in self._round(waiting):
                if isinstance(result, Lost) and attempt < retries:
                    again.append(result.job)
                else:
                    yield result
            waiting = again

    def close(self) -> None:
        """Ends all actors, and the cluster if it was started here."""
        self._ray.shutdown()

    def _round(self, jobs: Sequence[RolloutJob]) -> Iterator[Trajectory | Lost]:
        ray, queue = self._ray, WorkQueue((job.task, index) for index, job in enumerate(jobs))
        running: dict[Any, tuple[int, float]] = {}  # which simulator plays it, and until when
        for number in range(min(self._work.rollout.workers, len(queue))):
            self._deal(number, queue, jobs, running)
        while running:
            patience = max(0.0, min(until for _, until in running.values()) - time.monotonic())
            ready, _ = ray.wait(list(running), num_returns=1, timeout=patience)
            late = [ref for ref, (_, until) in running.items() if until <= time.monotonic()]
            for ref in ready or late:
                number, _ = running.pop(ref)
                result, reason = self._result(ref, number, stuck=not ready)
                if result is not None:
                    queue.ended(number)
                    yield result
                else:
                    lost = queue.died(number)
                    if lost is not None:
                        yield Lost(jobs[lost[1]], reason)
                if queue.hopeless:
                    raise TrainingError(f"{MOST_DEATHS} simulators ended one after the other: {reason}")
                self._deal(number, queue, jobs, running)

    def _result(self, ref: Any, number: int, *, stuck: bool) -> tuple[Trajectory | Lost | None, str]:
        """What a simulator handed in; or None, and in words what became of it."""
        if stuck:
            self._ray.kill(self.simulators.pop(number))
            return None, f"The simulator was stuck for {self._work.rollout.episode_timeout_s:g} s."
        try:
            return self._ray.get(ref), ""
        except self._ray.exceptions.RayError as error:
            self.simulators.pop(number)
            return None, f"The simulator died: {_last_line(error)}"

    def _deal(
        self,
        number: int,
        queue: WorkQueue,
        jobs: Sequence[RolloutJob],
        running: dict[Any, tuple[int, float]],
    ) -> None:
        """Gives a simulator its next episode; makes the simulator first when there is none."""
        pair = queue.deal(number)
        if pair is None:
            return
        patience = self._work.rollout.episode_timeout_s
        if number not in self.simulators:
            server = self.servers[number % len(self.servers)]
            make = self._ray.remote(num_cpus=1)(RaySimulator)
            self.simulators[number] = make.remote(self._work, server, number // len(self.servers))
            patience += START_TIMEOUT_S
        ref = self.simulators[number].play.remote(jobs[pair[1]], self._weights)
        running[ref] = number, time.monotonic() + patience


def crew(work: RolloutWork) -> RayRollouts:
    """Joins the cluster that the settings name, or starts one here, and makes the actors.

    Raises:
        EvaluationRefused: Ray is not installed, or there is no such cluster.
        TrainingError: a policy server did not start.
    """
    rollout = work.rollout
    return RayRollouts(connect(rollout.ray, rollout.workers + rollout.servers), work)


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
