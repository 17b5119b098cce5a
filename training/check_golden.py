"""Compares this code with golden data of the reference implementation.

    python -m training.check_golden DIR [--backend torch|bundle]

DIR is a golden set or a folder of them. `torch` checks everything: masks, positions, thoughts, action
logits, codec, SFT loss and gradients, RL scores and arithmetic. `bundle` exports the set's checkpoint
first and checks what ONNX Runtime makes of the cases of one sample. Exit code 1 when anything is off.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from dtvla.policy.backends.protocol import Backend
from training.conformance.arithmetic import check_codec, check_rl_arithmetic
from training.conformance.generation import (
    bundle_backend,
    check_action_pass,
    check_generation,
    check_one_pass,
    check_unpadded_rows,
    torch_backend,
)
from training.conformance.golden_sets import GoldenError, GoldenSet, find_sets, load_set
from training.conformance.report import ConformanceReport, Section
from training.conformance.whole_sequences import check_action_batch, check_rl, check_sft


@dataclass(frozen=True)
class CheckGolden:
    """What to compare with what."""

    folder: tyro.conf.Positional[Path]  # a golden set, or a folder of sets
    backend: Literal["torch", "bundle"] = "torch"  # the model in torch, or exported and run by ONNX Runtime


def check_folder(folder: Path, backend: str = "torch") -> ConformanceReport:
    """All comparisons of all sets in a folder; a set that cannot be read is a miss, the others go on.

    Raises:
        GoldenError: the folder holds no set.
    """
    report = ConformanceReport()
    for path in find_sets(folder):
        with _Guarded(report.of(path.name, "set")), tempfile.TemporaryDirectory() as scratch:
            golden = load_set(path)
            for contradiction in golden.contradictions():
                report.of(golden.name, "golden.npz").miss(contradiction)
            if backend == "torch":
                _check_torch(golden, report)
            else:
                _check_bundle(golden, bundle_backend(golden, Path(scratch)), report)
    return report


def _check_torch(golden: GoldenSet, report: ConformanceReport) -> None:
    cached = torch_backend(golden)
    for name in golden.cases():
        case, out = golden.case(name), report.of(golden.name, name)
        with _Guarded(out):
            if "prompt_ids" in case:
                check_generation(golden, name, cached, out)
            if "input_cot_ids" in case:
                check_action_batch(golden, name, out)
                if _is_single(golden, name):
                    check_action_pass(golden, name, cached, report.of(golden.name, f"{name} cached"))
            if "cot_length" in case:
                check_rl(golden, name, out)
            if "labels" in case:
                check_sft(golden, name, out)
    out = report.of(golden.name, "codec")
    with _Guarded(out):
        check_codec(golden.codec, golden.layout, out)
    out = report.of(golden.name, "rl")
    with _Guarded(out):
        check_rl_arithmetic(golden.rl, golden.layout, out)
    for file, array in golden.unused():
        report.of(golden.name, file).miss(f"{array}: no check knows this array")


def _check_bundle(golden: GoldenSet, backend: Backend, report: ConformanceReport) -> None:
    for name in golden.cases():
        case, out = golden.case(name), report.of(golden.name, name)
        with _Guarded(out):
            if "labels" in case:
                out.skip("training case")
            elif "cot_length" in case and len(case["input_ids"]) == 1:
                check_one_pass(golden, name, backend, out)
            elif "cot_length" in case:
                out.skip("batch of a training pass")
            else:
                if "prompt_ids" in case:
                    check_generation(golden, name, backend, out)
                if "action_logits_unpadded" in case:
                    check_unpadded_rows(golden, name, backend, out)
                elif _is_single(golden, name):
                    check_action_pass(golden, name, backend, out)
                else:
                    out.skip("batch with the reference's visible pads")
    out = report.of(golden.name, "codec")
    with _Guarded(out):
        check_codec(golden.codec, golden.layout, out)


def _is_single(golden: GoldenSet, name: str) -> bool:
    """One sample without pads before its prompt: what a robot runs."""
    mask = golden.case(name)["attention_mask"]
    return len(mask) == 1 and bool(mask.all())


class _Guarded:
    """Turns what a set of another form runs into into a miss, so that the other cases are still checked."""

    def __init__(self, out: Section) -> None:
        self._out = out

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False  # Ctrl-C
        kind_of = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        self._out.miss(f"not comparable: {kind_of}{error}")
        return True


def main(config: CheckGolden) -> int:
    """Prints the table; returns the exit code."""
    console = Console(width=None if sys.stdout.isatty() else 110)  # a log file has no width
    try:
        with console.status("comparing"):
            report = check_folder(config.folder, config.backend)
    except GoldenError as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}", highlight=False)
        return 2
    console.print(report.table())
    misses = len(report.failed)
    console.print(f"{len(report.rows) - misses} of {len(report.rows)} comparisons within tolerance.")
    return 1 if misses else 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(CheckGolden, description=__doc__)))
