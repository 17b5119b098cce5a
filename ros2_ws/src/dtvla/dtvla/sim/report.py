"""The report of an evaluation in one HTML file: what was evaluated, how it went, every episode's thoughts.

The file needs nothing from a network and works from a folder; videos lie beside it (`dtvla.sim.films`).
"""

from __future__ import annotations

import base64
import gzip
import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dtvla.sim.films import file_of
from dtvla.sim.report_page import page
from dtvla.sim.results import (
    EFFORT,
    JOURNAL,
    SUMMARY,
    EpisodeResult,
    EvalOptions,
    begun_options,
    read_journal,
    read_summary,
)
from dtvla.sim.thought_view import kept_words

REPORT = "report.html"


@dataclass(frozen=True)
class Evaluation:
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
    def load(cls, folder: Path) -> Evaluation:
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


def write_report(folder: Path, other_worlds: Collection[tuple[int, int]] = ()) -> Path:
    """Writes `report.html` into an evaluation's folder, with the videos that lie there.

    Args:
        folder: of the evaluation.
        other_worlds: task and seed of episodes whose video shows other states than were evaluated.

    Returns: the file.

    Raises:
        ValueError: the folder holds no evaluation.
    """
    evaluation = Evaluation.load(folder)
    films = {
        key_of(result): str(file_of(folder, result).relative_to(folder))
        for result in evaluation.results
        if file_of(folder, result).is_file()
    }
    others = {f"task{task}_seed{seed}" for task, seed in other_worlds}
    text = page(evaluation, films, others, command(evaluation.options), packed_thoughts(evaluation.results))
    path = folder / REPORT
    path.write_text(text)
    return path


def key_of(result: EpisodeResult) -> str:
    """Names an episode in the page."""
    return f"task{result.task}_seed{result.seed}"


def command(options: EvalOptions) -> str:
    """The command line that asks for these episodes."""
    words = ["dtvla", "eval", "--policy", Path(options.policy).name]
    for each in fields(EvalOptions):
        value = getattr(options, each.name)
        if each.name not in ("policy", "execute_steps", *EFFORT) and value != each.default:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words += [f"--{each.name.replace('_', '-')}", text]
    return shlex.join(words)


def packed_thoughts(results: Sequence[EpisodeResult]) -> str:
    """All thoughts, by episode, as gzip in base64.

    Each is a list: its step, how often it came in a row, and its words in runs that take turns: words that
    stood in the thought before (maybe none), new words, and so on.
    """
    said = {key_of(result): _timeline(result) for result in results}
    packed = gzip.compress(json.dumps(said, separators=(",", ":")).encode(), mtime=0)
    return base64.b64encode(packed).decode()


def _timeline(result: EpisodeResult) -> list[list[Any]]:
    entries: list[list[Any]] = []
    before = ""
    for place, thought in enumerate(result.thoughts):
        if not thought.strip():
            continue
        if entries and thought == before:
            entries[-1][1] += 1
        else:
            step = result.decided_at[place] if place < len(result.decided_at) else None
            entries.append([step, 1, *_runs(before, thought)])
        before = thought
    return entries


def _runs(before: str, thought: str) -> list[str]:
    runs: list[list[str]] = [[]]
    for word, kept in zip(thought.split(), kept_words(before, thought), strict=True):
        if kept != (len(runs) % 2 == 1):
            runs.append([])
        runs[-1].append(word)
    return [" ".join(run) for run in runs]
