"""lerobot opens what we write, and we open what lerobot writes. Skipped unless lerobot is at hand."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from dataset_samples import CAMERAS, CODEC_ERROR, FPS, episode, write

from training.datasets.lerobot.layout import V21, V30
from training.datasets.lerobot.reading import DatasetReader

SCRIPT = Path(__file__).with_name("lerobot_interop.py")
PYTHONS = {V30: "DTVLA_LEROBOT_PYTHON", V21: "DTVLA_LEROBOT_V2_PYTHON"}
LEROBOTS_CODEC_ERROR = 40  # it writes AV1 at a lower quality


def lerobot(version: str, *arguments: object) -> None:
    """Runs the other side in lerobot's own Python, or skips the test."""
    python = os.environ.get(PYTHONS[version])
    if python is None:
        pytest.skip(f"{PYTHONS[version]} names no Python with lerobot; make test-all makes one")
    # Without the path that pytest has: lerobot is to find its own packages only.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [python, str(SCRIPT), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("version", [V30, V21])
def test_lerobot_opens_what_we_write(tmp_path, version, kind):
    state = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
    episodes = [episode(number, 5, pixels=32, state=state + number) for number in range(3)]
    folder = write(tmp_path / "data", episodes, version, video=kind == "video")
    lerobot(version, "read", folder, tmp_path / "found.npz")
    with np.load(tmp_path / "found.npz") as found:
        assert found["episodes"].tolist() == [i for i in range(3) for _ in range(5)]
        assert found["cameras"].tolist() == list(CAMERAS)
        assert np.array_equal(found["action"], np.concatenate([each.actions for each in episodes]))
        assert np.array_equal(found["action_chunk"], np.concatenate([each.chunks for each in episodes]))
        assert np.array_equal(found["observation.state"], np.concatenate([each.state for each in episodes]))
        assert found["reasoning"].tolist() == [text for each in episodes for text in each.thoughts]
        assert found["tasks"].tolist() == [task for each in episodes for task in each.tasks]
        assert found["next.success"].reshape(3, 5)[:, -1].tolist() == [each.success for each in episodes]
        assert np.allclose(found["timestamp"].reshape(3, 5), np.arange(5) / FPS)
        images = np.concatenate([each.images for each in episodes]).astype(int)
        assert np.abs(found["images"] - images).max() <= (CODEC_ERROR if kind == "video" else 0)
        every = np.concatenate([each.actions for each in episodes]).astype(np.float64)
        assert np.allclose(found["stats_mean"], every.mean(0))
        if version == V30:  # lerobot 0.3.3 knows no quantiles
            assert np.allclose(found["stats_q01"], np.quantile(every, 0.01, axis=0))


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("version", [V30, V21])
def test_we_open_what_lerobot_writes(tmp_path, version, kind):
    lerobot(version, "write", tmp_path / "data", tmp_path / "given.npz", kind)
    reader = DatasetReader(tmp_path / "data", thoughts=True, action_dim=7)
    assert (reader.layout.version, reader.layout.fps, reader.cameras) == (version, 10, CAMERAS)
    episodes = [reader.read(position) for position in range(len(reader))]
    with np.load(tmp_path / "given.npz") as given:
        assert np.array_equal(np.concatenate([each.actions for each in episodes]), given["action"])
        assert [text for each in episodes for text in each.thoughts] == given["reasoning"].tolist()
        assert [task for each in episodes for task in each.tasks] == given["tasks"].tolist()
        images = np.concatenate([each.images for each in episodes]).astype(int)
        error = np.abs(images - given["images"]).max()
        assert error <= (LEROBOTS_CODEC_ERROR if kind == "video" else 0)
