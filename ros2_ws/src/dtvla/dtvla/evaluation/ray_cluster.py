"""An evaluation on a Ray cluster: many simulators, few policy servers that decide for several at once.

Simulators and servers are Ray actors. A simulator that dies costs the episode it played, which is reported
as an error, and is replaced; a server that dies is started anew by Ray, which asks it again: no episode is
lost. Every machine needs dtvla, the bundle and the assets at the same paths.
"""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtvla.errors import InputError
from dtvla.evaluation.results import EpisodeResult, EvalOptions, failed
from dtvla.evaluation.runner import Play, Runner, decision_options, episodes, player
from dtvla.evaluation.work_queue import MOST_DEATHS, Pair, WorkQueue
from dtvla.evaluation.worker_pool import EvaluationRefused
from dtvla.policy.batching import Answer, PolicyBatch, Request
from dtvla.policy.bundle.loading import Bundle
from dtvla.policy.policy import Decision, Policy
from dtvla.sim import assets

LOCAL = "local"
STORE_BYTES = 1 << 28  # of a local cluster: pictures are small
SERVER_STARTS = 3  # a server that dies more often has a reason that another start does not mend
SHARED = (assets.VARIABLE, "DTVLA_CACHE", "MUJOCO_GL")  # what the actors must know of our environment


class BatchServer:
    """Decides for some simulators: whoever waits while a decision runs is in the next one.

    Args:
        batch: decides for as many robots as there are simulators.
    """

    def __init__(self, batch: PolicyBatch) -> None:
        self._batch = batch
        self._waiting: dict[int, tuple[Request, asyncio.Future[Decision]]] = {}
        self._running = False
        self.largest_batch = 0

    async def ready(self) -> int:
        """The largest number of decisions that were taken together."""
        return self.largest_batch

    async def reset(self, slot: int) -> None:
        """An episode of a simulator begins."""
        self._batch.reset(slot)

    async def decide(self, slot: int, images: dict[str, NDArray[np.uint8]], instruction: str) -> Decision:
        """See `Policy.decide`."""
        answer: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        self._waiting[slot] = (Request(images, instruction), answer)
        if not self._running:
            self._running = True
            try:
                while self._waiting:
                    await self._decide_all()
            finally:
                self._running = False
        return await answer

    async def _decide_all(self) -> None:
        """One round for all that wait; in a thread, so that others can line up meanwhile."""
        asked, self._waiting = self._waiting, {}
        self.largest_batch = max(self.largest_batch, len(asked))
        requests = {slot: request for slot, (request, _) in asked.items()}
        try:
            answers: dict[int, Any] = await asyncio.to_thread(self._together, requests)
        except Exception as error:
            answers = dict.fromkeys(asked, error)
        for slot, (_, future) in asked.items():
            if isinstance(answers[slot], Decision):
                future.set_result(answers[slot])
            else:
                future.set_exception(answers[slot])

    def _together(self, requests: dict[int, Request]) -> dict[int, Answer]:
        """Decides for all that ask; runs in a thread of its own, never twice at once."""
        return self._batch.decide(requests)


class PolicyServer(BatchServer):
    """The server of an evaluation.

    Args:
        options: what to evaluate.
        slots: number of simulators.
    """

    def __init__(self, options: EvalOptions, slots: int) -> None:
        policy = Policy.load(options.policy, options.backend, options=decision_options(options))
        super().__init__(PolicyBatch(policy, slots))


class RemotePolicy:
    """A `Decider` that asks a policy server.

    Args:
        ray: the module.
        server: the actor.
        slot: our number there.
    """

    def __init__(self, ray: Any, server: Any, slot: int) -> None:
        self._ray, self._server, self._slot = ray, server, slot

    def reset(self) -> None:
        self._ray.get(self._server.reset.remote(self._slot))

    def decide(self, images: dict[str, NDArray[np.uint8]], instruction: str) -> Decision:
        decision: Decision = self._ray.get(self._server.decide.remote(self._slot, images, instruction))
        return decision


class Simulator:
    """Plays one episode after the other.

    Args:
        options: what to evaluate.
        server: the actor that decides; None: a script does.
        slot: our number there.
    """

    def __init__(self, options: EvalOptions, server: Any, slot: int) -> None:
        play: Play | None = None
        if server is not None:
            policy = RemotePolicy(importlib.import_module("ray"), server, slot)
            play = player(options, policy, Bundle.load(options.policy).spec)
        self._next: Pair | None = None
        self._results = episodes(options, self._pairs(), play)

    def play(self, task: int, seed: int) -> EpisodeResult:
        """One episode."""
        self._next = (task, seed)
        return next(self._results)

    def _pairs(self) -> Iterator[Pair]:
        while self._next is not None:
            yield self._next


def check(options: EvalOptions) -> None:
    """Refuses what policy servers do not do.

    Raises:
        InputError: an option that is for evaluations in process.
    """
    alone = options.decoding in ("autoregressive", "swapped")
    if options.thinking == "lagging" or alone or options.delay == "measured":
        raise InputError(
            "Policy servers decide for several simulators at once: --thinking lagging, --decoding "
            "autoregressive or swapped, and --delay measured are for --in-process."
        )


def runner(address: str, servers: int) -> Runner:
    """Runs an evaluation's episodes on a cluster.

    Args:
        address: of the cluster, as `ray.init` takes it (`auto`, `ray://HOST:10001`); `local` starts one here.
        servers: number of policy servers; scripts need none.
    """

    def run(options: EvalOptions, pairs: Sequence[Pair]) -> Iterator[EpisodeResult]:
        if not pairs:
            return
        ray = connect(address, options.workers + servers)
        try:
            yield from RayCluster(ray, options, servers).run(pairs)
        finally:
            ray.shutdown()

    return run


def connect(address: str, processors: int) -> Any:
    """Joins a cluster, or starts one on this machine; returns the module.

    Raises:
        EvaluationRefused: Ray is not installed, or there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise EvaluationRefused(
            f"--ray needs the package ray ({error}). Install it: pip install -r requirements/ray.txt"
        ) from error
    environment = {name: os.environ[name] for name in SHARED if name in os.environ}
    common = {"runtime_env": {"env_vars": environment}, "log_to_driver": False, "logging_level": "error"}
    try:
        if address == LOCAL:
            ray.init(
                address=LOCAL,
                num_cpus=processors,
                object_store_memory=STORE_BYTES,
                include_dashboard=False,
                **common,
            )
        else:
            ray.init(address=address, **common)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise EvaluationRefused(
            f"There is no Ray cluster at '{address}' ({str(error).strip().splitlines()[0]}). Start one with "
            "`ray start --head`, or use --ray local."
        ) from error
    return ray


class RayCluster:
    """The actors of one evaluation.

    Args:
        ray: the module, connected.
        options: what to evaluate, with `workers` simulators.
        servers: number of policy servers.
    """

    def __init__(self, ray: Any, options: EvalOptions, servers: int) -> None:
        self._ray, self._options = ray, options
        self._workers = max(1, options.workers)
        self.simulators: dict[int, Any] = {}
        self.servers: list[Any] = []
        if not options.scripted:
            self._start_servers(max(1, min(servers, self._workers)))

    def run(self, pairs: Sequence[Pair]) -> Iterator[EpisodeResult]:
        """Plays all episodes; yields their results as they end."""
        ray, queue = self._ray, WorkQueue(pairs)
        played = {}
        for number in range(min(self._workers, len(queue))):
            played[self._play(number, queue)] = number
        while played:
            (ref,), _ = ray.wait(list(played), num_returns=1)
            number = played.pop(ref)
            try:
                result = ray.get(ref)
            except ray.exceptions.RayError as error:
                self.simulators.pop(number)
                lost = queue.died(number)
                if lost is not None:
                    yield failed(*lost, f"The simulator died: {_first_line(error)}")
            else:
                queue.ended(number)
                yield result
            if queue.hopeless:
                why = f"Given up: {MOST_DEATHS} simulators died one after the other."
                yield from (failed(*pair, why) for pair in queue.give_up())
            if len(queue):
                played[self._play(number, queue)] = number

    def _play(self, number: int, queue: WorkQueue) -> Any:
        """Gives a simulator its next episode; makes the simulator first when there is none."""
        if number not in self.simulators:
            server = self.servers[number % len(self.servers)] if self.servers else None
            make = self._ray.remote(num_cpus=1)(Simulator)
            self.simulators[number] = make.remote(self._options, server, number // max(1, len(self.servers)))
        pair = queue.deal(number)
        assert pair is not None, "none waits"
        return self.simulators[number].play.remote(*pair)

    def _start_servers(self, servers: int) -> None:
        slots = -(-self._workers // servers)
        make = self._ray.remote(num_cpus=1, max_restarts=SERVER_STARTS, max_task_retries=-1)(PolicyServer)
        self.servers = [make.remote(self._options, slots) for _ in range(servers)]
        try:
            self._ray.get([server.ready.remote() for server in self.servers])
        except self._ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            raise EvaluationRefused(f"A policy server did not start: {_first_line(cause)}") from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
