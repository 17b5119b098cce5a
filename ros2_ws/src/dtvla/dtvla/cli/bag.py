"""The commands around recordings: `dtvla bag repair`."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional
from tyro.extras import SubcommandApp

from dtvla.cli.common import OK, console

bags = SubcommandApp()


@bags.command
def repair(path: Positional[Path]) -> int:
    """Make a bag readable that was never closed: its recorder was killed, or its disk was full.

    Args:
        path: Folder of the bag. It stays as it is; the result is written beside it.
    """
    from dtvla.nodes.recorder.bag_repair import repair as salvage

    result, messages = salvage(path)
    console.print(f"{messages} messages are in {result}", soft_wrap=True, highlight=False, markup=False)
    return OK
