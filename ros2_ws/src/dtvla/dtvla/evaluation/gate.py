"""A gate for changes: a policy must still solve what is on record, but for chance."""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtvla.evaluation.results import EpisodeResult, EvalOptions, read_summary, wilson

# What an episode is, of the options that a summary holds; the others say how much of it is run, and how.
KEPT = (
    "suite",
    "seed0",
    "image_size",
    "execute_steps",
    "tasks",
    "thinking",
    "decoding",
    "delay",
    "chunk_mode",
    "chunk_seam",
    "variation",
    "max_steps",
)


@dataclass(frozen=True)
class GateRecord:
    """What is on record.

    Attributes:
        options: how its episodes were run, with as many as it has; the policy is left empty.
        solved, episodes: of those that ran to their end.
        fingerprint: of the bundle; empty for a script.
    """

    options: EvalOptions
    solved: int
    episodes: int
    fingerprint: str

    @classmethod
    def load(cls, path: Path) -> GateRecord:
        """The record in the `results.json` of an evaluation.

        Raises:
            ValueError: it is none, or none of its episodes ran.
        """
        head, results = read_summary(path)
        said = {key: _value(head["options"][key]) for key in KEPT if key in head["options"]}
        ran = [result for result in results if not result.error]
        if not ran:
            raise ValueError(f"{path} is no record to hold a policy to: no episode in it ran to its end.")
        try:
            options = EvalOptions("", episodes=len(results), **said)
        except TypeError as error:
            raise ValueError(f"{path} has options that are none: {error}.") from error
        solved = sum(result.success for result in ran)
        return cls(options, solved, len(ran), str(head.get("fingerprint", "")))

    def needed(self, episodes: int) -> int:
        """How many of so many must be solved: the recorded rate minus its 95 % interval for them."""
        low, _ = wilson(self.solved / self.episodes * episodes, episodes)
        return math.ceil(low * episodes - 1e-9)


@dataclass(frozen=True)
class GateVerdict:
    """What the gate says: a plain sentence, and whether it is passed."""

    passed: bool
    sentence: str


def judge(record: GateRecord, results: Sequence[EpisodeResult]) -> GateVerdict:
    """Holds results to a record. An episode that could not be run is no failure, but shows nothing."""
    broken = [result for result in results if result.error]
    if broken or not results:
        why = f" The first of them: {broken[0].error}" if broken else ""
        return GateVerdict(
            False,
            f"The gate is not passed: {len(broken)} of {len(results)} episodes could not be run.{why}",
        )
    solved, needed = sum(result.success for result in results), record.needed(len(results))
    passed = solved >= needed
    return GateVerdict(
        passed,
        f"The gate is {'passed' if passed else 'not passed'}: {solved} of {len(results)} episodes are "
        f"solved, at least {needed} must be ({record.solved} of {record.episodes} on record, less the 95 % "
        f"interval of {len(results)} episodes).",
    )


def _value(text: object) -> Any:
    """An option as a summary holds it: the number, the tuple, None, or the word."""
    try:
        return ast.literal_eval(str(text))
    except (ValueError, SyntaxError):
        return text
