"""The commands around recordings: `dtvla bag repair`."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional
from tyro.extras import SubcommandApp

from dtvla.cli.common import OK, console
from dtvla.errors import plain

bags = SubcommandApp()


@bags.command
def repair(path: Positional[Path]) -> int:
    """Make a bag readable that was never closed (recorder killed, disk full), or that is damaged inside.

    Args:
        path: Folder of the bag. It stays as it is; the result is written beside it.
    """
    from dtvla.nodes.recorder import bag_repair

    repaired = bag_repair.repair(path)
    lines = [f"{repaired.messages} messages are in {repaired.folder}"]
    lines += [f"{count} messages of {plain(topic)} are lost" for topic, count in repaired.lost.items()]
    lines += [
        f"The name or type of {plain(topic)} was read from a damaged place and may be wrong"
        for topic in repaired.unconfirmed
    ]
    if not repaired.exact:
        lines.append(
            "The bag was never closed, or its count is lost: there may have been others at its damage or end."
        )
    console.print("\n".join(lines), soft_wrap=True, highlight=False, markup=False)
    return OK
