"""LIBERO's own suites behind the bridge: one process serves all of them, one after the other."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import Probe, active, probe_domain
from numpy.typing import NDArray
from sensor_msgs.msg import Image
from std_msgs.msg import String

from dtvla.nodes.common import qos
from dtvla.nodes.common.conversions import picture_from
from dtvla.nodes.lifecycle.graph_client import BringUpError
from dtvla.sim import assets
from dtvla.sim.env import SimEnv
from dtvla_msgs.msg import TaskState

pytestmark = [pytest.mark.ros, pytest.mark.sim]
CAMERAS = ("agentview", "wrist")
SOLVED = {"libero_object": 6, "libero_spatial": 0, "libero_goal": 8, "libero_10": 7}  # a task of each


class Bridge:
    """A bridge whose client is the expert, and what it says."""

    def __init__(self, probe: Probe, folder: Path) -> None:
        self.probe, self.folder = probe, folder
        self.results = probe.listen(String, "/episode_result", qos.LATCHED)
        self.states = probe.listen(TaskState, "/task_state", qos.LATCHED)
        self.images = {name: probe.listen(Image, f"/{name}/image_raw", qos.SENSOR) for name in CAMERAS}

    def result(self, episode: int) -> dict[str, Any]:
        def found() -> list[dict[str, Any]]:
            return [
                said
                for said in map(json.loads, (m.data for m in self.results))
                if said.get("episode") == episode
            ]

        self.probe.expect(lambda: bool(found()), "the episode monitor says nothing", 120.0)
        return dict(found()[0]["result"])


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory, libero_assets: str) -> Iterator[Bridge]:
    folder = tmp_path_factory.mktemp("libero")
    os.environ[assets.VARIABLE] = libero_assets
    world = {"autostart": False, "script": "expert", "examine": True, "resend_after_s": 0.5}
    try:
        with (
            probe_domain() as (probe, domain),
            active("libero_bridge_node", probe, domain, folder, **world),
        ):
            yield Bridge(probe, folder)
    finally:
        del os.environ[assets.VARIABLE]


def _seen(suite: str, task: int, seed: int) -> dict[str, NDArray[np.uint8]]:
    env = SimEnv(suite, task)
    images = env.reset(seed).images
    env.close()
    return images


def test_pictures_leave_the_bridge_upright_and_as_the_simulator_shows_them(bridge: Bridge) -> None:
    """Without a controller the world waits in its first step, so that there is time to look."""
    task = SOLVED["libero_object"]
    bridge.probe.reset_scene("libero_object", task, 0)
    bridge.probe.expect(lambda: all(bridge.images.values()), "no pictures come")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        seen = pool.apply(_seen, ("libero_object", task, 0))
    for name in CAMERAS:
        there = picture_from(bridge.images[name][-1], name)
        np.testing.assert_array_equal(there, seen[name])
        assert (there != there[::-1, ::-1]).any()
    (state,) = {(s.suite, s.task, s.seed, s.step, s.max_steps, s.success) for s in bridge.states}
    assert state == ("libero_object", task, 0, 0, 280, False)


@pytest.mark.parametrize("suite", SOLVED)
def test_the_expert_solves_a_task_of_each_suite_through_the_graph(suite: str, bridge: Bridge) -> None:
    """Stand-in assets or the hub's: the result says which."""
    with active("controller_node", bridge.probe, bridge.probe.domain, bridge.folder):
        episode = bridge.probe.reset_scene(suite, SOLVED[suite], 0).episode
        result = bridge.result(episode)
    assert (result["success"], result["outcome"], result["error"]) == (True, "solved", "")
    last = [s for s in bridge.states if s.episode == episode][-1]
    assert (last.suite, last.success, last.done, last.step) == (suite, True, True, result["steps"])


def test_an_empty_suite_keeps_the_present_one(bridge: Bridge) -> None:
    present = bridge.states[-1].suite
    bridge.states.clear()
    bridge.probe.reset_scene("", 0, 0)
    bridge.probe.expect(lambda: bool(bridge.states), "no state comes")
    assert {state.suite for state in bridge.states} == {present}


def test_what_the_expert_cannot_do_is_refused_in_words_and_no_episode_begins(bridge: Bridge) -> None:
    with pytest.raises(BringUpError, match="not reset: The expert only picks and places"):
        bridge.probe.reset_scene("libero_goal", 7, 0)


def test_without_assets_the_bridge_says_what_to_do_and_plays_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(assets.VARIABLE, str(tmp_path / "nowhere"))
    with (
        probe_domain() as (probe, domain),
        active("libero_bridge_node", probe, domain, tmp_path, autostart=False) as process,
    ):
        states = probe.listen(TaskState, "/task_state", qos.LATCHED)
        probe.reset_scene("embedded", 0, 4)
        probe.expect(lambda: bool(states), "no state comes")
        with pytest.raises(BringUpError, match=r"not reset: No assets at .*nowhere.*dtvla assets fetch"):
            probe.reset_scene("libero_goal", 8, 0)
        assert process.alive
        assert probe.reset_scene("embedded", 0, 5).episode == 2, "the embedded suite needs none"
