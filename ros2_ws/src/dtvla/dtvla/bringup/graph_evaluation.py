"""An evaluation through the real ROS graph in lockstep: the results of the one in process, to the last bit.

Each worker is a process with a graph of its own in a ROS domain of its own. A graph that breaks costs the
episode it played, which is reported as an error, and is started anew.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtvla.bringup import domains
from dtvla.bringup.graph import GraphOptions
from dtvla.bringup.launcher import Interrupted, RunningGraph
from dtvla.errors import InputError
from dtvla.evaluation import worker_pool
from dtvla.evaluation.results import EpisodeResult, EvalOptions, failed
from dtvla.evaluation.runner import Runner, threads_per_worker
from dtvla.evaluation.work_queue import Pair
from dtvla.sim.env import list_tasks

if TYPE_CHECKING:
    from std_msgs.msg import String

READY_S = 60.0  # for the episode monitor to hear whoever decides
REFUSED = "The scene was not reset: "  # how the bridge begins such an answer


def check(options: EvalOptions) -> None:
    """Refuses what the graph does not do.

    Raises:
        InputError: an option that is for evaluations in process.
    """
    usual = EvalOptions(options.policy)
    kept = ("decoding", "execute_steps", "delay", "variation")
    wrong = [name for name in kept if getattr(options, name) != getattr(usual, name)]
    wrong += ["thinking"] if options.thinking == "lagging" else []
    if wrong:
        raise InputError(
            f"The graph runs a policy as it is deployed: --{wrong[0].replace('_', '-')} "
            f"{getattr(options, wrong[0])} is for --in-process."
        )


def runner(folder: Path) -> Runner:
    """Runs an evaluation's episodes in graphs, whose logs go below `folder`."""

    def run(options: EvalOptions, pairs: Sequence[Pair]) -> Iterable[EpisodeResult]:
        work = partial(episodes, folder / "graphs")
        return worker_pool.run(work, options, pairs, max(1, options.workers))

    return run


def episodes(folder: Path, options: EvalOptions, pairs: Iterable[Pair]) -> Iterator[EpisodeResult]:
    """Yields the results of (task, seed) pairs, played by one graph after the other."""
    numbers, names = count(1), [task.name for task in list_tasks(options.suite)]
    with ExitStack() as stack:
        simulator: GraphSimulator | None = None
        try:
            for task, seed in pairs:
                number = next(numbers) if simulator is None else 0
                try:
                    if simulator is None:
                        logs = folder / f"{os.getpid()}-{number}"
                        simulator = stack.enter_context(_simulator(options, task, logs))
                    yield simulator.play(task, seed)
                except (RuntimeError, OSError) as error:  # a process died, a node refused, nothing moves
                    if number == 1 and simulator is None:
                        raise  # it never ran: no other episode would
                    stack.close()
                    simulator = None
                    yield failed(task, seed, str(error), names[task])
        except Interrupted:
            return


class GraphSimulator:
    """A running graph that plays one episode after the other."""

    def __init__(self, graph: RunningGraph, options: EvalOptions) -> None:
        from std_msgs.msg import String

        from dtvla.nodes.common import qos
        from dtvla.nodes.lifecycle.graph_client import EpisodeBroken

        self._graph, self._suite = graph, options.suite
        self._heard: list[dict[str, Any]] = []
        graph.client.node.create_subscription(String, "/episode_result", self._on_result, qos.LATCHED)
        if not graph.client.wait(lambda: bool(self._heard), READY_S):
            raise EpisodeBroken(f"The episode monitor did not hear whoever decides within {READY_S:g} s.")

    def play(self, task: int, seed: int) -> EpisodeResult:
        """One episode.

        Raises:
            RuntimeError: the graph did not play it to its end.
        """
        from dtvla.nodes.lifecycle.graph_client import BringUpError

        client = self._graph.client
        self._heard.clear()
        try:
            episode = client.reset_scene(self._suite, task, seed).episode
        except BringUpError as error:
            if not str(error).startswith(REFUSED):
                raise
            return failed(task, seed, str(error).removeprefix(REFUSED), list_tasks(self._suite)[task].name)

        def result() -> dict[str, Any] | None:
            return next((each["result"] for each in self._heard if each.get("episode") == episode), None)

        return _result(client.await_episode(result, _end_with_parent))

    def _on_result(self, message: String) -> None:
        self._heard.append(json.loads(message.data))


@contextmanager
def _simulator(options: EvalOptions, task: int, folder: Path) -> Iterator[GraphSimulator]:
    """Starts a graph without console and recorder, whose first scene is that of a task."""
    scripted = options.scripted
    graph = GraphOptions(
        bundle=Path("." if scripted else options.policy),
        backend=options.backend,
        suite=options.suite,
        task=task,
        max_steps=options.max_steps or 0,
        autostart=False,
        policy=not scripted,
        console=False,
        output=folder,
    )
    more: dict[str, dict[str, bool | int | float | str]] = {
        "libero_bridge_node": {
            "image_size_px": options.image_size,
            "render_unseen": options.watched,
            "script": str(options.policy) if scripted else "",
            "examine": True,
        },
        "policy_node": {"threads": threads_per_worker(options), "drafts": options.thinking != "plain"},
    }
    with domains.reserve() as reservation, RunningGraph(graph, reservation.domain, more=more) as running:
        yield GraphSimulator(running, options)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        raise Interrupted


def _result(content: dict[str, Any]) -> EpisodeResult:
    content["thoughts"], content["decided_at"] = tuple(content["thoughts"]), tuple(content["decided_at"])
    return EpisodeResult(**content)
