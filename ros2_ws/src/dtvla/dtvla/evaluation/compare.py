"""Two evaluations of the same episodes, pair by pair: the same task, the same seed.

McNemar's exact test asks whether the episodes that changed went one way more often than a fair coin would.
The interval of the difference is Newcombe's for paired proportions (Statistics in Medicine 17, 1998, pages
2635-2650, method 10): from Wilson's intervals and the correlation of the pairs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtvla.evaluation.results import (
    JOURNAL,
    SUMMARY,
    EpisodeResult,
    EvalOptions,
    read_journal,
    read_summary,
    wilson,
)

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class EvaluationRecord:
    """An evaluation as it stands on the disk; only episodes that ran to their end."""

    path: Path
    head: dict[str, Any]  # policy, suite, assets, options (as text), fingerprint
    results: tuple[EpisodeResult, ...]

    @classmethod
    def load(cls, path: Path) -> EvaluationRecord:
        """Reads an evaluation's folder, or its `episodes.jsonl` or `results.json`.

        Raises:
            ValueError: there is none.
        """
        found = path
        if path.is_dir():
            found = path / JOURNAL if (path / JOURNAL).is_file() else path / SUMMARY
            if not found.is_file():
                raise ValueError(f"{path} holds no evaluation: neither {JOURNAL} nor {SUMMARY} is there.")
        if found.suffix == ".jsonl":
            begun, results = read_journal(found)
            options = begun["options"]
            head = {
                "policy": Path(options["policy"]).name,
                "suite": options["suite"],
                "assets": begun.get("assets", ""),
                "fingerprint": begun.get("fingerprint", ""),
            }
        else:
            head, every = read_summary(found)
            results = [result for result in every if not result.error]
            options = head["options"]
        known = vars(EvalOptions("")) | options  # an older record knows fewer options
        text = {key: str(value) for key, value in known.items() if key != "policy"}
        return cls(path, {**head, "options": text}, tuple(results))


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
        from scipy.stats import binomtest

        changed = self.only_a + self.only_b
        return float(binomtest(self.only_b, changed, 0.5).pvalue) if changed else 1.0

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference; (-1, 1) without pairs."""
        n = self.total
        if n == 0:
            return -1.0, 1.0
        wins_a, wins_b = self.both + self.only_a, self.both + self.only_b
        (low_a, high_a), (low_b, high_b) = wilson(wins_a, n), wilson(wins_b, n)
        rate_a, rate_b, phi = wins_a / n, wins_b / n, self._correlation()
        down = _combined(rate_b - low_b, high_a - rate_a, phi)
        up = _combined(high_b - rate_b, rate_a - low_a, phi)
        return max(-1.0, self.difference - down), min(1.0, self.difference + up)

    def _correlation(self) -> float:
        """Of the pairs, shrunk by half a count as in Newcombe's method 10; 0 where it has no value."""
        wins_a, wins_b, n = self.both + self.only_a, self.both + self.only_b, self.total
        spread = wins_a * (n - wins_a) * wins_b * (n - wins_b)
        if spread == 0:
            return 0.0
        cross = self.both * self.neither - self.only_a * self.only_b
        if cross > 0:
            cross = max(cross - n // 2, 0)
        return cross / math.sqrt(spread)


def _combined(one: float, other: float, phi: float) -> float:
    return math.sqrt(max(0.0, one**2 - 2 * phi * one * other + other**2))


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
        said: dict[str, Any] = {
            **{name: {"path": str(r.path), **r.head} for name, r in (("a", self.a), ("b", self.b))},
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
        return json.dumps(said, indent=1)


def compare(a: EvaluationRecord, b: EvaluationRecord) -> Comparison:
    """Pairs two evaluations.

    Raises:
        ValueError: they are of other worlds, or have no episode in common.
    """
    for key in ("suite", "assets"):
        mine, other = a.head.get(key), b.head.get(key)
        if mine != other:
            raise ValueError(
                f"They cannot be compared: {key} of {a.path}: '{mine}'; {key} of {b.path}: '{other}'. "
                "Evaluate both in one world."
            )
    pairs = pair_up(a.results, b.results)
    if not pairs:
        raise ValueError(
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
        alone = len({(r.task, r.seed) for r in record.results}) - common
        if alone:
            found.append(
                f"{alone} of the {alone + common} episodes of {name} are not in the other: left out."
            )
    mine, other = a.head["options"], b.head["options"]
    loose = ("workers", "through", "watched", "episodes", "trials", "tasks", "seed0", "backend")
    for key in sorted(set(mine) & set(other) - set(loose)):
        if mine[key] != other[key]:
            values = (record[key] or "none" for record in (mine, other))
            found.append(f"The option {key} is {' in A and '.join(values)} in B.")
    return found
