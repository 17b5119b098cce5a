"""An evaluation as it stands on the disk: what reports, comparisons and gates read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dtvla.errors import InputError
from dtvla.evaluation.results import (
    JOURNAL,
    SUMMARY,
    EpisodeResult,
    EvalOptions,
    Summary,
    read_journal,
    read_options,
    read_summary,
)


@dataclass(frozen=True)
class EvaluationRecord:
    """An evaluation as it stands on the disk.

    Attributes:
        path: that it was read from.
        options: what was evaluated; of a summary alone, the policy is but a name.
        head: policy (its name), fingerprint, suite, assets, and machine where the record knows it.
        results: every episode, by task and seed, those that could not be run to their end among them.
        complete: whether it came to its end.
    """

    path: Path
    options: EvalOptions
    head: Mapping[str, str]
    results: tuple[EpisodeResult, ...]
    complete: bool = True

    @classmethod
    def load(cls, path: Path) -> EvaluationRecord:
        """Reads an evaluation's folder, or its `episodes.jsonl` or `results.json`.

        Of a folder the journal counts, which holds the actions too; only the summary beside it knows the
        machine, and the episodes that could not be run to their end.

        Raises:
            ValueError: there is none.
        """
        journal, summary = _files(path)
        end = read_summary(summary) if summary else None
        if journal:
            return cls._of_journal(path, journal, end)
        assert summary is not None
        assert end is not None
        return cls(
            path=path,
            options=replace(read_options(end.options, summary), policy=end.policy),
            head={
                name: getattr(end, name) for name in ("policy", "fingerprint", "suite", "assets", "machine")
            },
            results=_in_order(end.results),
        )

    @classmethod
    def _of_journal(cls, path: Path, journal: Path, end: Summary | None) -> EvaluationRecord:
        begun, results = read_journal(journal)
        options = read_options(begun["options"], journal)
        head = {
            "policy": Path(options.policy).name,
            "suite": options.suite,
            **{name: str(begun.get(name, "")) for name in ("fingerprint", "assets")},
        }
        if end:
            head["machine"] = end.machine
            done = {(result.task, result.seed) for result in results}
            results += [result for result in end.results if (result.task, result.seed) not in done]
        return cls(path, options, head, _in_order(results), complete=end is not None)

    @property
    def ran(self) -> tuple[EpisodeResult, ...]:
        """The episodes that ran to their end."""
        return tuple(result for result in self.results if not result.error)

    @property
    def solved(self) -> int:
        """How many episodes were solved."""
        return sum(result.success for result in self.ran)


def _files(path: Path) -> tuple[Path | None, Path | None]:
    """The journal and the summary of an evaluation, as far as they are there."""
    if not path.is_dir():
        return (path, None) if path.suffix == ".jsonl" else (None, path)
    journal, summary = (path / name if (path / name).is_file() else None for name in (JOURNAL, SUMMARY))
    if not journal and not summary:
        raise InputError(f"{path} holds no evaluation: neither {JOURNAL} nor {SUMMARY} is there.")
    return journal, summary


def _in_order(results: Sequence[EpisodeResult]) -> tuple[EpisodeResult, ...]:
    return tuple(sorted(results, key=lambda result: (result.task, result.seed)))
