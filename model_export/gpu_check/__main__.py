"""Command line: `python -m model_export.gpu_check`."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.progress import track

from model_export.gpu_check import attention, ceilings, decisions, engines, model, report
from model_export.gpu_check.device import Effort, TimedDevice

GPU_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class GpuCheck:
    """Checks the attention kernels on this GPU and measures decisions of the 2.9 B model (random weights)."""

    out: Path = Path("docs/results")  # folder for gpu-<name>.json
    quick: bool = False  # fewer repeats, no torch.compile


def run(
    device: TimedDevice,
    raw: dict[str, Any],
    sizes: model.Sizes,
    dtypes: Sequence[torch.dtype],
    ways: Sequence[decisions.Implementation],
    console: Console,
) -> dict[str, Any]:
    """The whole flow: ceilings, kernels, decisions, engines; prints tables and returns the report.

    Args:
        device: where.
        raw: config.json of the model.
        sizes: lengths of the decision.
        dtypes: types of the kernel check; the first is the model's.
        ways: how decisions are computed.
        console: for tables and progress.
    """
    torch.set_float32_matmul_precision("highest")  # the float32 reference must not be TF32
    with console.status("measuring the machine's ceilings"):
        limits = ceilings.measure(device)
    report.show_ceilings(console, limits)
    with console.status("making the model"):
        network = model.random_model(raw, device.torch, dtypes[0])
    config = network.config
    shape = (model.prompt_length(config, sizes), sizes.thought, model.block_length(config), sizes.cache)
    todo = attention.check_all(device, config.text, shape, tuple(dtypes), limits)
    count = len(dtypes) * len(attention.phases(*shape[:3]))
    checked = list(track(todo, "attention kernels", count, console=console))
    report.show_attention(console, checked)
    facts = decisions.describe(network, sizes)
    per_way = 1 + len(model.stages(config, sizes, device.torch))
    todo_stages = decisions.measure(device, network, sizes, limits, ways)
    timed = list(track(todo_stages, "decisions", per_way * len(ways), console=console))
    totals = decisions.decisions(timed, sizes)
    report.show_stages(console, timed, totals)
    engine = engines.check()
    console.print(f"TensorRT: {engine.get('why', engine)}", highlight=False, markup=False)
    return report.as_json(device.facts(), limits, checked, facts, timed, totals, engine)


def main(config: GpuCheck) -> int:
    """Measures, prints and writes; 1 without a GPU or when a kernel is wrong."""
    complaint = Console(stderr=True)
    if not torch.cuda.is_available():
        complaint.print(
            "[red]error:[/red] This command measures a CUDA GPU, and torch sees none here. Run it on a "
            "machine with one, with a CUDA build of torch."
        )
        return 1
    if importlib.util.find_spec("triton") is None:
        complaint.print("[red]error:[/red] The attention kernels need Triton: pip install triton.")
        return 1
    console = Console()
    device = TimedDevice("cuda", Effort.quick() if config.quick else Effort())
    console.print(
        f"{device.name}, compute capability {device.capability / 10:.1f}, torch {torch.__version__}"
    )
    ways = decisions.QUICK_IMPLEMENTATIONS if config.quick else decisions.IMPLEMENTATIONS
    found = run(device, model.FULL, model.Sizes(), GPU_DTYPES, ways, console)
    path = report.write(found, config.out)
    console.print(f"wrote {path}")
    wrong = [f"{row['phase']} in {row['dtype']}" for row in found["attention"] if not row["good"]]
    if wrong:
        complaint.print(f"[red]error:[/red] the kernels differ from the reference: {', '.join(wrong)}.")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(GpuCheck, description=GpuCheck.__doc__)))
