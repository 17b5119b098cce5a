"""The pictures of the documentation come from a graph that really runs; this draws them once more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dtvla.evaluation.video import KEPT as KEPT_INK
from dtvla.evaluation.video import SIZE
from dtvla.nodes.viewers.marker_view import CAREFUL, GOOD, KEPT, PATH

pytestmark = [pytest.mark.ros, pytest.mark.sim]
MOST_BYTES = 200_000


def pixels_like(picture: np.ndarray, colour: tuple[float, ...]) -> int:
    return int((np.abs(picture.astype(int) - np.array(colour[:3])).max(axis=2) < 12).sum())


def test_a_running_graph_is_drawn_with_path_words_events_and_overlay(tmp_path: Path) -> None:
    # A process of its own: MuJoCo's renderer and triton in one process crash.
    command = [sys.executable, "-m", "tools.figures.markers", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    markers = np.asarray(Image.open(tmp_path / "markers.png").convert("RGB"))
    for colour in (PATH, KEPT, GOOD):  # the path, words that were kept, the controller's state
        assert pixels_like(markers, tuple(255 * part for part in colour)) > 20
    amber = markers.astype(int) @ [1, 0, -1] > 40  # the gripper's event, which fades over the background
    assert CAREFUL[0] > CAREFUL[2]
    assert amber.sum() > 50
    overlay = np.asarray(Image.open(tmp_path / "overlay.png"))
    assert overlay.shape == (SIZE[1], SIZE[0], 3)
    assert pixels_like(overlay, KEPT_INK) > 20
    assert overlay[48:432, :768].std() > 20  # both cameras show something
    for name in ("markers.png", "overlay.png"):
        assert (tmp_path / name).stat().st_size < MOST_BYTES
