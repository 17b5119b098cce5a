"""What an evaluation leaves behind: one line per finished episode as it ends, and a summary in the end.

`episodes.jsonl` is written and flushed line by line, so an interrupted evaluation loses at most the
episodes that were running; `results.json` is the summary. Both say with which policy and assets.
"""

from __future__ import annotations

import base64
import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtvla.policy.bundle import Bundle
from dtvla.policy.options import BackendName, Decoding, Thinking
from dtvla.sim import assets

OUTCOMES = ("solved", "picked up nothing", "another object first", "picked it up, did not place it")
SUMMARY, JOURNAL = "results.json", "episodes.jsonl"
REPLAY = "replay:"
LARGE = ("actions",)  # fields of an episode that only the journal holds


@dataclass(frozen=True)
class EvalOptions:
    """What to evaluate: `episodes` are dealt to the tasks in turn, with seeds from `seed0` upwards."""

    policy: Path | str  # folder of a bundle; or `expert`, `random`, `replay:FILE`
    backend: BackendName = "auto"
    suite: str = "embedded"
    episodes: int = 60
    seed0: int | None = None  # None: 10,000 for the embedded suite, else 0 (trial i, initial state i)
    workers: int = 1
    image_size: int = 128  # pixels, as the shipped policy's training data
    execute_steps: int | None = None  # rows executed per decision; None takes the bundle's
    tasks: tuple[int, ...] = ()  # empty: all tasks of the suite
    trials: int | None = None  # episodes per task; given, it stands in for `episodes`
    thinking: Thinking = "drafts"
    decoding: Decoding = "hybrid"  # one of the variants that the paper compares

    def __post_init__(self) -> None:
        if self.thinking == "lagging" and self.decoding != "hybrid":
            raise ValueError(f"Lagging thoughts need hybrid decoding, not {self.decoding}.")

    @property
    def first_seed(self) -> int:
        """The seed, or in LIBERO's suites the initial state, of each task's first episode."""
        if self.seed0 is not None:
            return self.seed0
        return 10_000 if self.suite == "embedded" else 0

    @property
    def scripted(self) -> bool:
        """Whether something else than a bundle decides."""
        return str(self.policy) in ("expert", "random") or str(self.policy).startswith(REPLAY)


@dataclass(frozen=True)
class EpisodeResult:
    """One episode; `error` is set when it could not be run to its end."""

    task: int
    task_name: str
    seed: int
    success: bool
    steps: int
    decisions: int
    latency_p50_ms: float
    target_within_3cm: float  # share of thoughts that place what they name within 3 cm of the truth
    phase_stated: float  # share of thoughts in the form that can be checked
    thoughts: tuple[str, ...]
    outcome: str = ""  # how it ended, one of `OUTCOMES`
    error: str = ""
    state_sha256: str = ""  # over every simulator state, as the bridge reports it: equal runs agree
    actions: str = ""  # what was executed; see `pack_actions`


def pack_actions(actions: Sequence[NDArray[np.floating]]) -> str:
    """Actions [T, 7] as base64 of float64, so that a replay gets every bit."""
    return base64.b64encode(np.array(actions, "<f8").tobytes()).decode()


def unpack_actions(packed: str) -> NDArray[np.float64]:
    """The actions [T, 7] that `pack_actions` packed."""
    return np.frombuffer(base64.b64decode(packed, validate=True), "<f8").reshape(-1, 7).astype(np.float64)


class Journal:
    """The growing record of an evaluation: a first line with what it is of, then one line per episode."""

    def __init__(self, folder: Path, options: EvalOptions) -> None:
        """Opens a folder's record, or begins one.

        Raises:
            ValueError: the folder holds the record of another evaluation.
        """
        self.path = folder / JOURNAL
        self.finished: list[EpisodeResult] = []
        head = identity(options)
        if self.path.is_file():
            begun, self.finished = read_journal(self.path)
            for key, value in head.items():
                if begun.get(key) != value:
                    raise ValueError(
                        f"{folder} was begun with {key} {begun.get(key)!r}, now it is {value!r}. "
                        "Start a new evaluation, or restore what was there."
                    )
            self._write_all(begun)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            self._write_all(head)

    def add(self, result: EpisodeResult) -> None:
        """Writes one finished episode to the disk."""
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(result)) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _write_all(self, head: dict[str, Any]) -> None:
        """Rewrites the record: without a line that was cut off, and without episodes to be tried again."""
        lines = [json.dumps(head), *(json.dumps(asdict(result)) for result in self.finished)]
        part = self.path.with_suffix(".part")
        part.write_text("\n".join(lines) + "\n")
        part.replace(self.path)


def read_journal(path: Path) -> tuple[dict[str, Any], list[EpisodeResult]]:
    """The first line of a record, and its episodes that ran to their end. A last line cut off is left out.

    Raises:
        ValueError: it is no record of an evaluation.
    """
    try:
        lines = path.read_text().splitlines()
        head = json.loads(lines[0])
        rows = []
        for number, line in enumerate(lines[1:], 2):
            try:
                rows.append(json.loads(line))
            except ValueError:
                if number < len(lines):
                    raise
        known = {field.name for field in fields(EpisodeResult)}
        results = [EpisodeResult(**{k: v for k, v in row.items() if k in known}) for row in rows]
        head["options"]["suite"]
    except (OSError, ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no record of an evaluation ({type(error).__name__}: {error})."
        ) from error
    return head, [result for result in results if not result.error]


def begun_options(folder: Path) -> EvalOptions:
    """The options that the evaluation in a folder was begun with.

    Raises:
        ValueError: there is none.
    """
    options = read_journal(folder / JOURNAL)[0]["options"]
    return EvalOptions(**options | {"tasks": tuple(options["tasks"])})


def identity(options: EvalOptions) -> dict[str, Any]:
    """What must stay the same while an evaluation goes on: options (but the workers), policy, assets."""
    values = asdict(options) | {"policy": str(options.policy)}
    del values["workers"]
    return {
        "options": json.loads(json.dumps(values)),
        "fingerprint": "" if options.scripted else Bundle.load(options.policy).fingerprint,
        "assets": assets_label(options.suite),
    }


def assets_label(suite: str) -> str:
    """With which assets a suite's results were made."""
    return "none needed" if suite == "embedded" else assets.label()


def outcome(success: bool, lifted: Sequence[str], *targets: str) -> str:
    """How an episode ended, one of `OUTCOMES`.

    Args:
        success: the task's own check.
        lifted: the objects that were picked up, in the order in which they first were.
        targets: the objects that the task asks for.
    """
    if success:
        return OUTCOMES[0]
    if not lifted:
        return OUTCOMES[1]
    return OUTCOMES[2] if lifted[0] not in targets else OUTCOMES[3]


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a success rate (z = 1.96: 95 %). Returns (low, high); (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    p = successes / trials
    centre = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials)) / (1 + z * z / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


def write_results(path: Path, options: EvalOptions, results: Sequence[EpisodeResult]) -> None:
    """Writes every episode, the totals, and which policy on which machine they are of, as JSON."""
    ran = [r for r in results if not r.error]
    successes = sum(r.success for r in ran)
    path.parent.mkdir(parents=True, exist_ok=True)
    said = identity(options)
    values = asdict(options) | {"seed0": options.first_seed}
    summary = {
        "policy": str(options.policy) if options.scripted else Path(options.policy).name,
        "fingerprint": said["fingerprint"],
        "suite": options.suite,
        "assets": said["assets"],
        "machine": f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}",
        "options": {key: str(value) for key, value in values.items() if key != "policy"},
        "episodes": len(ran),
        "errors": len(results) - len(ran),
        "successes": successes,
        "success_rate": successes / len(ran) if ran else None,
        "interval_95": wilson(successes, len(ran)),
        "results": [{k: v for k, v in asdict(r).items() if k not in LARGE} for r in results],
    }
    path.write_text(json.dumps(summary, indent=1))
