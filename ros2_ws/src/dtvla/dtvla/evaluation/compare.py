"""Two evaluations of the same episodes, pair by pair: the same task, the same seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dtvla.errors import InputError
from dtvla.evaluation.record import EvaluationRecord
from dtvla.evaluation.results import EFFORT, EpisodeResult, stored
from dtvla.evaluation.statistics import mcnemar, newcombe

SIGNIFICANT = 0.05
# Options that say how many episodes were run and how, not what an episode is.
EXTENT = (*EFFORT, "policy", "episodes", "trials", "tasks", "seed0", "backend")


@dataclass(frozen=True)
class Pair:
    """One episode in both evaluations."""

    task: int
    task_name: str
    seed: int
    a: EpisodeResult
    b: EpisodeResult

    @property
    def changed(self) -> bool:
        return self.a.success != self.b.success


@dataclass(frozen=True)
class Counts:
    """How pairs ended."""

    both: int
    only_a: int
    only_b: int
    neither: int

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> Counts:
        """Counts pairs."""
        ends = [(pair.a.success, pair.b.success) for pair in pairs]
        order = ((True, True), (True, False), (False, True), (False, False))
        return cls(*(ends.count(end) for end in order))

    @property
    def total(self) -> int:
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def difference(self) -> float:
        """Success rate of B minus that of A."""
        return (self.only_b - self.only_a) / self.total if self.total else 0.0

    @property
    def p_value(self) -> float:
        """McNemar's exact test, two-sided: 1 when nothing changed."""
        return mcnemar(self.only_a, self.only_b)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference; (-1, 1) without pairs."""
        return newcombe(self.both, self.only_a, self.only_b, self.neither)


@dataclass(frozen=True)
class Comparison:
    """Two evaluations side by side.

    Attributes:
        a, b: what is compared.
        pairs: their common episodes, by task and seed.
        warnings: sentences about what is not alike.
    """

    a: EvaluationRecord
    b: EvaluationRecord
    pairs: tuple[Pair, ...]
    warnings: tuple[str, ...]

    @property
    def counts(self) -> Counts:
        return Counts.of(self.pairs)

    @property
    def by_task(self) -> dict[str, Counts]:
        """Counts by the task's name, in the suite's order."""
        names = dict.fromkeys(pair.task_name for pair in self.pairs)
        return {name: Counts.of([pair for pair in self.pairs if pair.task_name == name]) for name in names}

    @property
    def changed(self) -> list[Pair]:
        """The episodes that one solved and the other did not."""
        return [pair for pair in self.pairs if pair.changed]

    def worse(self, alpha: float = SIGNIFICANT) -> bool:
        """Whether B solves fewer, and chance alone would do that in less than `alpha` of the cases."""
        return self.counts.difference < 0 and self.counts.p_value < alpha

    def to_json(self) -> str:
        """The comparison for programs."""
        counts = self.counts
        content: dict[str, Any] = {
            **{
                name: {
                    "path": str(record.path),
                    **record.head,
                    "options": stored(record.options, but=("policy",)),
                }
                for name, record in (("a", self.a), ("b", self.b))
            },
            "pairs": counts.total,
            "difference": counts.difference,
            "interval_95": counts.interval,
            "p_value": counts.p_value,
            "counts": vars(counts),
            "by_task": {name: vars(each) for name, each in self.by_task.items()},
            "changed": [
                {"task": p.task_name, "seed": p.seed, "a": p.a.outcome, "b": p.b.outcome}
                for p in self.changed
            ],
            "warnings": self.warnings,
        }
        return json.dumps(content, indent=1)


def compare(a: EvaluationRecord, b: EvaluationRecord) -> Comparison:
    """Pairs two evaluations.

    Raises:
        InputError: they are of other worlds, or have no episode in common.
    """
    for key in ("suite", "assets"):
        mine, other = a.head.get(key), b.head.get(key)
        if mine != other:
            raise InputError(
                f"They cannot be compared: {key} of {a.path}: '{mine}'; {key} of {b.path}: '{other}'. "
                "Evaluate both in one world."
            )
    pairs = pair_up(a.ran, b.ran)
    if not pairs:
        raise InputError(
            f"They cannot be compared: {a.path} and {b.path} have no task and seed in common. Evaluate both "
            "with the same --tasks and --seed0."
        )
    return Comparison(a, b, tuple(pairs), tuple(_warnings(a, b, len(pairs))))


def pair_up(a: Sequence[EpisodeResult], b: Sequence[EpisodeResult]) -> list[Pair]:
    """The episodes that both have, by task and seed."""
    mine, others = ({(result.task, result.seed): result for result in results} for results in (a, b))
    common = sorted(mine.keys() & others.keys())
    return [
        Pair(task, mine[task, seed].task_name, seed, mine[task, seed], others[task, seed])
        for task, seed in common
    ]


def _warnings(a: EvaluationRecord, b: EvaluationRecord, common: int) -> list[str]:
    found = []
    for name, record in (("A", a), ("B", b)):
        alone = len({(r.task, r.seed) for r in record.ran}) - common
        if alone:
            found.append(
                f"{alone} of the {alone + common} episodes of {name} are not in the other: left out."
            )
    mine, other = stored(a.options, but=EXTENT), stored(b.options, but=EXTENT)
    for key in sorted(mine):
        if mine[key] != other[key]:
            values = ("none" if value in (None, "") else str(value) for value in (mine[key], other[key]))
            found.append(f"The option {key} is {' in A and '.join(values)} in B.")
    return found
