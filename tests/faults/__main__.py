"""`make faults`: breaks the running graph in every way of the matrix and writes docs/results/faults.md."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.faults.matrix import all_faults
from tests.faults.report import write
from tests.faults.run import LAUNCHED, Result, Runner, launcher_faults

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = "launcher"


def main(
    only: tuple[str, ...] = (),
    seed: int = 0,
    results: Path | None = None,
    minutes: float = 60.0,
    output: Path | None = None,
    list_only: bool = False,
) -> int:
    """Breaks the running graph on purpose and says whether it bore it. Exit status 1 when it did not.

    Args:
        only: Names (or their beginnings) of the faults to try. All of them: about 20 minutes.
        seed: Decides at which moments the faults strike.
        results: Folder for faults.md and faults.json, which say what was not tried. Default: docs/results;
            with --only nothing is written unless a folder is named.
        minutes: No fault begins after so many minutes; what is left is listed as not tried.
        output: Folder for logs and recordings. Default: a temporary one, which stays when something failed.
        list_only: Print the names and end.
    """
    console = Console()
    faults = [fault for fault in all_faults() if not only or fault.name.startswith(only)]
    with_launcher = not only or any(LAUNCHER.startswith(name) or name.startswith(LAUNCHER) for name in only)
    if list_only:
        for fault in faults:
            console.print(f"{fault.name:20} {fault.what}", highlight=False)
        return 0
    if not faults and not with_launcher:
        console.print(f"No fault is called {' or '.join(only)}. --list-only shows them.")
        return 2
    folder = output or Path(tempfile.mkdtemp(prefix="dtvla_faults_"))
    began_s, found = time.monotonic(), []
    place = results or (None if only else ROOT / "docs/results")
    names = [fault.name for fault in all_faults()] + list(LAUNCHED)
    words = " ".join([*(["--only", *only] if only else []), f"--seed {seed}", f"--minutes {minutes:g}"])
    command = f"make faults ARGS='{words}'"
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("faults", total=len(faults) + 2 * with_launcher)

        def tell(words: str) -> None:
            progress.update(task, description=words[:60])

        def take(result: Result) -> None:
            found.append(result)
            progress.advance(task)
            mark = "[green]survived[/] " if result.well else "[bold red]FAILED[/]"
            hold = (
                f"held after {result.fault_to_hold_ms:.0f} ms" if result.fault_to_hold_ms is not None else ""
            )
            back = f"back after {result.recovery_s:.1f} s" if result.recovery_s is not None else ""
            progress.console.print(f"{mark} {result.name:20} {hold:22} {back:18} ", end="", highlight=False)
            progress.console.print(result.failure, highlight=False, markup=False)
            if place is not None:  # after each: what ends early leaves what it found
                write(found, place, command, time.monotonic() - began_s, names)

        runner = Runner(folder, seed, tell)
        for result in runner.run(faults, until_s=began_s + 60 * minutes):
            take(result)
        if with_launcher and time.monotonic() < began_s + 60 * minutes:
            for result in launcher_faults(folder, tell):
                take(result)
    well = all(result.well for result in found)
    console.print(f"{sum(r.well for r in found)} of {len(found)} faults were survived. Logs: {folder}")
    if place is not None:
        console.print(f"Written: {place / 'faults.md'}")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
