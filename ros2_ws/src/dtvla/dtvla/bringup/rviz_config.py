"""What our rviz configuration subscribes to, and where these topics are for one of several robots. No ROS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from dtvla.bringup.graph import GraphOptions

CONFIG = "urdf/dtvla.rviz"
TRANSFORMS = ("/tf", "/tf_static")


def remappings(config: Path, cameras: str) -> list[tuple[str, str]]:
    """Pairs (from, to): each topic of an rviz configuration lies in rviz's own namespace, or is a camera's.

    Args:
        config: the rviz configuration, whose topics are absolute.
        cameras: as in `GraphOptions`.

    Raises:
        ValueError: `cameras` is no list of `name=topic`.
    """
    others = GraphOptions(bundle=Path(), cameras=cameras).camera_topics()
    elsewhere = {f"/{name}/image_raw": topic for name, topic in others.items()}
    return [(topic, elsewhere.get(topic, topic[1:])) for topic in (*topics(config), *TRANSFORMS)]


def topics(config: Path) -> list[str]:
    """The topics that an rviz configuration subscribes to."""
    displays = yaml.safe_load(config.read_text())["Visualization Manager"]["Displays"]
    return sorted(set(_topics(displays)))


def _topics(item: Any) -> Iterator[str]:
    """Values of the properties whose name ends in "Topic", however deep they are."""
    pairs = item.items() if isinstance(item, dict) else enumerate(item)
    for name, value in pairs:
        if str(name).endswith("Topic") and isinstance(value, dict):
            yield str(value["Value"])
        elif isinstance(value, (dict, list)):
            yield from _topics(value)
