"""The controller with an arm behind it: target poses, dry runs, and what makes it hold."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from harness import NodeProcess, Probe, active, chunk, pose, probe_domain
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger

from dtvla.nodes.common import qos
from dtvla.nodes.controller.arm_output import GRIPPER, PREVIEW, TARGET
from dtvla.nodes.controller.controller_node import LATE_TICKS
from dtvla.nodes.lifecycle.graph_client import BringUpError
from dtvla_msgs.msg import ActionChunk

pytestmark = pytest.mark.ros

HOME = (0.0, -0.785, 0.0, -2.356, 0.0, 1.571, 0.785)  # rad, Franka's ready pose
SETTINGS = {"robot": "panda", "lockstep": False, "chunk_mode": "receding", "max_linear_velocity_m_s": 0.25}
SETTINGS |= {"max_angular_velocity_rad_s": 0.6, "robot_timeout_s": 1.0, "rate_hz": 50.0}
BUSY = 10.0  # longer than this (s) no machine is too busy


class Arm:
    """A controller process; the test is its policy, and an arm that is always where it is told to be."""

    def __init__(self, probe: Probe, process: NodeProcess) -> None:
        self.probe, self.process = probe, process
        self.targets = probe.listen(PoseStamped, f"/{TARGET}")
        self.previews = probe.listen(PoseStamped, f"/{PREVIEW}")
        self.grips = probe.listen(JointState, f"/{GRIPPER}")
        self.chunks = probe.speak(ActionChunk, "/policy/action_chunk")
        self.poses = probe.speak(PoseStamped, "/ee_pose", qos.SENSOR)
        self.joints = probe.speak(JointState, "/joint_states", qos.SENSOR)
        self.place = np.array([0.5, 0.0, 0.3])
        self.stuck = False
        self.talk = True
        self.decision = 0
        self.step_m = 0.01
        self.timer = probe.node.create_timer(0.02, self._tell)

    def _tell(self) -> None:
        """What the arm's driver sends."""
        heard = self.targets or self.previews
        if heard and not self.stuck:
            place = heard[-1].pose.position
            self.place = np.array([place.x, place.y, place.z])
        if self.talk:
            message = pose(time.time_ns())
            message.pose.position.x, message.pose.position.y, message.pose.position.z = self.place
            self.poses.publish(message)
            self.joints.publish(JointState(name=[f"panda_joint{i}" for i in range(1, 8)], position=HOME))

    def decide(self, *, x_m: float | None = None) -> None:
        """A chunk of ten rows that go along x."""
        self.decision += 1
        message = chunk(self.decision, time.time_ns())
        message.translations = np.tile([self.step_m if x_m is None else x_m, 0.0, 0.0], 10).tolist()
        self.chunks.publish(message)

    def follow(self, seconds: float) -> None:
        """Decides five times a second, for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.decide()
            self.probe.wait(lambda: False, 0.2)

    def moving(self, seconds: float = 0.3) -> bool:
        """Whether the target moves within the next moments."""
        before = len(self.targets)
        self.probe.expect(lambda: len(self.targets) > before, "no target comes", BUSY)
        first = self.targets[-1].pose.position.x
        self.probe.wait(lambda: False, seconds)
        return abs(self.targets[-1].pose.position.x - first) > 1e-4

    def expect_rest(self) -> None:
        self.probe.expect(lambda: not self.moving(), "the target does not come to rest", BUSY)

    def call(self, service: str) -> Trigger.Response:
        return self.probe.call(Trigger, service, Trigger.Request(), 30.0)


@pytest.fixture
def arm(tmp_path: Path) -> Iterator[Arm]:
    with (
        probe_domain() as (probe, domain),
        active("controller_node", probe, domain, tmp_path, dry_run=False, **SETTINGS) as process,
    ):
        yield Arm(probe, process)


def test_an_arm_follows_chunks_holds_when_they_end_and_when_its_state_is_silent(arm: Arm) -> None:
    arm.probe.wait(lambda: False, 0.5)
    assert not arm.targets, "before the first chunk the arm is told nothing"
    arm.follow(2.0)
    assert arm.targets[-1].pose.position.x > 0.51
    for _ in range(5):  # a process that stands for a moment does not catch up in one jump
        arm.decide()
        arm.probe.wait(lambda: False, 0.1)
        os.kill(arm.process.process.pid, signal.SIGSTOP)
        time.sleep(0.09)
        os.kill(arm.process.process.pid, signal.SIGCONT)
    steps = np.diff([target.pose.position.x for target in arm.targets])
    assert steps.max() <= 0.25 * LATE_TICKS / 50.0 + 1e-9, "no tick goes farther than three usual ones"
    assert arm.grips[-1].position[0] == pytest.approx(0.08)
    arm.expect_rest()
    arm.talk = False
    arm.probe.expect_complaint("controller_node", "Nothing has been heard from the arm's pose")
    arm.decide()
    assert not arm.moving()
    arm.talk = True
    arm.probe.expect(lambda: not arm.probe.complaint("controller_node"), "the complaint stays")
    arm.follow(1.0)
    assert arm.process.alive


def test_a_stop_latches_and_is_cleared_only_at_rest(arm: Arm) -> None:
    arm.follow(1.0)
    assert arm.call("/stop").success
    arm.expect_rest()
    arm.follow(0.5)
    assert not arm.moving()
    arm.stuck = True  # from now on the arm moves by itself, whatever it is told
    drift = arm.probe.node.create_timer(0.02, lambda: arm.place.__iadd__([0.0005, 0.0, 0.0]))
    arm.probe.wait(lambda: False, 0.5)
    answer = arm.call("/clear_stop")
    assert not answer.success
    assert "still moves" in answer.message
    arm.probe.node.destroy_timer(drift)
    arm.probe.expect(lambda: arm.call("/clear_stop").success, "a resting arm is not released")


def test_a_second_publisher_of_target_poses_makes_the_arm_hold(arm: Arm) -> None:
    arm.follow(1.0)
    rival = arm.probe.node.create_publisher(PoseStamped, f"/{TARGET}", qos.TARGET)
    arm.probe.expect_complaint("controller_node", "an arm obeys one")
    arm.expect_rest()
    arm.decide()
    assert not arm.moving()
    arm.probe.node.destroy_publisher(rival)
    arm.probe.expect(lambda: not arm.probe.complaint("controller_node"), "the complaint stays")


def test_a_second_policy_makes_the_arm_hold(arm: Arm) -> None:
    arm.follow(1.0)
    rival = arm.probe.node.create_publisher(ActionChunk, "/policy/action_chunk", qos.COMMAND)
    arm.probe.expect_complaint("controller_node", "2 policies publish")
    arm.decide()
    arm.expect_rest()
    arm.probe.node.destroy_publisher(rival)
    arm.probe.expect(lambda: not arm.probe.complaint("controller_node"), "the complaint stays")


def test_a_pose_of_yesterday_in_another_frame_or_of_no_numbers_is_not_used(arm: Arm) -> None:
    arm.follow(0.5)
    arm.talk = False
    for change, words in (("old", "s old"), ("frame", "frame 'map'"), ("nan", "finite numbers")):
        bad = pose(time.time_ns() - (86400 * 10**9 if change == "old" else 0))
        if change == "frame":
            bad.header.frame_id = "map"
        if change == "nan":
            bad.pose.position.y = float("nan")
        arm.poses.publish(bad)
        arm.probe.expect_complaint("controller_node", words)


def test_an_arm_that_does_not_follow_is_not_pushed(arm: Arm) -> None:
    arm.follow(0.5)
    arm.stuck = True
    arm.place = arm.place - np.array([0.2, 0.0, 0.0])
    arm.probe.expect_complaint("controller_node", "from its target")
    arm.decide()
    arm.probe.expect(
        lambda: abs(arm.targets[-1].pose.position.x - arm.place[0]) < 0.06, "the target does not come back"
    )


def test_a_dry_run_shows_what_the_arm_would_be_told_and_tells_it_nothing(tmp_path: Path) -> None:
    with (
        probe_domain() as (probe, domain),
        active("controller_node", probe, domain, tmp_path, **SETTINGS) as process,
    ):
        arm = Arm(probe, process)
        arm.follow(1.0)
        probe.expect(lambda: bool(arm.previews), "no preview comes")
        assert not arm.targets
        assert probe.node.count_publishers(f"/{TARGET}") == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_linear_velocity_m_s": 1.8}, "itself allows 1.7"),
        ({"workspace_x_min_m": 0.9}, "must lie below the maximum"),
        ({"tip_link": "no_such_link"}, "has no link 'no_such_link'"),
    ],
)
def test_parameters_that_do_not_fit_the_arm_are_refused_in_words(
    tmp_path: Path, settings: dict[str, object], words: str
) -> None:
    with (
        probe_domain() as (probe, domain),
        NodeProcess("controller_node", domain, tmp_path, **(SETTINGS | settings)),
        pytest.raises(BringUpError, match=words),
    ):
        probe.bring_up(["controller_node"])
