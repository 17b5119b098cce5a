"""What can be read of a bag, as a user would: repaired first where it was never closed."""

from __future__ import annotations

from pathlib import Path

from rosbags.highlevel import AnyReader

from dtvla.nodes.recorder.bag_repair import repair
from dtvla.nodes.recorder.bag_writer import typestore


def readable(folder: Path) -> list[float]:
    """Receive times (Unix, s) of all messages of a bag that a standard reader finds, in order."""
    if not (folder / "metadata.yaml").is_file():
        folder = repair(folder).folder
    with AnyReader([folder], default_typestore=typestore()) as reader:
        return [stamp_ns / 1e9 for _, stamp_ns, _ in reader.messages()]
