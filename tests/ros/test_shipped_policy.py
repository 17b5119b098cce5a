"""The main job with the policy that ships: one episode in lockstep, as `make demo` runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rosbags.highlevel import AnyReader

from dtvla.nodes.recorder.bag_writer import typestore
from dtvla.sim.thoughts import parse_thought

pytestmark = [pytest.mark.ros, pytest.mark.sim]
STEPS = 120


def test_the_shipped_policy_thinks_in_sentences_that_can_be_checked_and_moves_the_arm(tmp_path: Path) -> None:
    """Whether it solves this one episode is no matter here: `dtvla eval` measures that."""
    line = [sys.executable, "-m", "dtvla.cli", "demo", "--episodes", "1", "--max-steps", str(STEPS)]
    done = subprocess.run([*line, "--output", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = next(tmp_path.iterdir())
    episode = json.loads((folder / "report.json").read_text())["episodes"][0]
    assert episode["success"] or episode["steps"] == STEPS
    thoughts: dict[int, str] = {}
    places = []
    with AnyReader([folder / "bag"], default_typestore=typestore()) as reader:
        for connection, _, raw in reader.messages():
            if connection.topic == "/policy/action_chunk":
                chunk = reader.deserialize(raw, connection.msgtype)
                thoughts[chunk.decision_id] = chunk.thought
            elif connection.topic == "/ee_pose":
                places.append(reader.deserialize(raw, connection.msgtype).pose.position)
    assert len(thoughts) == episode["decisions"]
    readable = [parse_thought(text) for text in thoughts.values()]
    assert sum(thought.phase is not None for thought in readable) > 0.8 * len(readable)
    assert max(place.z for place in places) - min(place.z for place in places) > 0.05
