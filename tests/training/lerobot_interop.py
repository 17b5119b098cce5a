"""The other side of the interop test: lerobot itself, in a Python of its own (see tools/lerobot_check.sh).

    PYTHON lerobot_interop.py read FOLDER OUT.npz     # what lerobot finds in a dataset that we wrote
    PYTHON lerobot_interop.py write FOLDER OUT.npz    # lerobot writes one; OUT.npz holds what went in

Knows nothing of this project, and is no test by itself.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is to come from anywhere else
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="lerobot_interop_")

import numpy as np
import torch

if "+cpu" in torch.__version__:
    # torchvision's compiled part does not load beside a torch it was not built for; its import only wants
    # this operator declared, and lerobot's datasets call none of them.
    torch.library.define("torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import lerobot
from lerobot.datasets.lerobot_dataset import LeRobotDataset

FPS, FRAMES, PIXELS = 10, (7, 4, 9), 32
CAMERAS = ("observation.images.image", "observation.images.wrist_image")
TASKS = ("pick up the can", "put the can in the basket")
# lerobot's default, torchcodec, needs FFmpeg's libraries on the machine.
BACKEND = os.environ.get("DTVLA_LEROBOT_VIDEO_BACKEND", "pyav")


def pictures(episode: int, frame: int) -> np.ndarray:
    """Smooth pictures [cameras, H, W, 3] that say which frame they are, and survive a video codec."""
    rows, columns = np.mgrid[:PIXELS, :PIXELS]
    seen = [
        np.stack(
            [rows * 4, columns * 4, np.full((PIXELS, PIXELS), 20 * frame + 5 * episode + 40 * camera)], -1
        )
        for camera in range(len(CAMERAS))
    ]
    return np.stack(seen).clip(0, 255).astype(np.uint8)


def read(folder: Path, out: Path) -> None:
    """Every item of the dataset, by lerobot's own indexing."""
    dataset = LeRobotDataset("dtvla/check", root=folder, video_backend=BACKEND)
    items = [dataset[i] for i in range(len(dataset))]
    cameras = dataset.meta.camera_keys
    found: dict[str, Any] = {
        "images": np.stack(
            [[(item[key] * 255).round().byte().permute(1, 2, 0) for key in cameras] for item in items]
        ),
        "tasks": np.array([item["task"] for item in items]),
        "episodes": np.array([int(item["episode_index"]) for item in items]),
        "stats_q01": np.asarray(dataset.meta.stats["action"].get("q01", np.nan)),
        "stats_mean": np.asarray(dataset.meta.stats["action"]["mean"]),
        "cameras": np.array(cameras),
    }
    for key in ("action", "action_chunk", "observation.state", "timestamp", "next.success"):
        if key in items[0]:
            found[key] = np.stack([item[key].numpy() for item in items])
    if "reasoning" in items[0]:
        found["reasoning"] = np.array([item["reasoning"] for item in items])
    np.savez(out, **found)


def write(folder: Path, out: Path, dtype: str) -> None:
    """A dataset by lerobot's own recorder; cameras are of this dtype ("image" or "video")."""
    picture = {"dtype": dtype, "shape": (PIXELS, PIXELS, 3), "names": ["height", "width", "channels"]}
    features = {key: dict(picture) for key in CAMERAS}
    features["action"] = {"dtype": "float32", "shape": (7,), "names": None}
    features["reasoning"] = {"dtype": "string", "shape": (1,), "names": None}
    dataset = LeRobotDataset.create("dtvla/check", FPS, features, root=folder, use_videos=dtype == "video")
    rng = np.random.default_rng(0)
    rows: dict[str, list[Any]] = {"images": [], "action": [], "reasoning": [], "tasks": []}
    for episode, frames in enumerate(FRAMES):
        for frame in range(frames):
            images, action = pictures(episode, frame), rng.normal(size=7).astype(np.float32)
            thought, task = f"thought {episode} {frame}", TASKS[episode % 2]
            item = dict(zip(CAMERAS, images)) | {"action": action, "reasoning": thought}  # noqa: B905
            if lerobot.__version__.startswith("0.3"):
                dataset.add_frame(item, task)
            else:
                dataset.add_frame(item | {"task": task})
            for key, value in zip(rows, (images, action, thought, task)):  # noqa: B905
                rows[key].append(value)
        dataset.save_episode()
    if hasattr(dataset, "finalize"):
        dataset.finalize()
    np.savez(out, **{key: np.array(values) for key, values in rows.items()})


if __name__ == "__main__":
    what, where, result = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if what == "read":
        read(where, result)
    else:
        write(where, result, sys.argv[4])
    print(f"lerobot {lerobot.__version__}, torch {torch.__version__}")
