"""Compiles every kernel variant for every target without a GPU, and reports what each one takes.

python -m model_export.plugin.ahead_of_time --out build/ptx

With --out the PTX files and report.json are written. The exit code is 1 when a variant in a 16-bit type
spills registers, or any asks for more shared memory than its architecture has. Float32 is for checks: what
it spills, 0 to 24 bytes, changes from one assembler to the next and is only listed. A target that this Triton
cannot compile for is listed as not compiled; that is no failure of the others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from model_export.plugin.compiling import Compiled, CompileError, Variant, compile_variant
from model_export.plugin.plan import (
    DEFAULT_SHARED,
    FEW_ROWS,
    SHARED_LIMIT,
    TARGETS,
    Dtype,
    choose_tile,
    tight_tile,
)

_MANY_ROWS = 1024  # any number of stacked rows above FEW_ROWS gets the same tile
# How many shares the plan takes for one decoded row and for the action block over 1024 positions on a large
# GPU; a constant of the kernel, without influence on registers.
_DECODE_PARTS, _BLOCK_PARTS = 32, 13


@dataclass(frozen=True)
class Result:
    """One variant for one architecture: compiled, or the reason why not."""

    variant: Variant
    capability: int
    compiled: Compiled | None
    problem: str = ""  # a sentence; empty when all is well

    @property
    def failed(self) -> bool:
        """Whether it compiled and breaks a promise (spills, shared memory)."""
        return self.compiled is not None and bool(self.problem)


def variants(dtype: Dtype, capability: int, head_dim: int = 256, group: int = 8) -> list[Variant]:
    """All kernels that `plan` may choose for a type and an architecture."""
    few = choose_tile(FEW_ROWS, dtype, head_dim, capability)
    many = choose_tile(_MANY_ROWS, dtype, head_dim, capability)
    common: dict[str, Any] = {"head_dim": head_dim, "group": group, "scale": head_dim**-0.5}
    return [
        Variant("few_rows", "single", dtype, few, **common),
        Variant("many_rows", "single", dtype, many, **common),
        Variant("tight", "single", dtype, tight_tile(dtype), **common),
        Variant("split_few_rows", "split", dtype, few, _DECODE_PARTS, **common),
        Variant("split_many_rows", "split", dtype, many, _BLOCK_PARTS, **common),
        Variant("combine", "combine", dtype, few, _DECODE_PARTS, **common),
    ]


def try_variant(variant: Variant, capability: int) -> Result:
    """Compiles a variant and checks the promises: no spills in 16 bits, shared memory within the limit."""
    try:
        compiled = compile_variant(variant, capability)
    except CompileError as error:
        return Result(variant, capability, None, str(error))
    limit = DEFAULT_SHARED if variant.name == "tight" else SHARED_LIMIT[capability]
    problem = ""
    if compiled.spills and variant.dtype != "fp32":
        problem = f"spills {compiled.spills} bytes of registers"
    elif compiled.shared > limit:
        problem = f"asks for {compiled.shared} bytes of shared memory; a block may have {limit}"
    return Result(variant, capability, compiled, problem)


def compile_all(
    dtypes: tuple[Dtype, ...], targets: tuple[int, ...], head_dim: int = 256, group: int = 8
) -> Iterator[Result]:
    """Results of every variant, target by target, compiled in a process beside this one.

    LLVM ends its process when it does not know a target; that target is then reported as not compiled.
    """
    context = get_context("spawn")
    for capability in targets:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            for dtype in dtypes:
                for variant in variants(dtype, capability, head_dim, group):
                    try:
                        yield pool.submit(try_variant, variant, capability).result()
                    except BrokenProcessPool:
                        yield Result(variant, capability, None, "the compiler ended its process")


def table_of(results: list[Result]) -> Table:
    """The report as a table."""
    table = Table(
        "target", "type", "variant", "tile", "warps", "registers", "spills", "shared kB", "limit kB"
    )
    for name in ("instructions", "PTX", "verdict"):
        table.add_column(name)
    for r in results:
        tile = r.variant.tile
        shape = "-" if r.variant.kind == "combine" else f"{tile.rows} x {tile.keys}, {tile.stages} stages"
        head = [f"sm_{r.capability}", r.variant.dtype, r.variant.name, shape]
        limit = f"{SHARED_LIMIT[r.capability] / 1024:.0f}"
        if r.compiled is None:
            table.add_row(*head, "", "", "", "", limit, "", "", f"[yellow]not compiled: {escape(r.problem)}")
            continue
        c = r.compiled
        numbers = [str(c.threads // 32), str(c.registers), str(c.spills), f"{c.shared / 1024:.1f}", limit]
        verdict = f"[red]{r.problem}" if r.problem else "good"
        table.add_row(*head, *numbers, c.instructions, c.ptx_version, verdict)
    return table


def write(results: list[Result], out: Path) -> None:
    """Writes one PTX file per compiled variant, and report.json."""
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for r in results:
        row = {"target": f"sm_{r.capability}", **asdict(r.variant), "problem": r.problem}
        if r.compiled is not None:
            name = f"{r.variant.name}_{r.variant.dtype}_sm{r.capability}.ptx"
            (out / name).write_text(r.compiled.ptx)
            facts = asdict(r.compiled)
            row |= {"file": name, **{k: v for k, v in facts.items() if k not in ("variant", "ptx")}}
        rows.append(row)
    (out / "report.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class AheadOfTime:
    """Compiles the attention kernels for every supported GPU without one, and reports what they take."""

    out: Path | None = None  # folder for the PTX files and report.json
    dtypes: tuple[Dtype, ...] = ("bf16", "fp16", "fp32")
    targets: tuple[int, ...] = TARGETS  # compute capabilities times ten
    head_dim: int = 256
    group: int = 8  # query heads per key head


def main(config: AheadOfTime) -> int:
    """Compiles, prints, writes; returns the exit code."""
    console = Console()
    unknown = set(config.targets) - set(TARGETS)
    if unknown:
        Console(stderr=True).print(
            f"[red]error:[/red] no shared-memory limit is known for {sorted(unknown)}, only for {TARGETS}."
        )
        return 1
    count = sum(len(variants(d, c)) for d in config.dtypes for c in config.targets)
    todo = compile_all(config.dtypes, config.targets, config.head_dim, config.group)
    results = list(track(todo, "compiling", count, console=console))
    console.print(table_of(results))
    if config.out is not None:
        write(results, config.out)
        console.print(
            f"{config.out}: {sum(r.compiled is not None for r in results)} PTX files and report.json"
        )
    missing = sorted({f"sm_{r.capability}" for r in results if r.compiled is None})
    if missing:
        console.print(f"not compiled (in part): {', '.join(missing)}")
    return 1 if any(r.failed for r in results) else 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(AheadOfTime, description=AheadOfTime.__doc__)))
