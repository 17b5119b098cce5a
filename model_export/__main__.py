"""Command line: `python -m model_export CHECKPOINT --out BUNDLE`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from dtvla.policy.errors import BundleError
from model_export.bundle import export_bundle
from model_export.parity import ParityError
from training.checkpoint import CheckpointError, load_policy


@dataclass(frozen=True)
class Export:
    """Turns a checkpoint into a policy bundle: ONNX graphs, tokenizer and policy.json with all hashes."""

    checkpoint: tyro.conf.Positional[str]  # folder of a checkpoint, or a hub id owner/name
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]  # bundle directory to write; replaced when it exists


def main(config: Export) -> int:
    """Exports and prints how far the graphs are from torch; returns the exit code."""
    console = Console()
    try:
        policy = load_policy(config.checkpoint)
        with console.status("exporting vision and decoder graphs (a minute for a small policy)"):
            results = export_bundle(policy.model, policy.spec, policy.tokenizer, config.out)
    except (CheckpointError, BundleError, ParityError) as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}", highlight=False)
        return 1
    table = Table("phase", "max difference to torch", "tolerance")
    for result in results:
        table.add_row(result.phase, f"{result.difference:.1e}", f"{result.tolerance:.0e}")
    console.print(table)
    size = sum(file.stat().st_size for file in config.out.iterdir())
    console.print(f"{config.out}: {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Export, description=Export.__doc__)))
