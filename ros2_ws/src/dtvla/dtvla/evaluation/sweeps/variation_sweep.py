"""What varied worlds do to a policy's success: each against the suite's own world, episode by episode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from dtvla.errors import InputError
from dtvla.evaluation.compare import Counts, pair_up
from dtvla.evaluation.results import OUTCOMES, EpisodeResult, EvalOptions
from dtvla.evaluation.statistics import wilson
from dtvla.sim.perturbations.perturbation import NAMES, Variation, parse_all

OWN = "none"  # name of the evaluation in the suite's own world


def points(base: EvalOptions, words: str) -> dict[str, EvalOptions]:
    """The evaluations of a set by name, such as `camera_2`, the suite's own world first.

    Args:
        base: what they have in common.
        words: the variations, see `variations.parse_all`.

    Raises:
        InputError: no such variation, or none at all.
    """
    varied = {str(v).replace(":", "_"): replace(base, variation=str(v)) for v in parse_all(words)}
    if not varied:
        raise InputError(f"--vary names no variation; there are {', '.join(NAMES)}, or all.")
    return {OWN: replace(base, variation=""), **varied}


@dataclass(frozen=True)
class VariationRow:
    """What came of one variation.

    Attributes:
        variation: such as `camera:2`; `none` for the suite's own world.
        episodes, solved: their numbers.
        interval: 95 % interval of the success rate (Wilson).
        pairs: the same episodes in the suite's own world (A) and in this one (B).
        endings: number of failures by how they ended.
    """

    variation: str
    episodes: int
    solved: int
    interval: tuple[float, float]
    pairs: Counts
    endings: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """The row for programs."""
        paired = {"difference": self.pairs.difference, "difference_interval_95": self.pairs.interval}
        return {**asdict(self), **paired, "p_value": self.pairs.p_value}


def summarise(
    evaluations: Mapping[str, EvalOptions], results: Mapping[str, list[EpisodeResult]]
) -> list[VariationRow]:
    """The rows of a set, evaluations without any episode left out.

    Args:
        evaluations: options by name.
        results: episodes by the same names; errors do not count.
    """
    ran = {name: [r for r in results.get(name, []) if not r.error] for name in evaluations}
    rows = []
    for name, options in evaluations.items():
        solved = sum(result.success for result in ran[name])
        failed = [result.outcome for result in ran[name] if not result.success]
        if ran[name]:
            rows.append(
                VariationRow(
                    variation=options.variation or OWN,
                    episodes=len(ran[name]),
                    solved=solved,
                    interval=wilson(solved, len(ran[name])),
                    pairs=Counts.of(pair_up(ran[OWN], ran[name])),
                    endings={ending: failed.count(ending) for ending in OUTCOMES[1:]},
                )
            )
    return rows


def markdown(rows: Sequence[VariationRow]) -> str:
    """The rows as a table for a document."""
    lines = [
        "| variation | what differs at strength 1 | solved | 95 % interval | difference, 95 % interval "
        f"| {' | '.join(OUTCOMES[1:])} |",
        "|---|---|---|---|---|" + "---|" * len(OUTCOMES[1:]),
    ]
    for row in rows:
        varied = None if row.variation == OWN else Variation.parse(row.variation)
        low, high = row.interval
        cells = [row.variation, "the suite's own world" if varied is None else NAMES[varied.name]]
        cells += [f"{row.solved} of {row.episodes}", f"{100 * low:.0f} to {100 * high:.0f} %", change(row)]
        cells += [str(row.endings[ending]) for ending in OUTCOMES[1:]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def change(row: VariationRow) -> str:
    """The difference from the suite's own world in words."""
    if row.variation == OWN or not row.pairs.total:
        return "–"
    low, high = (100 * bound for bound in row.pairs.interval)
    return f"{100 * row.pairs.difference:+.0f} ({low:+.0f} to {high:+.0f}) points"
