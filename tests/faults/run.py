"""Runs the matrix: one fault after the other on a running graph, each judged by what was published."""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dtvla.bringup import domains
from dtvla.nodes.lifecycle.graph_client import BringUpError
from dtvla.resources import default_bundle
from tests.faults import failing_bundle
from tests.faults.harness import Harness, StageBroke
from tests.faults.matrix import ALLOWED_S, Context, Fault

Parameters = dict[str, dict[str, Any]]  # by node
RECOVER_S = 90.0
LAUNCHED = {"launcher-policy": "policy_node", "launcher-controller": "controller_node"}
FRESH_S = 0.4  # the arm moves, and its newest chunk is younger than this, when a fault strikes
# Pictures of real cameras change in every frame; the process in the middle sees to it. So a camera that
# repeats one picture can be told from an arm that rests.
NOISE: Parameters = {"policy_node": {"frozen_image_s": 1.0, "max_image_age_s": 0.0}}
# Two cores are few for a rendered world, a policy and a recorder: no videos, pictures as the policy has them.
LIGHT: Parameters = {"recorder_node": {"video": False}, "libero_bridge_node": {"image_size_px": 96}}


@dataclass
class Result:
    """What one fault did. Times in ms unless the name says otherwise; None: does not apply.

    Attributes:
        name, what, moment, seed: of the fault; `moment` is when the controller can know.
        holds: whether a hold is required; otherwise the graph must go on.
        fault_to_hold_ms: from the fault to the last command that moved the arm.
        know_to_hold_ms: from the moment the controller can know; negative: it held before.
        commands_after: commands published between the fault and its end.
        moving_after: those of them that moved the arm.
        exceeded: limits exceeded, in words; must be empty.
        judged, unjudged: commands whose times were certain enough to judge accelerations, and the others.
        recovery_s: from when the fault begins to be undone (a restart included) to the next command that
            moves the arm by a new decision.
        failure: why the fault was not survived; empty when all was well.
        words: what the graph said.
        notes: other facts.
    """

    name: str
    what: str
    moment: str
    seed: int
    holds: bool
    fault_to_hold_ms: float | None = None
    know_to_hold_ms: float | None = None
    commands_after: int = 0
    moving_after: int = 0
    missed: int = 0
    exceeded: list[str] = field(default_factory=list)
    judged: int = 0
    unjudged: int = 0
    recovery_s: float | None = None
    failure: str = ""
    words: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def well(self) -> bool:
        return not self.failure


class Runner:
    """Keeps one graph running, and breaks it.

    Args:
        folder: for logs and recordings.
        seed: decides on the moments.
        tell: progress in words.
    """

    def __init__(self, folder: Path, seed: int, tell: Callable[[str], None]) -> None:
        self._folder, self._seed, self._tell = folder, seed, tell
        self._harness: Harness | None = None
        self._count = 0

    def run(self, faults: Sequence[Fault], until_s: float = math.inf) -> Iterator[Result]:
        """The results, as they come; none is begun after `until_s` (monotonic)."""
        with domains.reserve() as reservation:
            try:
                for number, fault in enumerate(faults):
                    if time.monotonic() > until_s:
                        break
                    yield self._one(fault, reservation.domain, self._seed + number)
            finally:
                self._end()

    def _one(self, fault: Fault, domain: int, seed: int) -> Result:
        result = Result(fault.name, fault.what, fault.moment, seed, fault.holds)
        try:
            harness = self._ready(fault, domain)
            self._break(harness, fault, result, random.Random(seed))
        except (StageBroke, BringUpError, OSError) as error:
            result.failure = result.failure or str(error)
        if result.recovery_s is None:
            self._end()  # what is left may not be well: the next fault gets a graph of its own
        return result

    def _ready(self, fault: Fault, domain: int) -> Harness:
        """A graph whose arm moves; the same as before where it fits."""
        harness = self._harness
        if harness is not None and (harness.in_the_middle != fault.middle or harness.dead()):
            self._end()
            harness = None
        if harness is None:
            self._count += 1
            self._tell("starting the graph")
            folder = self._folder / f"graph_{self._count}"
            bundle = failing_bundle.make(default_bundle(), self._folder / "failing_bundle")
            harness = Harness(
                folder, domain, fault.middle, LIGHT | (NOISE if fault.middle else {}), bundle=bundle
            )
            harness.__enter__()
            self._harness = harness
            harness.begin_episode()
        if harness.await_motion(RECOVER_S) is None:
            raise StageBroke(f"The arm does not move. {' '.join(harness.words(time.time() - 5))}")
        return harness

    def _end(self) -> None:
        if self._harness is not None:
            self._harness.close()
            self._harness = None

    def _break(self, harness: Harness, fault: Fault, result: Result, chance: random.Random) -> None:
        monitor, record = harness.monitor, harness.monitor.record
        harness.spin(chance.uniform(0.5, 2.0))
        if not harness.await_(lambda: _moves_now(record), RECOVER_S):
            raise StageBroke("The arm does not move by a fresh chunk.")
        context = Context(harness, chance, began_s=time.time())
        exceeded, missed, traces = len(record.exceeded), record.missed, len(record.traces)
        judged, unjudged = monitor.judge.judged, monitor.judge.unjudged
        self._tell(fault.what)
        begin_s = fault.begin(context)
        harness.spin(fault.lasts_s)
        end_s = time.time()
        told = [item for item in record.told if begin_s < item.time_s <= end_s]
        moving = [item for item in told if item.moves]
        result.commands_after, result.moving_after = len(told), len(moving)
        if fault.know is not None:
            self._judge_hold(fault, context, result, begin_s, end_s)
        self._tell(f"{fault.name}: recovering")
        undo_s = time.time()
        fault.end(context)
        self._await_recovery(harness, result, undo_s, time.time())
        if fault.check is not None and not result.failure:
            result.failure = fault.check(context)
        result.words = harness.words(begin_s)
        result.notes = [*context.notes, *record.traces[traces:]]
        result.exceeded = [str(item) for item in record.exceeded[exceeded:]]
        result.missed = record.missed - missed
        result.judged = monitor.judge.judged - judged
        result.unjudged = monitor.judge.unjudged - unjudged
        if result.exceeded and not result.failure:
            result.failure = f"limits exceeded {len(result.exceeded)} times: {result.exceeded[0]}"
        dead = harness.dead()
        if dead and not result.failure:
            result.failure = f"{', '.join(dead)} died"

    def _judge_hold(
        self, fault: Fault, context: Context, result: Result, begin_s: float, end_s: float
    ) -> None:
        assert fault.know is not None
        record = context.record
        moving = [item for item in record.told if item.moves and item.time_s <= end_s]
        last_s = moving[-1].time_s if moving else begin_s
        know_s = fault.know(context, begin_s, end_s)
        result.fault_to_hold_ms = 1000 * max(0.0, last_s - begin_s)
        result.know_to_hold_ms = 1000 * (last_s - max(know_s, begin_s))
        if know_s > end_s - 2 * ALLOWED_S:
            result.failure = "the fault ended before a hold was due: it must last longer"
        elif last_s > max(know_s, begin_s) + ALLOWED_S:
            result.failure = (
                f"it held {result.know_to_hold_ms:.0f} ms after it could know; "
                f"{1000 * ALLOWED_S:.0f} ms are allowed"
            )

    def _await_recovery(self, harness: Harness, result: Result, undo_s: float, healed_s: float) -> None:
        """The arm moves again, by a chunk that came after the end of the fault."""
        record = harness.monitor.record
        came = harness.await_(
            lambda: any(c.good and not c.hold and c.time_s > healed_s for c in record.chunks[-20:]), RECOVER_S
        )
        moved_s = harness.await_motion(RECOVER_S, healed_s) if came else None
        if moved_s is not None:
            result.recovery_s = moved_s - undo_s
        elif not result.failure:
            said = " ".join(harness.words(time.time() - 3.0))
            result.failure = f"the arm does not move again within {RECOVER_S:g} s. The graph says: {said}"


def _moves_now(record: object) -> bool:
    """The arm was just told to move, by a chunk that has most of its rows left."""
    now = time.time()
    told, chunks = record.told, record.chunks  # type: ignore[attr-defined]
    if not (told and told[-1].moves and now - told[-1].time_s < 0.1):
        return False
    return any(c.good and not c.hold and now - c.time_s < FRESH_S for c in chunks[-3:])


def _more_than(values: Sequence[float], count: int) -> bool:
    return len(values) > count


def launcher_faults(folder: Path, tell: Callable[[str], None]) -> Iterator[Result]:
    """What `dtvla up --respawn` does by itself when a process dies: starts it anew, or ends with a reason."""
    from dtvla.bringup.graph import GraphOptions
    from dtvla.bringup.launcher import ChildDied, RunningGraph

    for name, node in LAUNCHED.items():
        what = f"kill -9 of {node} under the launcher (respawn)"
        result = Result(name, what, "", 0, False)
        options = GraphOptions(
            bundle=default_bundle(),
            robot="panda",
            realtime=True,
            respawn=True,
            repeat=True,
            console=False,
            max_steps=1000,
            output=folder / name,
        )
        tell(what)
        with domains.reserve() as reservation, contextlib.ExitStack() as stack:
            graph = stack.enter_context(RunningGraph(options, reservation.domain))
            client = graph.client
            child = next(child for child in graph.children if child.spec.name == node)
            latencies = client.latencies_s
            client.wait(partial(_more_than, latencies, 2), RECOVER_S)
            child.process.kill()
            begin_s = time.time()
            try:
                came = client.wait(partial(_more_than, latencies, len(latencies) + 2), RECOVER_S)
                result.recovery_s = time.time() - begin_s
                result.notes.append("started anew by the launcher")
                if not came:
                    result.failure = "no decision came after the restart"
            except ChildDied as died:
                result.notes.append(f"the graph ended with its reason after {time.time() - begin_s:.1f} s")
                result.words.append(str(died).split(" Its last words")[0])
            if node == "controller_node" and not result.words:
                result.failure = "the launcher did not end the graph although its controller died"
        yield result


__all__ = ["LAUNCHED", "Result", "Runner", "launcher_faults"]
