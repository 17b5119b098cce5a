"""Writes docs/results/faults.md and faults.json."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

from tests.faults.run import Result

BUSY = 4.0  # load per core; the graph alone makes about 3 on two cores


def machine() -> dict[str, object]:
    """What the figures were measured on, and how busy it was."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":")[1].strip() if lines else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "load": [round(value, 1) for value in os.getloadavg()],
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def write(
    results: Sequence[Result], folder: Path, command: str, seconds: float, names: Sequence[str] = ()
) -> None:
    """Writes both files into `folder`; `names` are all faults of the matrix, tried or not."""
    folder.mkdir(parents=True, exist_ok=True)
    about = machine()
    data = {"command": command, "seconds": round(seconds), "machine": about}
    tried = {result.name for result in results}
    missing = [name for name in names if name not in tried]
    data["not_tried"] = missing
    data["results"] = [asdict(result) for result in results]
    (folder / "faults.json").write_text(json.dumps(data, indent=1) + "\n")
    (folder / "faults.md").write_text("\n".join(_page(results, about, command, seconds, missing)) + "\n")


def _page(
    results: Sequence[Result], about: dict[str, object], command: str, seconds: float, missing: Sequence[str]
) -> list[str]:
    load: list[float] = about["load"]  # type: ignore[assignment]
    cores = os.cpu_count() or 1
    held = [r for r in results if r.holds and r.fault_to_hold_ms is not None]
    exceeded = sum(len(r.exceeded) for r in results)
    told, missed = sum(r.commands_after for r in results), sum(r.missed for r in results)
    judged, unjudged = sum(r.judged for r in results), sum(r.unjudged for r in results)
    share = judged / max(1, judged + unjudged)
    lines = [
        "# Faults",
        "",
        f"Written by `{command}` on {about['date']}, in {seconds / 60:.0f} minutes.",
        f"{about['cpu']}, {about['cores']} cores, {about['system']}; load average at the end {load}"
        + (" (other programs ran)." if load[0] > BUSY * cores else "."),
        "",
        "Real processes over DDS: policy, controller (`robot:=panda`, 100 Hz, `target_pose`), a "
        "simulated Panda that "
        "follows it, recorder, markers. A node of its own hears every command and computes velocities, "
        "accelerations, the workspace and the gripper's range from what was published "
        "(`tests/faults/invariants.py`).",
        "",
        f"- **{sum(r.well for r in results)} of {len(results)} faults were survived.**",
        f"- **Limits exceeded: {exceeded}** in {told} commands after faults; {missed} commands were "
        f"not heard by "
        "the monitor.",
        f"- Accelerations were judged at {100 * share:.0f} % of the commands over one tick; in the "
        f"others the "
        "machine was too busy to say when the tick began. Velocities, workspace and gripper: at all.",
        "- The controller ran with real-time priority where the system allows it (root), as on a robot.",
        "- Required: a hold within 150 ms (100 ms and one control period) of the moment at which the "
        "controller "
        "can know. A target that goes straight back to an arm that lags by more than 20 mm (the simulated "
        "one, where its world is slower than the clock) asks nothing new of it and is no motion. Jerk "
        "cannot be seen in samples at 100 Hz beyond what the acceleration says.",
        *(
            [
                f"- **The machine was overloaded (load {load[0]} on {about['cores']} cores)**: the "
                f"simulated arm fell behind, "
                'and the controller often held because the arm\'s state was late. A hold "before" '
                "may have had that reason, "
                "and times of recovery count the crowd. On an idle machine these figures must be taken anew."
            ]
            if load[0] > BUSY * cores
            else []
        ),
        *(
            [
                f"- **Not tried in this run ({len(missing)})**: "
                + ", ".join(f"`{name}`" for name in missing)
                + "."
            ]
            if missing
            else []
        ),
        "",
        "| fault | what | the controller can know | fault to hold | known to hold | commands after, moving "
        "| exceeded | back after | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        known = "-" if r.know_to_hold_ms is None else _known(r.know_to_hold_ms)
        hold = (
            "goes on"
            if not r.holds
            else "-"
            if r.fault_to_hold_ms is None
            else f"{r.fault_to_hold_ms:.0f} ms"
        )
        back = "-" if r.recovery_s is None else f"{r.recovery_s:.1f} s"
        lines.append(
            f"| `{r.name}` | {r.what} | {r.moment or '-'} | {hold} | {known} "
            f"| {r.commands_after}, {r.moving_after} | {len(r.exceeded)} | {back} "
            f"| {'survived' if r.well else '**failed**: ' + _cell(r.failure)} |"
        )
    worst = max((r.know_to_hold_ms for r in held if r.know_to_hold_ms is not None), default=0.0)
    lines += [
        "",
        f"The slowest hold came {worst:.0f} ms after the controller could know.",
        '"before": the arm stood before the latest moment that counts (its chunk ended earlier, or '
        "the limiter "
        "had stopped it). Times are those of writing (DDS source timestamps).",
        "",
        "## What the graph said, and other facts",
        "",
    ]
    for r in results:
        facts = [*r.notes, *(f'"{_cell(words)}"' for words in r.words[-3:])]
        if facts:
            lines.append(f"- `{r.name}` (seed {r.seed}): " + "; ".join(facts))
    return lines


def _known(figure_ms: float) -> str:
    return "before" if figure_ms <= 0 else f"{figure_ms:.0f} ms"


def _cell(words: str) -> str:
    words = words.replace("|", "/").replace("\n", " ")
    return words if len(words) < 260 else words[:257] + "..."
