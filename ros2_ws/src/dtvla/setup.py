"""Packages dtvla for colcon (ament_python) and for `pip install -e`.

The folders launch/ and urdf/ live at the top of the repository and are installed into share/dtvla.
"""

import os
import xml.etree.ElementTree as ET
from pathlib import Path

from setuptools import find_packages, setup

# colcon --symlink-install runs this file through a link in its build folder, hence the resolve().
PACKAGE = Path(__file__).resolve().parent
REPOSITORY = PACKAGE.parents[2]

# One executable per node for `ros2 run` and launch; a test compares them with dtvla/bringup/graph.py.
NODES = {
    "console_node": "viewers",
    "controller_node": "controller",
    "libero_bridge_node": "bridge",
    "lifecycle_manager_node": "lifecycle",
    "policy_node": "policy",
    "reasoning_markers_node": "viewers",
    "reasoning_overlay_node": "viewers",
    "recorder_node": "recorder",
}


def share(folder: Path, name: str) -> list[tuple[str, list[str]]]:
    """Lists (install folder, files) for everything below `folder`, to be installed as share/dtvla/`name`."""
    groups: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            target = Path("share/dtvla", name, path.parent.relative_to(folder))
            groups.setdefault(str(target), []).append(os.path.relpath(path))
    return list(groups.items())


setup(
    name="dtvla",
    version=ET.parse(PACKAGE / "package.xml").getroot().findtext("version"),
    description="Deployment runtime for DeepThinkVLA policies: see, think aloud, move the arm.",
    license="Apache-2.0",
    maintainer="The dtvla authors",
    maintainer_email="dtvla@users.noreply.github.com",
    packages=find_packages(include=["dtvla", "dtvla.*"]),
    python_requires=">=3.10",
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/dtvla"]),
        ("share/dtvla", ["package.xml"]),
        *share(REPOSITORY / "launch", "launch"),
        *share(REPOSITORY / "urdf", "urdf"),
        *share(PACKAGE / "bundles", "bundles"),
        *share(PACKAGE / "config", "config"),
        *share(PACKAGE / "report", "report"),
    ],
    entry_points={
        "console_scripts": [
            "dtvla = dtvla.cli.main:main",
            *(f"{node} = dtvla.nodes.{folder}.{node}:main" for node, folder in NODES.items()),
        ]
    },
)
