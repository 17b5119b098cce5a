"""The HTML of a report: what stands in its places. The page itself is `report/page.html.jinja`.

The template escapes everything that comes from a record, and a place that nothing fills is an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dtvla.evaluation.record import EvaluationRecord
from dtvla.evaluation.report.episode_replay import FRAME_RATE_HZ
from dtvla.evaluation.results import OUTCOMES, EpisodeResult, EvalOptions
from dtvla.evaluation.statistics import wilson
from dtvla.resources import resource

TEMPLATE = "page.html.jinja"
STAND_IN = "stand-in"  # in the label of assets that are not the benchmark's own
OTHER_WORLD = (
    "This video does not show the evaluated episode in every bit: the world went other ways when the "
    "actions were executed again (another machine, other assets, or another version)."
)


@dataclass(frozen=True)
class SuccessRate:
    """How many of some episodes were solved."""

    solved: int
    episodes: int

    @classmethod
    def of(cls, results: Sequence[EpisodeResult]) -> SuccessRate:
        """Counts episodes that ran to their end."""
        return cls(sum(result.success for result in results), len(results))

    @property
    def share(self) -> float:
        return self.solved / self.episodes

    @property
    def percent(self) -> str:
        """The share in words; a dash without episodes."""
        return f"{self.share:.1%}".replace(".0%", "%").replace("%", " %") if self.episodes else "–"

    @property
    def low(self) -> float:
        """Where Wilson's 95 % interval begins."""
        return wilson(self.solved, self.episodes)[0]

    @property
    def high(self) -> float:
        """Where it ends."""
        return wilson(self.solved, self.episodes)[1]

    @property
    def interval(self) -> str:
        """The interval in words."""
        return f"{100 * self.low:.0f} to {100 * self.high:.0f} %"


def page(
    record: EvaluationRecord,
    replays: Mapping[str, str],
    others: Collection[str],
    command: str,
    thoughts: str,
) -> str:
    """The whole page.

    Args:
        record: what it is about.
        replays: paths of videos, relative to the page, by episode.
        others: episodes whose video shows another world.
        command: that asks for the same episodes.
        thoughts: see `report.packed_thoughts`.
    """
    folder = resource("report")
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    endings = [ending for ending in OUTCOMES[1:] if any(result.outcome == ending for result in record.ran)]
    return environment.get_template(TEMPLATE).render(
        title=f"{record.head['policy']} on {record.head['suite']}",
        style=Markup((folder / "page.css").read_text()),
        script=Markup((folder / "page.js").read_text()),
        frame_rate_hz=FRAME_RATE_HZ,
        warnings=_warnings(record),
        total=SuccessRate.of(record.ran),
        head={"machine": "", **record.head},
        stand_in=STAND_IN in record.head["assets"],
        conditions=_conditions(record.options),
        command=command,
        endings=endings,
        tasks=_tasks(record.ran, endings),
        filters=_filters(record.results, replays),
        task_names={result.task: _words(result.task_name) for result in record.results},
        episodes=[_episode(result, replays, others) for result in record.results],
        thoughts=thoughts,
    )


def _warnings(record: EvaluationRecord) -> list[str]:
    found = []
    errors = len(record.results) - len(record.ran)
    if not record.complete:
        found.append("This evaluation has not come to its end; these are the episodes so far.")
    if errors:
        found.append(
            f"{errors} episodes could not be run to their end. They count neither as solved nor as failed."
        )
    if STAND_IN in record.head["assets"]:
        found.append("Made with stand-in assets: the figures are not comparable with published ones.")
    return found


def _conditions(options: EvalOptions) -> dict[str, str]:
    """What was not as usual, by name."""
    conditions = {}
    if options.delay is not None:
        late = "as measured" if options.delay == "measured" else f"{1000 * options.delay:g} ms"
        seam = f", seam {options.chunk_seam}" if options.chunk_mode != "open_loop" else ""
        conditions["Delay"] = f"{late}, chunks executed {options.chunk_mode}{seam}"
    if options.variation:
        conditions["Variation"] = options.variation
    if options.max_steps is not None:
        conditions["Limit"] = f"{options.max_steps} steps"
    return conditions


def _tasks(ran: Sequence[EpisodeResult], endings: Sequence[str]) -> list[dict[str, Any]]:
    """One row per task, and one for all; none without an episode."""
    names = dict.fromkeys(result.task_name for result in ran)
    groups = [(name, [result for result in ran if result.task_name == name]) for name in names]
    return [_task(name, group, endings) for name, group in [*groups, ("all", list(ran))] if group]


def _task(name: str, group: Sequence[EpisodeResult], endings: Sequence[str]) -> dict[str, Any]:
    solved = [result for result in group if result.success]
    return {
        "name": _words(name),
        "rate": SuccessRate.of(group),
        "steps": f"{sum(result.steps for result in solved) / len(solved):.0f}" if solved else "–",
        "endings": [sum(result.outcome == ending for result in group) for ending in endings],
    }


def _words(name: str) -> str:
    return name.replace("_", " ")


def _filters(results: Sequence[EpisodeResult], replays: Mapping[str, str]) -> dict[str, str]:
    """Buttons by the kind of episode that they show."""
    kinds = Counter(_kind(result) for result in results)
    buttons = {"all": "all", "failed": "failed", "solved": "solved", "error": "not run to the end"}
    shown = {kind: words for kind, words in buttons.items() if kind == "all" or kinds[kind]}
    return shown | ({"film": "with a video"} if replays else {})


def _kind(result: EpisodeResult) -> str:
    if result.error:
        return "error"
    return "solved" if result.success else "failed"


def _episode(result: EpisodeResult, replays: Mapping[str, str], others: Collection[str]) -> dict[str, Any]:
    key, kind = f"task{result.task}_seed{result.seed}", _kind(result)
    return {
        "result": result,
        "task": _words(result.task_name),
        "outcome": {"error": "not run to the end", "solved": "solved"}.get(
            kind, result.outcome or "not solved"
        ),
        "latency": "–" if result.error else f"{result.latency_p50_ms:.0f} ms",
        "data": {
            "key": key,
            "task": str(result.task),
            "kind": kind,
            "error": result.error,
            "film": replays.get(key, ""),
            "other": OTHER_WORLD if key in others else "",
        },
    }
