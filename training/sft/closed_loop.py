"""Closed-loop episodes of a checkpoint, by the very commands that its users run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from dtvla.evaluation.results import EpisodeResult, EvalOptions
from dtvla.evaluation.runner import evaluate
from dtvla.policy.options import Decoding
from training.common.exported_graphs import export
from training.sft.settings import LoopSettings

RECORD, SCORE = "closed_loop.jsonl", "closed_loop.json"


@dataclass(frozen=True)
class Score:
    """What the episodes of one checkpoint came to.

    Attributes:
        solved, episodes: over all suites; episodes that could not be run are left out.
        errors: of those.
        near: share of the decisions whose thought places its object within 3 cm of the truth.
    """

    solved: int
    episodes: int
    errors: int
    near: float

    @property
    def share(self) -> float:
        return self.solved / max(1, self.episodes)


def score(checkpoint: Path, settings: LoopSettings, decoding: Decoding = "hybrid") -> Score:
    """Exports a checkpoint and plays its episodes; each result goes into `closed_loop.jsonl` beside it.

    Raises:
        TrainingError: the export failed.
    """
    bundle = checkpoint / "bundle"
    export(checkpoint, bundle)
    results: list[EpisodeResult] = []
    with (checkpoint / RECORD).open("w") as record:
        for suite in settings.suites:
            options = EvalOptions(
                bundle,
                suite=suite,
                episodes=settings.episodes,
                seed0=settings.seed0,
                decoding=decoding,
                workers=max(1, settings.workers),  # a renderer and torch do not live in one process
            )

            def note(result: EpisodeResult, suite: str = suite) -> None:
                row = {"suite": suite, "task": result.task_name, "seed": result.seed}
                record.write(json.dumps(row | {"success": result.success, "error": result.error}) + "\n")
                record.flush()

            results += evaluate(options, note)
    found = _sum_up(results)
    (checkpoint / SCORE).write_text(json.dumps(asdict(found)))
    return found


def best_share(checkpoint: Path | None) -> float:
    """The share that a checkpoint solved when it was scored; below 0 when it was not."""
    try:
        return Score(**json.loads(((checkpoint or Path()) / SCORE).read_text())).share
    except (OSError, ValueError, TypeError):
        return -1.0


def _sum_up(results: list[EpisodeResult]) -> Score:
    played = [result for result in results if not result.error]
    decisions = sum(result.decisions for result in played)
    near = sum(result.target_within_3cm * result.decisions for result in played) / max(1, decisions)
    solved = sum(result.success for result in played)
    return Score(solved, len(played), len(results) - len(played), near)
