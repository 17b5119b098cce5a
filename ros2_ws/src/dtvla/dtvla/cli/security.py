"""The command `dtvla security`: what SROS2 needs of us."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional
from tyro.extras import SubcommandApp

from dtvla.cli.common import OK, console
from dtvla.policy.options import CAMERAS

security_app = SubcommandApp()


@security_app.command
def generate(
    folder: Positional[Path],
    namespace: str = "",
    robots: str = "",
    cameras: str = ",".join(CAMERAS),
    remap: tuple[str, ...] = (),
) -> int:
    """Write the SROS2 policy: for every node, exactly the topics, services and actions that it uses.

    It is for a ROS installation with security (`ros2 security`); docs/security.md says how to go on.

    Args:
        folder: Where policy.xml goes.
        namespace: Namespace that the graph is launched in.
        robots: Namespaces of several robots that one policy node serves (its parameter robots),
            comma-separated.
        cameras: Names of the robot's cameras, comma-separated.
        remap: Names that you remap when you launch, such as target_pose:=/arm/target_pose.
    """
    from dtvla.bringup.sros2 import RobotSite, grants, remappings, write

    site = RobotSite(namespace, _names(robots), _names(cameras), remappings(remap))
    path = write(folder, site)
    console.print(f"{path}: {len(grants(site))} enclaves.", highlight=False, soft_wrap=True)
    keys = folder / "keystore"
    for line in (
        "Next, with the ROS_DOMAIN_ID that the graph will have:",
        f"  ros2 security create_keystore {keys}",
        f"  ros2 security generate_artifacts -k {keys} -p {path}",
        f"  export ROS_SECURITY_KEYSTORE={keys.resolve()}",
        "  export ROS_SECURITY_ENABLE=true ROS_SECURITY_STRATEGY=Enforce",
    ):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    return OK


def _names(words: str) -> tuple[str, ...]:
    return tuple(name.strip().strip("/") for name in words.split(",") if name.strip())
