"""The whole graph in lockstep: bridge, policy and controller as real processes, one small random policy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from harness import NodeProcess, Probe, active, probe_domain
from std_srvs.srv import Trigger

from dtvla.nodes.common import qos
from dtvla.nodes.common.conversions import to_ns
from dtvla.nodes.lifecycle.graph_client import BringUpError
from dtvla_msgs.msg import ActionChunk, EndEffectorDelta, TaskState

pytestmark = [pytest.mark.ros, pytest.mark.sim]
STEPS = 14  # three decisions of the random policy, which executes five rows of each


class Theatre:
    """The running graph and everything it said."""

    def __init__(self, probe: Probe, policy: NodeProcess, bundle: str) -> None:
        self.probe = probe
        self.policy = policy
        self.bundle = bundle
        self.chunks = probe.listen(ActionChunk, "/policy/action_chunk")
        self.commands = probe.listen(EndEffectorDelta, "/controller/ee_delta")
        self.poses = probe.listen(PoseStamped, "/ee_pose", qos.SENSOR)
        self.states = probe.listen(TaskState, "/task_state", qos.LATCHED)
        self.reports_heard = probe.listen(DiagnosticArray, "/diagnostics")
        for topic in ("/policy/action_chunk", "/controller/ee_delta", "/ee_pose"):
            probe.expect(lambda t=topic: probe.node.count_publishers(t) > 0, f"nobody publishes {topic}")

    def start(self, task: int, seed: int) -> int:
        for heard in (self.chunks, self.commands, self.poses, self.states, self.reports_heard):
            heard.clear()
        return self.probe.reset_scene("embedded", task, seed).episode

    def finish(self, episode: int) -> TaskState:
        self.probe.expect(
            lambda: any(state.episode == episode and state.done for state in self.states),
            "the episode does not end",
        )
        return next(state for state in self.states if state.episode == episode and state.done)

    def fingerprint(self, episode: int, step: int) -> str:
        """The bridge's hash over all simulator states of an episode up to a step."""
        wanted = {"episode": str(episode), "step": str(step)}

        def reported() -> bool:
            values = {key: self.probe.figure("libero_bridge_node", key) for key in wanted}
            return values == wanted

        self.probe.expect(reported, "the bridge does not report the last step")
        found = self.probe.figure("libero_bridge_node", "state_sha256")
        assert found is not None
        return found


@pytest.fixture(scope="module")
def theatre(tmp_path_factory: pytest.TempPathFactory, random_bundle_path: Path) -> Iterator[Theatre]:
    folder = tmp_path_factory.mktemp("graph")
    world = {"autostart": False, "max_steps": STEPS, "resend_after_s": 0.5}
    with (
        probe_domain() as (probe, domain),
        active("controller_node", probe, domain, folder),
        active("policy_node", probe, domain, folder, bundle=str(random_bundle_path)) as policy,
        active("libero_bridge_node", probe, domain, folder, **world),
    ):
        yield Theatre(probe, policy, str(random_bundle_path))


def test_an_episode_executes_bit_for_bit_what_the_policy_said_and_the_arm_moves(theatre: Theatre) -> None:
    state = theatre.finish(theatre.start(task=0, seed=1))
    assert (state.step, state.max_steps, state.success) == (STEPS, STEPS, False)
    said = {chunk.decision_id: np.asarray(chunk.raw_actions).reshape(-1, 7) for chunk in theatre.chunks}
    done = {to_ns(c.header.stamp): c for c in theatre.commands if not c.hold}
    assert len(done) >= STEPS
    for command in done.values():
        assert np.asarray(command.raw_action).tobytes() == said[command.decision_id][command.row].tobytes()
    places = [np.array([p.pose.position.x, p.pose.position.y, p.pose.position.z]) for p in theatre.poses]
    assert np.linalg.norm(places[-1] - places[0]) > 0.01


def test_two_lockstep_runs_with_one_seed_agree_in_every_bit(theatre: Theatre) -> None:
    prints = []
    for task, seed in ((0, 3), (0, 3), (0, 4)):
        episode = theatre.start(task, seed)
        theatre.finish(episode)
        prints.append(theatre.fingerprint(episode, STEPS))
    assert prints[0] == prints[1]
    assert prints[0] != prints[2]


def test_another_task_loads_and_tells_the_policy_its_instruction(theatre: Theatre) -> None:
    theatre.finish(theatre.start(task=2, seed=0))
    assert {chunk.instruction for chunk in theatre.chunks if not chunk.hold} == {
        "Pick up the can and place it in the basket"
    }


def test_a_stopped_arm_holds_while_the_world_goes_on(theatre: Theatre) -> None:
    theatre.probe.call(Trigger, "/stop", Trigger.Request(), 30.0)
    theatre.finish(theatre.start(task=2, seed=0))
    assert all(command.hold for command in theatre.commands)
    places = np.array([[p.pose.position.x, p.pose.position.y, p.pose.position.z] for p in theatre.poses])
    assert np.ptp(places, axis=0).max() < 0.01
    theatre.probe.call(Trigger, "/clear_stop", Trigger.Request(), 30.0)
    theatre.finish(theatre.start(task=2, seed=0))
    assert any(not command.hold for command in theatre.commands)


def test_an_unknown_suite_or_task_is_refused_in_words(theatre: Theatre) -> None:
    with pytest.raises(BringUpError, match="task 99 does not exist"):
        theatre.start(task=99, seed=0)
    with pytest.raises(BringUpError, match="Unknown suite 'kitchen'"):
        theatre.probe.reset_scene("kitchen", 0, 0)


def test_a_killed_policy_freezes_the_world_and_a_new_one_goes_on(theatre: Theatre, tmp_path: Path) -> None:
    """The last test of this file: it kills the policy that the others use.

    The new policy counts its decisions from 1; the controller accepts that as soon as DDS has told it
    that the old one is gone.
    """
    theatre.policy.kill()
    episode = theatre.start(task=2, seed=0)
    theatre.probe.expect_complaint("libero_bridge_node", "waits in step 0")
    assert {state.step for state in theatre.states if state.episode == episode} == {0}
    theatre.probe.expect(
        lambda: "policy_node" not in theatre.probe.node.get_node_names(), "DDS does not notice the death"
    )
    with active("policy_node", theatre.probe, theatre.probe.domain, tmp_path, bundle=theatre.bundle):
        theatre.finish(episode)
