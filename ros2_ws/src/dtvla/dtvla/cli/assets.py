"""The commands around LIBERO's assets: `dtvla assets fetch`, `check` and `path`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tyro.extras import SubcommandApp

from dtvla.cli.common import OK, console, use_assets

if TYPE_CHECKING:
    from dtvla.sim.assets import Assets

assets_app = SubcommandApp()


@assets_app.command
def fetch(assets: Path | None = None) -> int:
    """Get LIBERO's assets and use them from now on. The embedded suite needs none.

    Args:
        assets: Folder or tar archive that holds them. Default: the hub, where hf-libero looks for them.
    """
    from rich.progress import Progress

    from dtvla.sim.assets import install

    with Progress(console=console) as progress:
        bar = progress.add_task("from the hub" if assets is None else f"from {assets.name}", total=1.0)
        got = install(assets, lambda share: progress.update(bar, completed=share))
    _describe(got)
    return OK


@assets_app.command(name="check")
def check_assets(assets: Path | None = None) -> int:
    """Say which assets are in use, and build one scene of each LIBERO suite with them (half a minute).

    Args:
        assets: Folder or tar archive to look at. Default: DTVLA_ASSETS, or what was fetched.
    """
    from dtvla.sim.assets import describe
    from dtvla.sim.env import SUITES, SimEnv
    from dtvla.sim.suites import embedded

    use_assets(assets)
    _describe(describe())
    for suite in SUITES:
        if suite not in embedded.SUITES:
            with console.status(f"Building a scene of {suite} ..."):
                env = SimEnv(suite, 0, render=False)
                env.reset(0)
                env.close()
                del env
            console.print(f"  [green]well[/]  {suite}: task 0 builds and settles")
    return OK


@assets_app.command
def path(assets: Path | None = None) -> int:
    """Print the folder that LIBERO's assets are read from.

    Args:
        assets: Folder or tar archive to look at. Default: DTVLA_ASSETS, or what was fetched.
    """
    from dtvla.sim.assets import find

    use_assets(assets)
    print(find())
    return OK


def _describe(assets: Assets) -> None:
    console.print(assets.label, highlight=False, markup=False)
    console.print(f"  folder  {assets.folder}", highlight=False, markup=False)
    console.print(f"  files   {assets.files}, SHA-256 {assets.digest}", highlight=False, soft_wrap=True)
