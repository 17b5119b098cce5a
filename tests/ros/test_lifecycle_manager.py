"""The lifecycle manager as a process of its own, beside real nodes, as `ros2 launch` has it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from harness import PATIENCE_S, NodeProcess, Probe, probe_domain
from lifecycle_msgs.srv import ChangeState, GetState

from dtvla.bringup.graph import MANAGER
from dtvla.nodes.lifecycle.bring_up import PrimaryState

pytestmark = pytest.mark.ros
CONTROLLER, MARKERS = "controller_node", "reasoning_markers_node"


def manager(domain: int, folder: Path, nodes: str, **more: object) -> NodeProcess:
    return NodeProcess(MANAGER.name, domain, folder, nodes=nodes, **more)


def state_of(probe: Probe, node: str) -> int:
    return int(probe.call(GetState, f"{node}/get_state", GetState.Request(), PATIENCE_S).current_state.id)


def expect_active(probe: Probe, node: str) -> None:
    probe.expect(lambda: state_of(probe, node) == PrimaryState.ACTIVE, f"{node} does not become active")


def test_it_brings_the_nodes_up_in_its_order_and_leaves_them_to_the_operator(tmp_path: Path) -> None:
    with (
        probe_domain() as (probe, domain),
        NodeProcess(MARKERS, domain, tmp_path),
        NodeProcess(CONTROLLER, domain, tmp_path),
        manager(domain, tmp_path, f"{MARKERS},{CONTROLLER}") as process,
    ):
        expect_active(probe, CONTROLLER)
        expect_active(probe, MARKERS)
        words = process.log.read_text()
        assert words.index(f"activating {MARKERS}") < words.index(f"activating {CONTROLLER}")
        deactivation = ChangeState.Request()
        deactivation.transition.id = deactivation.transition.TRANSITION_DEACTIVATE
        assert probe.call(ChangeState, f"{MARKERS}/change_state", deactivation, PATIENCE_S).success
        probe.wait(lambda: False, 3.0)
        assert state_of(probe, MARKERS) == PrimaryState.INACTIVE
        assert "All is well." in probe.reports[MANAGER.name].message
        process.process.send_signal(signal.SIGINT)
        assert process.process.wait(PATIENCE_S) == 0


def test_a_node_of_a_namespace_is_brought_up_by_the_manager_of_that_namespace(tmp_path: Path) -> None:
    with (
        probe_domain() as (probe, domain),
        NodeProcess(CONTROLLER, domain, tmp_path, namespace="left"),
        manager(domain, tmp_path, CONTROLLER, namespace="left"),
    ):
        expect_active(probe, f"left/{CONTROLLER}")
        probe.expect(lambda: f"left/{MANAGER.name}" in probe.reports, "the manager does not report")


def test_a_node_that_refuses_ends_the_manager_with_its_sentence(tmp_path: Path) -> None:
    with (
        probe_domain() as (_, domain),
        NodeProcess(CONTROLLER, domain, tmp_path, robot="hal9000"),
        manager(domain, tmp_path, CONTROLLER) as process,
    ):
        assert process.process.wait(PATIENCE_S) == 1
        words = process.log.read_text()
        assert "controller_node could not configure: Parameter 'robot' is 'hal9000'" in words
        assert "Traceback" not in words


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        (CONTROLLER, "controller_node did not appear within 2 s."),
        ("left//robot", "Parameter 'nodes' has 'left//robot'"),
    ],
)
def test_without_its_nodes_or_with_a_wrong_parameter_it_ends_with_a_sentence(
    nodes: str, words: str, tmp_path: Path
) -> None:
    with (
        probe_domain() as (_, domain),
        manager(domain, tmp_path, nodes, start_timeout_s=2.0) as process,
    ):
        assert process.process.wait(PATIENCE_S) == 1
        assert words in process.log.read_text()
        assert "Traceback" not in process.log.read_text()


def test_a_killed_node_that_somebody_starts_anew_is_brought_up_again(tmp_path: Path) -> None:
    """Discovery still knows the dead one: its successor must be told from it."""
    with (
        probe_domain() as (probe, domain),
        NodeProcess(CONTROLLER, domain, tmp_path) as first,
        manager(domain, tmp_path, CONTROLLER) as process,
    ):
        expect_active(probe, CONTROLLER)
        for times in (2, 3):  # a question of ours might be lost as well, so the manager's word has to do
            first.kill()
            first = NodeProcess(CONTROLLER, domain, tmp_path)
            with first:
                probe.expect(
                    lambda n=times: process.log.read_text().count("All nodes are active.") == n,
                    "it is not brought up again",
                )
                first.kill()
        assert process.log.read_text().count("controller_node was started anew") == 2
        assert process.alive


def test_a_node_that_hangs_is_named_in_the_diagnostics_until_it_reports_again(tmp_path: Path) -> None:
    with (
        probe_domain() as (probe, domain),
        NodeProcess(CONTROLLER, domain, tmp_path) as node,
        manager(domain, tmp_path, f"{CONTROLLER}=3"),
    ):
        expect_active(probe, CONTROLLER)
        node.process.send_signal(signal.SIGSTOP)
        probe.expect_complaint(MANAGER.name, "controller_node has not reported for 3 s.")
        node.process.send_signal(signal.SIGCONT)
        probe.expect(lambda: not probe.complaint(MANAGER.name), "it is not forgiven")
        assert state_of(probe, CONTROLLER) == PrimaryState.ACTIVE
