"""How a node's process ends when it is told to."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from harness import PATIENCE_S, active, probe_domain

pytestmark = pytest.mark.ros


def test_further_ctrl_cs_do_not_interrupt_the_ending_of_a_node(tmp_path: Path) -> None:
    """The terminal and `ros2 launch` both send SIGINT: the second one left a traceback and status -2."""
    with probe_domain() as (probe, domain), active("controller_node", probe, domain, tmp_path) as node:
        deadline = time.monotonic() + PATIENCE_S
        while node.alive and time.monotonic() < deadline:
            node.process.send_signal(signal.SIGINT)
            time.sleep(0.005)
        assert node.process.poll() == 0
        assert "Traceback" not in node.log.read_text()
