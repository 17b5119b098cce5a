"""A gate for changes: a policy must still solve what is on record, but for chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dtvla.errors import InputError
from dtvla.evaluation.record import EvaluationRecord
from dtvla.evaluation.results import EpisodeResult
from dtvla.evaluation.statistics import wilson


def load_reference(path: Path) -> EvaluationRecord:
    """The evaluation that a policy is held to.

    Raises:
        InputError: there is none, or none of its episodes ran.
    """
    record = EvaluationRecord.load(path)
    if not record.ran:
        raise InputError(f"{path} is no record to hold a policy to: no episode in it ran to its end.")
    return record


def needed(record: EvaluationRecord, episodes: int) -> int:
    """How many of so many must be solved: the recorded rate minus its 95 % interval for them."""
    low, _ = wilson(record.solved / len(record.ran) * episodes, episodes)
    return math.ceil(low * episodes - 1e-9)


@dataclass(frozen=True)
class GateVerdict:
    """What the gate says: a plain sentence, and whether it is passed."""

    passed: bool
    sentence: str


def judge(record: EvaluationRecord, results: Sequence[EpisodeResult]) -> GateVerdict:
    """Holds results to a record. An episode that could not be run is no failure, but shows nothing."""
    broken = [result for result in results if result.error]
    if broken or not results:
        why = f" The first of them: {broken[0].error}" if broken else ""
        return GateVerdict(
            False,
            f"The gate is not passed: {len(broken)} of {len(results)} episodes could not be run.{why}",
        )
    solved, fewest = sum(result.success for result in results), needed(record, len(results))
    passed = solved >= fewest
    return GateVerdict(
        passed,
        f"The gate is {'passed' if passed else 'not passed'}: {solved} of {len(results)} episodes are "
        f"solved, at least {fewest} must be ({record.solved} of {len(record.ran)} on record, less the 95 % "
        f"interval of {len(results)} episodes).",
    )
