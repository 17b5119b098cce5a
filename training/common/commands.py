"""Commands of several steps run each in a process of its own; here is how. Imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys

from rich.console import Console


def torchrun(processes: int) -> list[str]:
    """Arguments for Python in front of `-m MODULE`, so that so many processes of this machine run it."""
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]


def run_step(words: str, arguments: list[str], console: Console) -> int:
    """Says what is done, runs Python with these arguments, and returns the exit code."""
    console.print(f"[bold]{words}[/]  [dim]python {' '.join(arguments)}[/]")
    code = subprocess.run([sys.executable, *arguments], check=False).returncode
    if code != 0:
        console.print(f"Stopped at: {words}. The same command goes on from there.")
    return code
