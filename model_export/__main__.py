"""Command line: `python -m model_export CHECKPOINT --out BUNDLE`."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from dtvla.errors import BundleError
from model_export.bundle import DTYPES, export_bundle, size_mb
from model_export.errors import ExportError
from model_export.parity import Parity, ParityError
from model_export.quantise.calibration import calibrate, recorded_looks
from model_export.quantise.quantise_bundle import Kind, quantise_bundle
from model_export.typical_thoughts import with_typical
from training.model.hf_checkpoint import CheckpointError, load_policy


@dataclass(frozen=True)
class Export:
    """Turns a checkpoint into a policy bundle: ONNX graphs, tokenizer and policy.json with all hashes.

    fp32 runs everywhere. int8 is for CPUs: a third of the size, nearly twice as fast. bf16 and fp8 are for
    GPUs, fp16 for those that have no bf16. int8 and fp8 are calibrated on recorded episodes, whose thoughts
    are the first drafts of a bundle in any precision.
    """

    checkpoint: tyro.conf.Positional[str]  # folder of a checkpoint, or a hub id owner/name
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]  # bundle directory to write; replaced when it exists
    precision: Literal["fp32", "fp16", "bf16", "fp8", "int8"] = "fp32"  # of the weights
    calibrate: Path | None = None  # folder of `python -m training.collect`; int8 and fp8 need it
    engine: bool = False  # build TensorRT engines for this machine's GPU as well
    # weights in the graphs under the checkpoint's names, so that others can be put in (fp32, fp16, bf16)
    keep_names: bool = False


def export(config: Export) -> list[Parity]:
    """Writes the bundle; returns what was compared with torch (8-bit graphs: before they were quantised)."""
    if config.precision == "int8" or config.precision == "fp8":
        return _export_8bit(config, config.precision)
    policy = load_policy(config.checkpoint, DTYPES[config.precision])
    spec = with_typical(policy.spec, policy.tokenizer, config.calibrate)
    return export_bundle(
        policy.model, spec, policy.tokenizer, config.out, config.precision, keep_names=config.keep_names
    )


def _export_8bit(config: Export, kind: Kind) -> list[Parity]:
    if config.keep_names:
        raise ExportError(f"{kind} weights are other numbers than the checkpoint's: leave out --keep-names.")
    if config.calibrate is None:
        raise ExportError(
            f"{kind} needs ranges of activations: give --calibrate with a folder of recorded episodes "
            "(`python -m training.collect --episodes 8 --out data/calibrate` makes one)."
        )
    model, spec, tokenizer = load_policy(config.checkpoint)
    spec = with_typical(spec, tokenizer, config.calibrate)
    with tempfile.TemporaryDirectory(dir=config.out.parent) as scratch:
        plain = base = Path(scratch) / "fp32"
        results = export_bundle(model, spec, tokenizer, plain)
        ranges = calibrate(plain, recorded_looks(config.calibrate))
        if kind == "fp8":  # GPUs compute what is left in bf16
            base = Path(scratch) / "bf16"
            export_bundle(model.bfloat16(), spec, tokenizer, base, "bf16")
        quantise_bundle(base, config.out, ranges, kind, measured=plain)
    return results


def main(config: Export) -> int:
    """Exports and prints how far the graphs are from torch; returns the exit code."""
    console = Console()
    try:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        with console.status("exporting vision and decoder graphs (a minute for a small policy)"):
            results = export(config)
    except (CheckpointError, BundleError, ParityError, ExportError) as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}", highlight=False)
        return 1
    if results:
        table = Table("phase", "max difference to torch", "tolerance")
        for result in results:
            table.add_row(result.phase, f"{result.difference:.1e}", f"{result.tolerance:.0e}")
        console.print(table)
    else:
        console.print("Not compared with torch here: ONNX Runtime does not compute bf16 on a CPU.")
    console.print(f"{config.out}: {config.precision}, {size_mb(config.out):.1f} MB")
    if config.precision in ("int8", "fp8"):
        console.print(
            "How far 8 bits decide from fp32: python -m model_export.compare --help", highlight=False
        )
    if config.engine:
        from model_export.engine.bundle_engines import main as build

        return build(config.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Export, description=Export.__doc__)))
