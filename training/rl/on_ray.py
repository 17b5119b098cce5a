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

from dtvla.policy.batch import Answer, PolicyBatch, Request
from dtvla.policy.runner import Policy
from dtvla.sim.dealer import MOST_DEATHS, Dealer
from dtvla.sim.on_ray import SERVER_STARTS, BatchServer, connect
from training.cached import TorchBackend, TorchBatch
from training.checkpoint import load_policy
from training.checkpoints import TrainingError
from training.rl import playing
from training.rl.trajectory import Job, Trajectory
from training.rl.workers import START_TIMEOUT_S, Lost, Weights, Work


class RolloutServer(BatchServer):
    """Decides for some simulators, in batches; draws in rollouts and is greedy in evaluations.

    Args:
        work: the run.
        seats: number of simulators.
    """

    def __init__(self, work: Work, seats: int) -> None:
        self._work, self._version = work, 0
        checkpoint = load_policy(work.folder, work.dtype)
        self._model, spec = checkpoint.model.to(work.rollout.device), checkpoint.spec
        bundle = playing.as_bundle(work.folder, spec, checkpoint.tokenizer)
        batch = TorchBatch(self._model, seats, spec.cache_length, spec.thought_cap + 2)
        self._choosers = [playing.chooser(spec.layout, work.rollout) for _ in range(seats)]
        backend = TorchBackend(self._model, spec.cache_length)
        drawing = Policy(bundle, backend, playing.drawing(work.rollout))
        super().__init__(PolicyBatch(drawing, seats, batch, self._choosers))
        self._greedy = PolicyBatch(Policy(bundle, backend), seats, batch)
        self._jobs: dict[int, Job] = {}

    async def begin(self, seat: int, job: Job, weights: Weights) -> None:
        """An episode of a simulator begins, under these weights."""
        if weights.version != self._version:
            self._jobs.clear()  # nobody's episode goes on with other weights
            assert weights.file is not None, "only version 0 is the checkpoint itself"
            self._model.load_state_dict(load_file(weights.file, device=self._work.rollout.device))
            self._version = weights.version
        self._jobs[seat] = job
        self._choosers[seat].begin(playing.draw_seed(self._work.seed, job))
        (self._greedy if job.greedy else self._batch).reset(seat)

    async def draw(self, seat: int, images: dict[str, NDArray[np.uint8]], instruction: str) -> playing.Drawn:
        """A decision, and how likely its words and actions were."""
        if seat not in self._jobs:
            raise RuntimeError("The policy server was started anew in the middle of this episode.")
        decision = await self.decide(seat, images, instruction)
        return (decision, *self._choosers[seat].take())

    def _together(self, requests: dict[int, Request]) -> dict[int, Answer]:
        drawn = {seat: each for seat, each in requests.items() if not self._jobs[seat].greedy}
        greedy = {seat: each for seat, each in requests.items() if seat not in drawn}
        return self._batch.decide(drawn) | self._greedy.decide(greedy)


class RemotePlayer:
    """A `Player` that asks a server.

    Args:
        server: the actor.
        seat: our number there.
    """

    def __init__(self, server: Any, seat: int) -> None:
        self._ray: Any = importlib.import_module("ray")
        self._server, self._seat = server, seat
        self.weights = Weights()

    def begin(self, job: Job) -> None:
        self._ray.get(self._server.begin.remote(self._seat, job, self.weights))

    def decide(self, images: dict[str, NDArray[np.uint8]], instruction: str) -> playing.Drawn:
        drawn: playing.Drawn = self._ray.get(self._server.draw.remote(self._seat, images, instruction))
        return drawn


class RaySimulator:
    """Plays one episode after the other.

    Args:
        work: the run.
        server: the actor that decides.
        seat: our number there.
    """

    def __init__(self, work: Work, server: Any, seat: int) -> None:
        self._work = work
        self._player = RemotePlayer(server, seat)
        self._stage = playing.Stage(work.rollout)
        self._spec, tokenizer = playing.frame(work.folder)
        self._prompt_of = playing.prompts(self._spec, tokenizer)

    def play(self, job: Job, weights: Weights) -> Trajectory | Lost:
        """One episode; what breaks it costs no other."""
        self._player.weights = weights
        limit = self._work.evaluation.max_steps if job.greedy else self._work.rollout.max_steps
        try:
            env = self._stage.env(job.task, limit)
            played = playing.play(env, self._player, job, self._spec, self._prompt_of, self._work.rollout)
            return replace(played, version=weights.version)
        except Exception as error:  # of the simulator, of the policy, of the way to its server
            self._stage.close()
            return Lost(job, f"{type(error).__name__}: {_last_line(error)}")


class Crew:
    """The actors of one learner: `Rollouts` on Ray.

    Args:
        ray: the module, connected.
        work: the run.
    """

    def __init__(self, ray: Any, work: Work) -> None:
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

    def play(self, jobs: Sequence[Job]) -> Iterator[Trajectory | Lost]:
        """See `Rollouts.play`."""
        waiting, retries = list(jobs), self._work.rollout.retries
        for attempt in range(1 + retries):
            again: list[Job] = []
            for result in self._round(waiting):
                if isinstance(result, Lost) and attempt < retries:
                    again.append(result.job)
                else:
                    yield result
            waiting = again

    def close(self) -> None:
        """Ends all actors, and the cluster if it was started here."""
        self._ray.shutdown()

    def _round(self, jobs: Sequence[Job]) -> Iterator[Trajectory | Lost]:
        ray, dealer = self._ray, Dealer((job.task, index) for index, job in enumerate(jobs))
        running: dict[Any, tuple[int, float]] = {}  # which simulator plays it, and until when
        for number in range(min(self._work.rollout.workers, len(dealer))):
            self._deal(number, dealer, jobs, running)
        while running:
            patience = max(0.0, min(until for _, until in running.values()) - time.monotonic())
            ready, _ = ray.wait(list(running), num_returns=1, timeout=patience)
            late = [ref for ref, (_, until) in running.items() if until <= time.monotonic()]
            for ref in ready or late:
                number, _ = running.pop(ref)
                result, reason = self._result(ref, number, stuck=not ready)
                if result is not None:
                    dealer.ended(number)
                    yield result
                else:
                    lost = dealer.died(number)
                    if lost is not None:
                        yield Lost(jobs[lost[1]], reason)
                if dealer.hopeless:
                    raise TrainingError(f"{MOST_DEATHS} simulators ended one after the other: {reason}")
                self._deal(number, dealer, jobs, running)

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
        self, number: int, dealer: Dealer, jobs: Sequence[Job], running: dict[Any, tuple[int, float]]
    ) -> None:
        """Gives a simulator its next episode; makes the simulator first when there is none."""
        pair = dealer.deal(number)
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


def crew(work: Work) -> Crew:
    """Joins the cluster that the settings name, or starts one here, and makes the actors.

    Raises:
        EvaluationRefused: Ray is not installed, or there is no such cluster.
        TrainingError: a policy server did not start.
    """
    rollout = work.rollout
    return Crew(connect(rollout.ray, rollout.workers + rollout.servers), work)


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
