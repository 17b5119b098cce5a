"""`dtvla eval --ros`: real graphs give the results of the evaluation in process, to the last bit."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from harness import descendants_of

from dtvla.bringup import graph_evaluation, shared_memory
from dtvla.evaluation.results import EpisodeResult, EvalOptions, Journal
from dtvla.evaluation.runner import evaluate
from dtvla.evaluation.work_queue import Pair
from dtvla.resources import default_bundle

pytestmark = [pytest.mark.ros, pytest.mark.sim]
CLOCKS = ("latency_p50_ms",)  # what differs from run to run


def through_ros(options: EvalOptions, folder: Path) -> list[EpisodeResult]:
    return evaluate(options, runner=graph_evaluation.runner(folder))


def in_process(options: EvalOptions) -> list[EpisodeResult]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(evaluate, (options,))


def told(results: list[EpisodeResult]) -> list[dict[str, Any]]:
    return [{key: value for key, value in asdict(r).items() if key not in CLOCKS} for r in results]


@pytest.fixture(scope="module")
def recorded() -> EpisodeResult:
    """An episode of the expert in process."""
    (result,) = in_process(EvalOptions("expert", tasks=(1,), episodes=1))
    assert result.success
    return result


def test_the_experts_episode_through_the_graph_is_that_in_process_in_every_state_word_and_figure(
    recorded: EpisodeResult, tmp_path: Path
) -> None:
    assert told(through_ros(EvalOptions("expert", tasks=(1,), episodes=1), tmp_path)) == told([recorded])


def test_so_is_the_shipped_policys(tmp_path: Path) -> None:
    options = EvalOptions(str(default_bundle()), tasks=(1,), episodes=1)
    there, here = through_ros(options, tmp_path), in_process(options)
    assert there[0].success
    assert told(there) == told(here)


def _victims(name: str) -> list[int]:
    """The processes of a node that this process has started."""
    found = []
    for pid in descendants_of(os.getpid()):
        if name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            found.append(pid)
    return found


def test_a_graph_that_breaks_costs_one_episode_which_is_an_error_and_no_failure(tmp_path: Path) -> None:
    """The bridge is killed, as the kernel would when memory ends, half a second into the second episode."""
    options = EvalOptions("expert", episodes=3, tasks=(1,))

    def pairs() -> Iterator[Pair]:
        yield (1, 1)
        timer = threading.Timer(0.5, lambda: [os.kill(pid, 9) for pid in _victims("libero_bridge_node")])
        timer.start()
        yield (1, 2)
        timer.join()
        yield (1, 3)

    first, broken, third = graph_evaluation.episodes(tmp_path, options, pairs())
    shared_memory.sweep(0.0)
    assert "libero_bridge_node" in broken.error
    assert "SIGKILL" in broken.error
    assert (broken.task, broken.seed, broken.success) == (1, 2, False)
    assert [(r.seed, r.error, r.success) for r in (first, third)] == [(1, "", True), (3, "", True)]


def test_a_replay_plays_what_is_on_record_and_says_what_is_not(
    recorded: EpisodeResult, tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "recorded", EvalOptions("expert", tasks=(1,), episodes=1))
    journal.add(recorded)
    again = EvalOptions(f"replay:{journal.path}", tasks=(1,), episodes=2)
    replayed, unknown = through_ros(again, tmp_path)
    assert (replayed.error, replayed.state_sha256) == ("", recorded.state_sha256)
    assert "holds no episode of task 1 of 'embedded' with seed 10001" in unknown.error


def test_options_that_the_graph_has_not_are_refused() -> None:
    for wrong in ({"decoding": "masked"}, {"thinking": "lagging"}, {"delay": 0.1}, {"variation": "light:1"}):
        with pytest.raises(ValueError, match="runs a policy as it is deployed"):
            graph_evaluation.check(EvalOptions("bundle", **wrong))  # type: ignore[arg-type]
