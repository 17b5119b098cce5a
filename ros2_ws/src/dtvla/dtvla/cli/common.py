"""What the commands share: exit statuses, the terminal, options that several of them have."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from tyro.conf import arg

from dtvla.bringup.graph import sentences
from dtvla.errors import InputError
from dtvla.policy.options import BackendName

OK, FAILED, INTERRUPTED, INTERNAL = 0, 1, 130, 70  # 70: EX_SOFTWARE of sysexits.h
MOST_TASKS = 1000  # as the bridge's parameter `task`

console = Console()

# The options of a command as one dataclass: each field an option, without a prefix.
FLAT: Any = arg(name="")


def graph_option(name: str, **more: Any) -> Any:
    """An option of the graph, with the sentence that stands there (`dtvla.bringup.graph.GraphOptions`)."""
    return arg(help=sentences()[name], **more)


@dataclass(frozen=True)
class PolicyChoice:
    """Which policy is run, and how."""

    bundle: Annotated[str | None, arg(aliases=("--policy",))] = None
    """Folder of the policy bundle. Default: the bundle that ships with dtvla."""
    backend: Annotated[BackendName, graph_option("backend")] = "auto"
    workers: int = 0
    """Processes to use. Default: one per processor."""
    assets: Path | None = None
    """Folder or tar archive with LIBERO's assets. Default: DTVLA_ASSETS, or what was fetched."""

    @property
    def processes(self) -> int:
        """So many workers as asked for, or one per processor."""
        return self.workers or os.cpu_count() or 1


@dataclass(frozen=True)
class ReservedDomain:
    """In which ROS domain a graph runs."""

    domain: int | None = None
    """ROS domain to use. Default: a free one."""
    join: bool = False
    """Use --domain even if other ROS programs are in it (for example rviz)."""


def tell(words: str) -> None:
    """Says what is going on, on a line of its own."""
    console.print(f"  {words}", markup=False, highlight=False)


def use_assets(assets: Path | None) -> None:
    """Names the assets for this process and all that it starts."""
    from dtvla.sim.assets import VARIABLE

    if assets is not None:
        os.environ[VARIABLE] = str(assets.expanduser().resolve())


def task_numbers(words: str) -> tuple[int, ...]:
    """`0-3,7` as numbers.

    Raises:
        InputError: it is no such list, or beyond any suite.
    """
    found: list[int] = []
    for part in filter(None, words.replace(" ", "").split(",")):
        first, _, last = part.partition("-")
        if not first.isdigit() or (last and not last.isdigit()) or part.endswith("-"):
            raise InputError(f"--tasks takes numbers and ranges such as 0-9 or 0,3,5, not '{words}'.")
        if int(last or first) > MOST_TASKS:
            raise InputError(f"--tasks '{words}' is beyond any suite; numbers up to {MOST_TASKS} are taken.")
        found += range(int(first), int(last or first) + 1)
    return tuple(dict.fromkeys(found))
