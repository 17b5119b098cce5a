"""Several evaluations that differ in one thing, each in a folder of its own with its record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from dtvla.sim.evaluation import evaluate, plan
from dtvla.sim.results import SUMMARY, EpisodeResult, EvalOptions, Journal, write_results

Results = dict[str, list[EpisodeResult]]


def run_study(
    folder: Path,
    points: Mapping[str, EvalOptions],
    workers: int = 1,
    on_result: Callable[[str, EpisodeResult], None] = lambda name, result: None,
) -> Results:
    """Runs the evaluations one after the other, but what their records hold already.

    Args:
        folder: each gets a folder of its name in it.
        points: the evaluations by name.
        workers: processes to use.
        on_result: sees each episode with its evaluation's name: those on record first.

    Raises:
        ValueError: a folder was begun with other options.
    """
    journals = {name: Journal(folder / name, options) for name, options in points.items()}
    for name, journal in journals.items():
        for result in journal.finished:
            on_result(name, result)
    results: Results = {}
    for name, options in points.items():
        journal = journals[name]
        crew = max(1, min(workers, len(plan(options)) - len(journal.finished)))

        def ended(result: EpisodeResult, name: str = name, journal: Journal = journal) -> None:
            journal.add(result)
            on_result(name, result)

        results[name] = evaluate(replace(options, workers=crew), ended, journal.finished)
        write_results(folder / name / SUMMARY, options, results[name])
    return results
