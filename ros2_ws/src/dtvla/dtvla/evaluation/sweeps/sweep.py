"""Several evaluations that differ in one thing, each in a folder of its own with its record."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from dtvla.errors import InputError
from dtvla.evaluation.results import (
    SUMMARY,
    EpisodeResult,
    EvalOptions,
    Journal,
    begun_options,
    write_results,
)
from dtvla.evaluation.runner import evaluate, plan

SWEEP = "study.json"
Kind = Literal["delays", "variations"]
KINDS: tuple[Kind, ...] = ("delays", "variations")
Results = Mapping[str, list[EpisodeResult]]


@dataclass(frozen=True)
class Sweep:
    """What is compared with what.

    Attributes:
        kind: what the evaluations differ in.
        points: the evaluations by name, which is also their folder's, in the order in which they are run.
    """

    kind: Kind
    points: Mapping[str, EvalOptions]

    @property
    def episodes(self) -> int:
        """Of all evaluations together."""
        return sum(len(plan(options)) for options in self.points.values())

    @classmethod
    def begun(cls, folder: Path) -> Sweep:
        """The sweep that was begun in a folder.

        Raises:
            ValueError: there is none.
        """
        try:
            content = json.loads((folder / SWEEP).read_text())
            kind, names = content["kind"], [str(name) for name in content["points"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folder} holds no study ({type(error).__name__}: {error}).") from error
        if kind not in KINDS or any(Path(name).name != name for name in names):
            raise InputError(f"{folder / SWEEP} is no study of delays or variations.")
        return cls(kind, {name: begun_options(folder / name) for name in names})


def run_sweep(
    folder: Path,
    sweep: Sweep,
    workers: int,
    on_result: Callable[[str, EpisodeResult], None] = lambda name, result: None,
) -> Results:
    """Runs the evaluations one after the other, but what their records hold already.

    Args:
        folder: each evaluation gets a folder of its name in it.
        sweep: what to run.
        workers: processes to use.
        on_result: sees each episode with its evaluation's name: those on record first.

    Raises:
        InputError: a folder was begun with other options.
    """
    folder.mkdir(parents=True, exist_ok=True)
    journals = {name: Journal(folder / name, options) for name, options in sweep.points.items()}
    (folder / SWEEP).write_text(json.dumps({"kind": sweep.kind, "points": list(sweep.points)}) + "\n")
    for name, journal in journals.items():
        for result in journal.finished:
            on_result(name, result)
    results: dict[str, list[EpisodeResult]] = {}
    for name, options in sweep.points.items():
        journal = journals[name]
        crew = max(1, min(workers, len(plan(options)) - len(journal.finished)))

        def ended(result: EpisodeResult, name: str = name, journal: Journal = journal) -> None:
            journal.add(result)
            on_result(name, result)

        results[name] = evaluate(replace(options, workers=crew), ended, journal.finished)
        write_results(folder / name / SUMMARY, options, results[name])
    return results
