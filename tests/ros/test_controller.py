"""The controller as a process: what it publishes for each tick, and what it refuses."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from harness import PERIOD_NS, NodeProcess, Probe, active, chunk, pose, probe_domain
from std_srvs.srv import Trigger

from dtvla.nodes.common import qos
from dtvla_msgs.msg import ActionChunk, EndEffectorDelta

pytestmark = pytest.mark.ros


class Bench:
    """A controller process with the test as its policy and its robot."""

    def __init__(self, probe: Probe, process: NodeProcess) -> None:
        self.probe = probe
        self.process = process
        self.commands = probe.listen(EndEffectorDelta, "/controller/ee_delta")
        self.chunks = probe.speak(ActionChunk, "/policy/action_chunk")
        self.poses = probe.speak(PoseStamped, "/ee_pose", qos.SENSOR)
        probe.expect(lambda: probe.node.count_publishers("/controller/ee_delta") > 0, "no controller")
        self.start_ns = time.time_ns()

    def tick(self, number: int) -> EndEffectorDelta:
        """Publishes the pose of a tick and returns the command that answers it."""
        stamp_ns = self.start_ns + number * PERIOD_NS
        self.commands.clear()
        self.poses.publish(pose(stamp_ns))
        self.probe.expect(lambda: bool(self.commands), f"tick {number} was not answered")
        return self.commands[-1]

    def offer(self, message: ActionChunk) -> None:
        """Publishes a chunk and waits until the controller has taken or refused it."""
        self.chunks.publish(message)
        self.chunks.wait_for_all_acked()

    def stamp(self, number: int) -> int:
        return self.start_ns + number * PERIOD_NS

    def call(self, service: str) -> Trigger.Response:
        return self.probe.call(Trigger, service, Trigger.Request(), 30.0)


@pytest.fixture(scope="module")
def realtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with probe_domain() as (probe, domain):
        folder = tmp_path_factory.mktemp("controller")
        with active("controller_node", probe, domain, folder, lockstep=False) as process:
            yield Bench(probe, process)


def test_without_a_chunk_the_arm_holds(realtime: Bench) -> None:
    command = realtime.tick(0)
    assert command.hold
    assert (command.translation.x, command.translation.y, command.translation.z) == (0.0, 0.0, 0.0)
    assert not command.raw_action


def test_each_tick_gets_its_row_with_the_policys_own_bits(realtime: Bench) -> None:
    sent = chunk(1, realtime.stamp(10))
    realtime.offer(sent)
    raw = np.asarray(sent.raw_actions).reshape(-1, 7)
    for row in range(sent.execute_steps):
        realtime.probe.expect(lambda row=row: not realtime.tick(10 + row).hold, "the chunk is not executed")
        command = realtime.commands[-1]
        assert (command.decision_id, command.row) == (1, row)
        assert np.asarray(command.raw_action).tobytes() == raw[row].tobytes()
        assert command.translation.x == pytest.approx(0.001 * row)


def test_a_used_up_chunk_halts_the_arm(realtime: Bench) -> None:
    assert realtime.tick(10 + 5).hold


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("translations", [math.nan] * 30, "not a finite number"),
        ("raw_actions", [math.inf] * 70, "not a finite number"),
        ("translations", [0.0] * 29, "30"),
        ("translations", [5.0] * 30, "nonsense"),
        ("horizon", 0, "0 rows"),
        ("execute_steps", 11, "11 of its 10 rows"),
        ("control_period", math.nan, "control period"),
    ],
)
def test_a_bad_chunk_is_refused_in_words_and_the_arm_holds(
    realtime: Bench, field: str, value: Any, words: str
) -> None:
    bad = chunk(2, realtime.stamp(20))
    setattr(bad, field, value)
    realtime.offer(bad)
    realtime.probe.expect_complaint("controller_node", words)
    assert realtime.tick(20).hold
    assert realtime.process.alive


def test_a_chunk_in_another_frame_is_refused(realtime: Bench) -> None:
    bad = chunk(2, realtime.stamp(22))
    bad.header.frame_id = "world"
    realtime.offer(bad)
    realtime.probe.expect_complaint("controller_node", "frame 'world'")


def test_a_stale_chunk_is_refused(realtime: Bench) -> None:
    realtime.tick(60)
    realtime.offer(chunk(3, realtime.stamp(22)))
    realtime.probe.expect_complaint("controller_node", "old")
    assert realtime.tick(61).hold


def test_a_decision_that_goes_backwards_is_refused_and_a_good_one_heals(realtime: Bench) -> None:
    realtime.offer(chunk(9, realtime.stamp(70)))
    realtime.probe.expect(lambda: not realtime.tick(70).hold, "decision 9 is not executed")
    realtime.offer(chunk(8, realtime.stamp(71)))
    realtime.probe.expect_complaint("controller_node", "never go backwards")
    assert realtime.tick(71).decision_id == 9
    realtime.offer(chunk(10, realtime.stamp(72)))
    realtime.probe.expect(lambda: not realtime.probe.complaint("controller_node"), "the complaint stays")


def test_stop_latches_until_it_is_cleared(realtime: Bench) -> None:
    realtime.offer(chunk(11, realtime.stamp(80)))
    realtime.probe.expect(lambda: realtime.tick(80).decision_id == 11, "decision 11 is not executed")
    assert realtime.call("/stop").success
    assert realtime.tick(81).hold
    realtime.offer(chunk(12, realtime.stamp(82)))
    assert realtime.tick(82).hold
    realtime.probe.expect_complaint("controller_node", "/clear_stop")
    assert realtime.call("/clear_stop").success
    assert realtime.tick(83).hold  # what was proposed while stopped is forgotten
    realtime.offer(chunk(13, realtime.stamp(84)))
    realtime.probe.expect(lambda: not realtime.tick(84).hold, "the arm is not released")


def test_the_successor_of_a_policy_that_is_gone_counts_from_one_again(realtime: Bench) -> None:
    probe = realtime.probe
    realtime.offer(chunk(20, realtime.stamp(90)))
    probe.expect(lambda: realtime.tick(90).decision_id == 20, "decision 20 is not executed")
    probe.node.destroy_publisher(realtime.chunks)
    probe.expect(lambda: realtime.tick(91).hold, "the chunk of a dead policy is executed on")
    realtime.chunks = probe.speak(ActionChunk, "/policy/action_chunk")
    realtime.offer(chunk(1, realtime.stamp(92)))
    probe.expect(lambda: realtime.tick(92).decision_id == 1, "the new policy is not heard")


def test_in_lockstep_a_tick_waits_for_its_chunk(tmp_path: Path) -> None:
    with probe_domain() as (probe, domain), active("controller_node", probe, domain, tmp_path) as process:
        bench = Bench(probe, process)

        def waits() -> bool:
            bench.poses.publish(pose(bench.stamp(0)))  # best effort: one may be lost
            return probe.figure("controller_node", "state") == "waiting for the first chunk"

        probe.expect(waits, "it does not wait")
        assert not bench.commands
        bench.offer(chunk(1, bench.stamp(0)))
        probe.expect(lambda: bool(bench.commands), "the tick is not answered")
        assert bench.commands[-1].row == 0
        assert not bench.commands[-1].hold


def test_in_receding_mode_a_late_chunk_begins_where_the_arm_is_and_ends_in_a_smooth_hold(
    tmp_path: Path,
) -> None:
    """Counting rows by the wall clock, a policy slower than its own chunk would never move the arm."""
    with probe_domain() as (probe, domain):
        settings = {"lockstep": False, "chunk_mode": "receding", "max_chunk_age_s": 60.0}
        with active("controller_node", probe, domain, tmp_path, **settings) as process:
            bench = Bench(probe, process)
            for number in range(4):
                assert bench.tick(number).hold
            late = chunk(1, bench.stamp(0))  # made from the picture of tick 0; the arm has not moved since
            bench.offer(late)
            moves = []
            for number in range(4, 24):
                moves.append(bench.tick(number).translation.x)
            rows = np.asarray(late.translations).reshape(-1, 3)[:, 0]
            first = next(i for i, move in enumerate(moves) if move != 0.0) - 1  # row 0 moves nothing
            np.testing.assert_allclose(moves[first : first + late.horizon], rows, atol=1e-9)
            assert first <= 2
            tail = moves[first + late.horizon :]
            assert 0.0 < tail[0] < rows[-1], "it stops dead"
            assert tail[-1] == 0.0
