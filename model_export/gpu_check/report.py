"""The tables and the JSON file of a run."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from model_export.gpu_check.attention import AttentionResult
from model_export.gpu_check.ceilings import Ceilings
from model_export.gpu_check.decisions import DecisionLatency, StageResult


def number(value: float | None, digits: int = 2) -> str:
    """A number for a table; a dash for none."""
    return "–" if value is None else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """A share for a table; a dash for none."""
    return "–" if value is None else f"{100 * value:.0f} %"


def show_ceilings(console: Console, ceilings: Ceilings) -> None:
    """The two ceilings in one line."""
    console.print(
        f"measured ceilings: copy {ceilings.bytes_per_s / 1e9:.0f} GB/s (read and written), "
        f"matrix product {ceilings.flops_per_s / 1e12:.1f} TFLOP/s"
    )


def show_attention(console: Console, results: Sequence[AttentionResult]) -> None:
    """The kernels: errors, times, shares of the ceilings."""
    table = Table("phase", "type", "max error", "allowed", "shares", "µs", "one pass µs", "torch µs")
    for name in ("of bandwidth", "of FLOP/s", "note"):
        table.add_column(name)
    for r in results:
        color = "" if r.good else "[red]"
        table.add_row(
            r.phase,
            r.dtype,
            f"{color}{r.max_error:.1e}",
            f"{r.tolerance:.0e}",
            str(r.parts),
            number(r.planned_us, 1),
            number(r.single_us, 1),
            number(r.torch_us, 1),
            percent(r.bandwidth_share),
            percent(r.flops_share),
            escape(r.note),
        )
    console.print(table)


def show_stages(console: Console, results: Sequence[StageResult], totals: Sequence[DecisionLatency]) -> None:
    """The stages of a decision and whole decisions, way by way."""
    table = Table(
        "way", "stage", "rows", "ms", "floor ms", "share", "GB", "GFLOP", "logits differ (σ)", "note"
    )
    for r in results:
        differ = "–" if r.difference is None else f"{r.difference:.1e}"
        table.add_row(
            r.way,
            r.stage,
            str(r.rows),
            number(r.ms, 3),
            number(r.floor_ms, 3),
            percent(r.share),
            number(r.gigabytes, 3),
            number(r.gflop, 1),
            differ,
            escape(r.note),
        )
    console.print(table)
    table = Table("way", "no thought, ms", "thought token by token, ms", "draft verified in one pass, ms")
    for t in totals:
        table.add_row(t.way, number(t.no_thought_ms), number(t.thought_ms), number(t.verified_ms))
    console.print(table)
    console.print("Whole decisions are sums of the medians above; tokenizing and copies are not in them.")


def as_json(
    machine: dict[str, object],
    ceilings: Ceilings,
    attention: Sequence[AttentionResult],
    model: dict[str, object],
    stages: Sequence[StageResult],
    totals: Sequence[DecisionLatency],
    engine: dict[str, Any],
) -> dict[str, Any]:
    """Everything that was measured."""
    return {
        "machine": machine,
        "ceilings": asdict(ceilings),
        "attention": [result.row() for result in attention],
        "model": model,
        "stages": [result.row() for result in stages],
        "decisions": [asdict(total) for total in totals],
        "tensorrt": engine,
    }


def write(report: dict[str, Any], out: Path) -> Path:
    """Writes `gpu-<name>.json` into a folder; NaN becomes null, which every reader of JSON knows."""
    out.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", str(report["machine"]["name"]).lower()).strip("-")
    path = out / f"gpu-{name}.json"
    path.write_text(json.dumps(_finite(report), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value
