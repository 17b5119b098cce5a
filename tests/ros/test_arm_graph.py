"""The hardware path in closed loop: the simulated Panda follows target poses, in lockstep."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from harness import probe_domain
from rclpy.qos import QoSProfile

from dtvla.bringup.graph import GraphOptions
from dtvla.bringup.launcher import RunningGraph
from dtvla.nodes.common.conversions import to_ns
from dtvla.nodes.controller.arm_output import TARGET
from dtvla.nodes.lifecycle.graph_client import GraphClient
from dtvla.resources import default_bundle

pytestmark = [pytest.mark.ros, pytest.mark.sim]
EPISODE_S = 240.0
STEPS = 30


def play(client: GraphClient, seed: int) -> tuple[bool, str]:
    """Whether an episode of the first task was solved, and the bridge's hash over all of its states."""
    episode = client.reset_scene("embedded", 0, seed).episode

    def over() -> bool:
        state = client.state
        return state is not None and state.episode == episode and state.done

    assert client.wait(over, EPISODE_S), "the episode does not end"
    assert client.state is not None
    wanted = {"episode": str(episode), "step": str(client.state.step)}

    def figures() -> dict[str, str]:
        return {item.key: item.value for item in client.reports["libero_bridge_node"].values}

    assert client.wait(lambda: wanted.items() <= figures().items(), EPISODE_S)
    return client.state.success, figures()["state_sha256"]


def graph(domain: int, folder: Path, max_steps: int) -> RunningGraph:
    options = GraphOptions(
        bundle=default_bundle(),
        robot="panda",
        autostart=False,
        console=False,
        max_steps=max_steps,
        output=folder,
    )
    return RunningGraph(options, domain)


def test_the_shipped_policy_solves_a_task_through_target_poses_within_the_arms_limits(tmp_path: Path) -> None:
    targets: list[PoseStamped] = []
    with probe_domain() as (_, domain):
        with graph(domain, tmp_path, 260) as running:
            node = running.client.node
            node.create_subscription(PoseStamped, f"/{TARGET}", targets.append, QoSProfile(depth=200))
            solved, _ = play(running.client, seed=10000)
        assert solved
        places = np.array([(t.pose.position.x, t.pose.position.y, t.pose.position.z) for t in targets])
        assert len(places) > 100
        ticks = np.diff([to_ns(target.header.stamp) for target in targets]) / 50e6
        lengths = np.linalg.norm(np.diff(places, axis=0), axis=1)
        assert (lengths <= 0.25 * 0.05 * ticks + 1e-9).all()


def test_two_runs_through_target_poses_agree_in_every_bit(tmp_path: Path) -> None:
    with probe_domain() as (_, domain), graph(domain, tmp_path, STEPS) as running:
        first, second, other = (play(running.client, seed)[1] for seed in (3, 3, 4))
    assert first == second != other
