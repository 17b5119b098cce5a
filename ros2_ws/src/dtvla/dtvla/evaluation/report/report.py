"""The report of an evaluation in one HTML file: what was evaluated, how it went, every episode's thoughts.

The file needs nothing from a network and works from a folder; videos lie beside it (see `episode_replay`).
"""

from __future__ import annotations

import base64
import gzip
import json
import shlex
from collections.abc import Collection, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from dtvla.evaluation.record import EvaluationRecord
from dtvla.evaluation.report.episode_replay import file_of
from dtvla.evaluation.report.page import page
from dtvla.evaluation.results import (
    EFFORT,
    EpisodeResult,
    EvalOptions,
)
from dtvla.policy.thought_text import kept_words

REPORT = "report.html"


def write_report(folder: Path, other_worlds: Collection[tuple[int, int]] = ()) -> Path:
    """Writes `report.html` into an evaluation's folder, with the videos that lie there.

    Args:
        folder: of the evaluation.
        other_worlds: task and seed of episodes whose video shows other states than were evaluated.

    Returns: the file.

    Raises:
        ValueError: the folder holds no evaluation.
    """
    evaluation = EvaluationRecord.load(folder)
    replays = {
        key_of(result): str(file_of(folder, result).relative_to(folder))
        for result in evaluation.results
        if file_of(folder, result).is_file()
    }
    others = {f"task{task}_seed{seed}" for task, seed in other_worlds}
    text = page(evaluation, replays, others, command(evaluation.options), packed_thoughts(evaluation.results))
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
    timelines = {key_of(result): _timeline(result) for result in results}
    packed = gzip.compress(json.dumps(timelines, separators=(",", ":")).encode(), mtime=0)
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
