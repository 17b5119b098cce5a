"""What an evaluation leaves behind: one line per finished episode as it ends, and a summary in the end.

`episodes.jsonl` is written and flushed line by line, so an interrupted evaluation loses at most the
episodes that were running; `results.json` is the summary. Both say with which policy and assets.
`evaluation.record` reads a folder with both.
"""

from __future__ import annotations

import ast
import base64
import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dtvla.control.options import ChunkMode, ChunkSeam
from dtvla.errors import InputError, plain
from dtvla.evaluation.statistics import wilson
from dtvla.policy.bundle.loading import Bundle
from dtvla.policy.options import BackendName, Decoding, Thinking
from dtvla.sim import assets
from dtvla.sim.perturbations.perturbation import INSTRUCTION, Variation
from dtvla.sim.suites import embedded
from dtvla.structured import FieldError, read

OUTCOMES = ("solved", "picked up nothing", "another object first", "picked it up, did not place it")
SUMMARY, JOURNAL = "results.json", "episodes.jsonl"
REPLAY = "replay:"
LARGE = ("actions",)  # fields of an episode that only the journal holds
Through = Literal["process", "ros", "ray"]
EFFORT = ("workers", "through", "watched")  # options that say how to get the result, not which
MAX_DELAY_S = 1.0  # the controller node's `max_chunk_age_s`


@dataclass(frozen=True)
class EvalOptions:
    """What to evaluate: `episodes` are dealt to the tasks in turn, with seeds from `seed0` upwards."""

    policy: Path | str  # folder of a bundle; or `expert`, `random`, `replay:FILE`
    backend: BackendName = "auto"
    suite: str = "embedded"
    episodes: int = 60
    seed0: int | None = None  # None: 10,000 for the embedded suites, else 0 (trial i, initial state i)
    workers: int = 0  # processes; 0 runs the episodes in this one
    image_size: int = 128  # pixels, as the shipped policy's training data
    execute_steps: int | None = None  # rows executed per decision; None takes the bundle's
    tasks: tuple[int, ...] = ()  # empty: all tasks of the suite
    trials: int | None = None  # episodes per task; given, it stands in for `episodes`
    thinking: Thinking = "drafts"
    decoding: Decoding | Literal["swapped"] = "hybrid"  # one of the variants that the paper compares
    delay: float | Literal["measured"] | None = None  # seconds from picture to chunk; None: the world waits
    chunk_mode: ChunkMode = "open_loop"  # how chunks are executed, with a delay
    chunk_seam: ChunkSeam = "cut"
    through: Through = "process"  # how the episodes are run: the results are the same
    watched: bool = False  # render every picture, also those that nobody looks at
    variation: str = ""  # what looks, sounds or stands otherwise; see `dtvla.sim.perturbations.perturbation`
    max_steps: int | None = None  # control periods of an episode; None takes the suite's limit

    def __post_init__(self) -> None:
        self._check_delay()
        self._check_variation()
        if self.max_steps is not None and self.max_steps < 1:
            raise InputError(f"An episode of {self.max_steps} steps is none: --max-steps must be 1 or more.")
        if self.thinking == "lagging" and self.decoding != "hybrid":
            raise InputError(f"Lagging thoughts need hybrid decoding, not {self.decoding}.")

    def _check_delay(self) -> None:
        if self.delay is None:
            if (self.chunk_mode, self.chunk_seam) != ("open_loop", "cut"):
                raise InputError("--chunk-mode and --chunk-seam need a --delay; 0 is one.")
            return
        if self.scripted:
            raise InputError(f"A delay is for a policy that sees; '{self.policy}' is none.")
        if self.delay != "measured" and not 0 <= self.delay <= MAX_DELAY_S:
            raise InputError(
                f"A delay of {self.delay:g} s is not possible: 0 to {MAX_DELAY_S:g} s are, as the controller "
                "refuses chunks whose picture is older."
            )
        if self.chunk_mode == "open_loop" and self.chunk_seam != "cut":
            raise InputError("Chunks in open_loop follow each other without a passage: leave --chunk-seam.")

    def _check_variation(self) -> None:
        variation = Variation.parse(self.variation)
        if self.decoding == "swapped" and variation is not None and variation.name == INSTRUCTION:
            raise InputError("Thoughts are swapped by the suite's own words; leave --variation instruction.")

    @property
    def first_seed(self) -> int:
        """The seed, or in LIBERO's suites the initial state, of each task's first episode."""
        if self.seed0 is not None:
            return self.seed0
        return 10_000 if self.suite in embedded.SUITES else 0

    @property
    def scripted(self) -> bool:
        """Whether something else than a bundle decides."""
        return str(self.policy) in ("expert", "random") or str(self.policy).startswith(REPLAY)


@dataclass(frozen=True)
class _StoredOptions(EvalOptions):
    """Options as a file holds them: a path is a string, and a summary leaves the policy's out."""

    policy: str = ""


@dataclass(frozen=True)
class EpisodeResult:
    """One episode; `error` is set when it could not be run to its end."""

    task: int
    task_name: str
    seed: int
    success: bool
    steps: int
    decisions: int
    latency_p50_ms: float
    target_within_3cm: float  # share of thoughts that place what they name within 3 cm of the truth
    phase_stated: float  # share of thoughts in the form that can be checked
    thoughts: tuple[str, ...]
    outcome: str = ""  # how it ended, one of `OUTCOMES`
    error: str = ""
    state_sha256: str = ""  # over every simulator state, as the bridge reports it: equal runs agree
    actions: str = ""  # what was executed; see `pack_actions`
    decided_at: tuple[int, ...] = ()  # the step at which each thought was thought
    motion: dict[str, float] = field(default_factory=dict)  # see `dtvla.evaluation.smoothness.Motion`
    agreement: dict[str, float] = field(default_factory=dict)  # shares: see `dtvla.sim.thoughts.agreement`


def failed(task: int, seed: int, error: str, name: str = "") -> EpisodeResult:
    """The result of an episode that could not be run to its end: an error, no failure of the policy."""
    nothing = (math.nan, math.nan, math.nan)
    return EpisodeResult(task, name or str(task), seed, False, 0, 0, *nothing, (), error=error)


def pack_actions(actions: Sequence[NDArray[np.floating]]) -> str:
    """Actions [T, 7] as base64 of float64, so that a replay gets every bit."""
    return base64.b64encode(np.array(actions, "<f8").tobytes()).decode()


def unpack_actions(packed: str) -> NDArray[np.float64]:
    """The actions [T, 7] that `pack_actions` packed.

    Raises:
        InputError: they are not finite, or nothing that was packed so.
    """
    try:
        content = base64.b64decode(packed, validate=True)
        actions = np.frombuffer(content, "<f8").reshape(-1, 7).astype(np.float64)
    except ValueError as error:
        raise InputError(f"The recorded actions are damaged ({plain(error)}).") from None
    if not np.isfinite(actions).all():
        raise InputError("The recorded actions hold numbers that are not finite.")
    return actions


class Journal:
    """The growing record of an evaluation: a first line with what it is of, then one line per episode."""

    def __init__(self, folder: Path, options: EvalOptions) -> None:
        """Opens a folder's record, or begins one.

        Raises:
            ValueError: the folder holds the record of another evaluation.
        """
        self.path = folder / JOURNAL
        self.finished: list[EpisodeResult] = []
        head = identity(options)
        if self.path.is_file():
            begun, self.finished = read_journal(self.path)
            for key, value in head.items():
                if begun.get(key) != value:
                    raise InputError(
                        f"{folder} was begun with {key} {begun.get(key)!r}, now it is {value!r}. "
                        "Start a new evaluation, or restore what was there."
                    )
            self._write_all(begun)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            self._write_all(head)

    def add(self, result: EpisodeResult) -> None:
        """Writes one finished episode to the disk."""
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(result)) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _write_all(self, head: dict[str, Any]) -> None:
        """Rewrites the record: without a line that was cut off, and without episodes to be tried again."""
        lines = [json.dumps(head), *(json.dumps(asdict(result)) for result in self.finished)]
        part = self.path.with_suffix(".part")
        part.write_text("\n".join(lines) + "\n")
        part.replace(self.path)


def read_journal(path: Path) -> tuple[dict[str, Any], list[EpisodeResult]]:
    """The first line of a record, and its episodes that ran to their end. A last line cut off is left out.

    Raises:
        InputError: it is no record of an evaluation.
    """
    try:
        lines = path.read_text().splitlines()
        head = json.loads(lines[0])
        rows = []
        for number, line in enumerate(lines[1:], 2):
            try:
                rows.append(json.loads(line))
            except ValueError:
                if number < len(lines):
                    raise
        results = [read(EpisodeResult, row, others=True) for row in rows]
        head["options"]["suite"]
        head["options"] = stored(EvalOptions("")) | head["options"]  # an older record knows fewer options
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} is no record of an evaluation ({type(error).__name__}: {plain(error)})."
        ) from error
    return head, [result for result in results if not result.error]


@dataclass(frozen=True)
class Summary:
    """What `results.json` says of an evaluation; its totals are counted again from the episodes.

    Attributes:
        policy: name of the bundle's folder, or of the script.
        fingerprint: of the bundle; empty for a script.
        suite, assets: the world.
        machine: that it was made on.
        options: what was evaluated, by name, without the policy.
        results: every episode, those that could not be run to their end among them.
    """

    policy: str
    fingerprint: str
    suite: str
    assets: str
    machine: str
    options: dict[str, Any]
    results: tuple[EpisodeResult, ...]

    def to_json(self) -> dict[str, Any]:
        """The content of the file."""
        ran = [result for result in self.results if not result.error]
        successes = sum(result.success for result in ran)
        return {
            **{name: value for name, value in vars(self).items() if name != "results"},
            "episodes": len(ran),
            "errors": len(self.results) - len(ran),
            "successes": successes,
            "success_rate": successes / len(ran) if ran else None,
            "interval_95": wilson(successes, len(ran)),
            "thoughts_right": mean_agreement(ran),
            "results": [
                {name: value for name, value in asdict(result).items() if name not in LARGE}
                for result in self.results
            ],
        }


def write_results(path: Path, options: EvalOptions, results: Sequence[EpisodeResult]) -> None:
    """Writes every episode, the totals, and which policy on which machine they are of, as JSON."""
    known = identity(options)
    values = stored(options, but=()) | {"seed0": options.first_seed}
    del values["policy"]  # where it lay on that machine: the fingerprint says which it is
    summary = Summary(
        policy=str(options.policy) if options.scripted else Path(options.policy).name,
        fingerprint=known["fingerprint"],
        suite=options.suite,
        assets=known["assets"],
        machine=machine(),
        options=values,
        results=tuple(results),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(summary.to_json(), indent=1))


def read_summary(path: Path) -> Summary:
    """What `write_results` wrote, now or in an earlier version.

    Raises:
        InputError: it is no summary of an evaluation.
    """
    try:
        data = json.loads(path.read_text())
        options = _real_values(data["options"])
        older = {"policy": "", "fingerprint": "", "machine": ""}
        older |= {"suite": options["suite"], "assets": assets_label("embedded")}
        return read(Summary, {**older, **data, "options": options}, others=True)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} is no summary of an evaluation ({type(error).__name__}: {plain(error)})."
        ) from error


def _real_values(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a summary. Version 0.1 wrote each of them as Python's `str` of it."""
    if not all(isinstance(value, str) for value in options.values()):
        return options
    return {name: _as_json(_literal(text)) for name, text in options.items()}


def _literal(text: str) -> Any:
    """The value that a text stands for in Python; a word stands for itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def read_options(values: dict[str, Any], path: Path) -> EvalOptions:
    """Options as a file holds them; what it leaves out has its default.

    Args:
        values: the options by name.
        path: of the file, for the sentence.

    Raises:
        InputError: one is unknown, of another type or out of its choices.
    """
    try:
        return EvalOptions(**vars(read(_StoredOptions, values)))
    except FieldError as error:
        raise InputError(
            f"The options in {path} are not those of an evaluation: {plain(error).rstrip('.')}."
        ) from None


def begun_options(folder: Path) -> EvalOptions:
    """The options that the evaluation in a folder was begun with.

    Raises:
        InputError: there is none.
    """
    path = folder / JOURNAL
    return read_options(read_journal(path)[0]["options"], path)


def identity(options: EvalOptions) -> dict[str, Any]:
    """What must stay the same while an evaluation goes on: options (but the effort), policy, assets."""
    return {
        "options": stored(options),
        "fingerprint": "" if options.scripted else Bundle.load(options.policy).fingerprint,
        "assets": assets_label(options.suite),
    }


def stored(options: EvalOptions, but: Sequence[str] = EFFORT) -> dict[str, Any]:
    """The options as JSON gives them back, without some of them."""
    values = asdict(options) | {"policy": str(options.policy)}
    kept: dict[str, Any] = _as_json({name: value for name, value in values.items() if name not in but})
    return kept


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def assets_label(suite: str) -> str:
    """With which assets a suite's results were made."""
    return "none needed" if suite in embedded.SUITES else assets.label()


def outcome(success: bool, lifted: Sequence[str], *targets: str) -> str:
    """How an episode ended, one of `OUTCOMES`.

    Args:
        success: the task's own check.
        lifted: the objects that were picked up, in the order in which they first were.
        targets: the objects that the task asks for.
    """
    if success:
        return OUTCOMES[0]
    if not lifted:
        return OUTCOMES[1]
    return OUTCOMES[2] if lifted[0] not in targets else OUTCOMES[3]


def mean_agreement(results: Sequence[EpisodeResult]) -> dict[str, float]:
    """The shares of thoughts that agree with the simulator, over the decisions of all episodes."""
    knowing = [result for result in results if result.agreement]
    decisions = sum(result.decisions for result in knowing)
    return {
        key: sum(result.agreement[key] * result.decisions for result in knowing) / decisions
        for key in (knowing[0].agreement if knowing else ())
    }


def machine() -> str:
    """The machine that results were made on."""
    return f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}"
