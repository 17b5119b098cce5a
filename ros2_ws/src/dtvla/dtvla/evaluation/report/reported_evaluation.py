"""An evaluation as its folder holds it, for the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dtvla.evaluation.results import (
    JOURNAL,
    SUMMARY,
    EpisodeResult,
    EvalOptions,
    begun_options,
    read_journal,
    read_summary,
)


@dataclass(frozen=True)
class ReportedEvaluation:
    """An evaluation as its folder holds it.

    Attributes:
        folder: with the record, and the summary when it came to its end.
        options: what it was begun with.
        head: policy, fingerprint, suite, assets, machine.
        results: every episode, those that could not be run to their end among them.
        complete: whether it came to its end.
    """

    folder: Path
    options: EvalOptions
    head: Mapping[str, str]
    results: tuple[EpisodeResult, ...]
    complete: bool

    @classmethod
    def load(cls, folder: Path) -> ReportedEvaluation:
        """Reads a folder.

        Raises:
            ValueError: it holds no evaluation.
        """
        begun, results = read_journal(folder / JOURNAL)
        head = {key: str(begun.get(key, "")) for key in ("fingerprint", "assets")}
        complete = (folder / SUMMARY).is_file()
        if complete:  # only the summary knows the machine, and episodes that could not be run to their end
            summary, every = read_summary(folder / SUMMARY)
            head["machine"] = str(summary["machine"])
            done = {(result.task, result.seed) for result in results}
            results += [result for result in every if (result.task, result.seed) not in done]
        options = begun_options(folder)
        return cls(
            folder=folder,
            options=options,
            head={"policy": Path(options.policy).name, "suite": options.suite, **head},
            results=tuple(sorted(results, key=lambda result: (result.task, result.seed))),
            complete=complete,
        )
