"""Measures what thinking costs: plain, with drafts, in the background, and not at all.

The looks are recorded first, in closed loop, by the policy itself thinking plainly; then every way of
thinking decides on each look, one after the other, so that a busy machine is busy for all of them.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from dtvla.policy.backends.onnxruntime import OnnxRuntimeBackend
from dtvla.policy.bundle.loading import Bundle
from dtvla.policy.decoding import Sampler
from dtvla.policy.options import DecisionOptions
from dtvla.policy.policy import Decision, Policy
from dtvla.policy.speculative_decoding import GUESSED
from dtvla.policy.token_layout import NEVER, Bounds, TokenLayout

MODES = ("plain", "drafts", "background", "no thought")
MOST_OF_MASKED = 1.3  # target: a decision with drafts against one with an empty thought
IMAGE_PX = 128
LENGTHS = (10, 20, 30, 40, 50, 60)  # tokens of a thought, tags included
SEED0 = 20_000


@dataclass(frozen=True)
class RecordedObservation:
    """One recorded look: what the policy saw and what it plainly thought."""

    images: dict[str, NDArray[np.uint8]]
    instruction: str
    thought: NDArray[np.int64]
    first: bool  # of its episode


@dataclass
class ModeFigures:
    """One way of thinking. Latencies are [p50, p99] in ms."""

    decisions: int
    tokens: float
    passes: float
    accepted: float  # share of thought tokens that came from a draft
    latency_ms: tuple[float, float]
    words_changed: int  # decisions whose thought is not the plain one
    actions_changed: int
    solved: tuple[int, int] | None = None  # episodes in closed loop, and of how many


@dataclass
class ThoughtReport:
    """What thinking costs with one bundle."""

    bundle: str
    scripted: bool  # the words were dictated (random weights think nothing): only the time is real
    row_cost: float  # one more row of a pass against one more pass
    modes: dict[str, ModeFigures] = field(default_factory=dict)

    @property
    def of_masked(self) -> float:
        """Median decision with drafts against the median without a thought."""
        return self.modes["drafts"].latency_ms[0] / self.modes["no thought"].latency_ms[0]


def enlarged(observation: RecordedObservation, size: int) -> RecordedObservation:
    """The look with its pixels repeated until a policy that sees `size` of them takes it."""
    images = {}
    for name, image in observation.images.items():
        times = -(-size // min(image.shape[:2]))
        images[name] = np.repeat(np.repeat(image, times, 0), times, 1)
    return replace(observation, images=images)


class DictatedSampler(Sampler):
    """Takes words from a recorded thought instead of from the logits, in the same number of passes.

    What rows behind a wrong word guess is dictated too: as large a share of the words that have changed
    since the last thought as the shipped policy guesses (`GUESSED`), and the old words in the other places.
    """

    def __init__(self, layout: TokenLayout) -> None:
        super().__init__(layout)
        self._words: list[int] = []
        self.dictate(())

    def dictate(self, words: Iterable[int]) -> None:
        """Sets the thought that is to be written."""
        self._old, self._words, self._written = self._words, list(words), 0

    def words(self, logits: NDArray[np.float32]) -> Iterator[int]:
        """The next recorded words, one for each row that is looked at."""
        for _ in logits:
            self._written += 1
            yield self._words[self._written - 1]

    def guesses(self, logits: NDArray[np.float32]) -> list[int]:
        """The words behind those, as they would be guessed."""
        behind = slice(self._written, self._written + len(logits))
        new, old = self._words[behind], self._old[behind]
        old = (old + new[len(old) :])[: len(new)]  # a thought may have gained words, or lost some
        hits = self._rng.random(len(new)) < GUESSED
        return [word if hit else before for word, before, hit in zip(new, old, hits, strict=True)]


def record(
    bundle: Path, suite: str, decisions: int, progress: Callable[[str], None]
) -> list[RecordedObservation]:
    """At least `decisions` looks of whole episodes in closed loop, tasks in turn."""
    context = multiprocessing.get_context("spawn")  # a renderer does not survive a fork
    here, there = context.Pipe(duplex=False)
    worker = context.Process(target=_record, args=(there, bundle, suite, decisions), daemon=True)
    worker.start()
    there.close()
    looks: list[RecordedObservation] = []
    try:
        while len(looks) < decisions:
            looks += here.recv()
            progress(f"recorded {len(looks)} of {decisions} looks")
    except EOFError:
        raise RuntimeError("The recording process died. `dtvla doctor` may know why.") from None
    worker.join()
    return looks


def _record(pipe: Connection, bundle: Path, suite: str, decisions: int) -> None:
    from dtvla.evaluation.runner import run_episode
    from dtvla.sim.env import SimEnv, list_tasks

    policy = _Watched(Policy.load(bundle, options=DecisionOptions(drafts=False)))
    tasks, count, episode = list_tasks(suite), 0, 0
    env: SimEnv | None = None
    while count < decisions:
        task = episode % len(tasks)
        if env is not None:
            env.close()
        env = SimEnv(suite, task, image_size=IMAGE_PX)
        run_episode(env, policy, SEED0 + episode, policy.execute_steps)
        pipe.send(policy.looks)
        count, episode = count + len(policy.looks), episode + 1
    if env is not None:
        env.close()


class _Watched:
    """A policy whose looks of the running episode are kept."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.execute_steps = policy.bundle.spec.execute_steps
        self.looks: list[RecordedObservation] = []

    def reset(self) -> None:
        self._policy.reset()
        self.looks = []

    def decide(self, images: dict[str, NDArray[np.uint8]], instruction: str) -> Decision:
        decision = self._policy.decide(images, instruction)
        self.looks.append(
            RecordedObservation(images, instruction, decision.thought_ids, first=not self.looks)
        )
        return decision


def measure(bundle: Path, looks: list[RecordedObservation], *, scripted: bool = False) -> ThoughtReport:
    """Decides on every look in every mode.

    Args:
        bundle: the policy.
        looks: recorded looks.
        scripted: dictate the recorded thoughts; the bundle's tokenizer must know their ids.
    """
    loaded = Bundle.load(bundle)
    backend = OnnxRuntimeBackend(loaded.path, loaded.spec)
    layout = loaded.spec.layout
    options = {
        "plain": DecisionOptions(drafts=False),
        "drafts": DecisionOptions(),
        "background": DecisionOptions(),
        "no thought": DecisionOptions(decoding="masked"),
    }
    samplers = {name: DictatedSampler(layout) if scripted else Sampler(layout) for name in MODES}
    policies = {name: Policy(loaded, backend.sibling(), options[name], samplers[name]) for name in MODES}
    report = ThoughtReport(loaded.path.name, scripted, round(row_cost(backend, layout.end_think), 3))
    decisions: dict[str, list[Decision]] = {name: [] for name in MODES}
    for recorded in looks:
        observation = enlarged(recorded, loaded.spec.image.size)
        for name in MODES:
            sampler = samplers[name]
            if isinstance(sampler, DictatedSampler):
                sampler.dictate(observation.thought.tolist())
            if observation.first:
                policies[name].reset()
            if name == "background" and not observation.first:
                known = decisions["plain"][-2].thought_ids  # what was thought about the look before
                decision = policies[name].act(observation.images, observation.instruction, known)
            else:
                decision = policies[name].decide(observation.images, observation.instruction)
            decisions[name].append(decision)
    for name in MODES:
        report.modes[name] = _figures(decisions[name], decisions["plain"])
    return report


def closed_loop(bundle: Path, suite: str, episodes: int) -> dict[str, tuple[int, int]]:
    """Episodes solved, and of how many, by mode: the same unseen seeds for each, all processors."""
    from dtvla.evaluation.runner import EvalOptions, evaluate

    ways: dict[str, dict[str, Any]] = {
        "plain": {"thinking": "plain"},
        "drafts": {"thinking": "drafts"},
        "background": {"thinking": "lagging"},
        "no thought": {"decoding": "masked"},
    }
    solved = {}
    for mode, way in ways.items():
        options = EvalOptions(bundle, suite=suite, episodes=episodes, workers=os.cpu_count() or 1, **way)
        results = [result for result in evaluate(options) if not result.error]
        solved[mode] = sum(result.success for result in results), len(results)
    return solved


def _figures(decisions: list[Decision], plain: list[Decision]) -> ModeFigures:
    milliseconds = [1e3 * decision.timings["total"] for decision in decisions]
    pairs = list(zip(decisions, plain, strict=True))
    return ModeFigures(
        decisions=len(decisions),
        tokens=round(float(np.mean([d.tokens for d in decisions])), 1),
        passes=round(float(np.mean([d.passes for d in decisions])), 1),
        accepted=round(sum(d.accepted for d in decisions) / sum(d.tokens for d in decisions), 3),
        latency_ms=percentiles(milliseconds),
        words_changed=sum(d.thought_ids.tolist() != p.thought_ids.tolist() for d, p in pairs),
        actions_changed=sum(bool((d.raw_actions != p.raw_actions).any()) for d, p in pairs),
    )


def percentiles(values: list[float]) -> tuple[float, float]:
    """p50 and p99."""
    median, worst = np.percentile(values, (50, 99))
    return round(float(median), 2), round(float(worst), 2)


def by_length(
    bundle: Path,
    observation: RecordedObservation,
    accepted: float,
    lengths: Iterable[int] = LENGTHS,
    repeats: int = 4,
) -> dict[str, list[float]]:
    """Median latency of a decision in ms against the length of its thought, by way of thinking.

    The thoughts are dictated: made-up words, of which every n-th changes from one decision to the next, so
    that the share `accepted` of them stays as it was in recorded episodes. "reference" thinks token by
    token, then runs the whole sequence again for its actions, as the published code does.
    """
    loaded = Bundle.load(bundle)
    observation = enlarged(observation, loaded.spec.image.size)
    layout = loaded.spec.layout
    backend = OnnxRuntimeBackend(loaded.path, loaded.spec)
    words = [token for token in range(layout.action_begin) if token > layout.end_action]
    curves: dict[str, list[float]] = {"reference": [], "plain": [], "drafts": [], "background": []}
    every = max(2, round(1.0 / max(1.0 - accepted, 1e-3)))
    for length in lengths:
        samplers = {"plain": DictatedSampler(layout), "drafts": DictatedSampler(layout)}
        plain, drafts = (
            Policy(loaded, backend.sibling(), DecisionOptions(drafts=name == "drafts"), sampler)
            for name, sampler in samplers.items()
        )
        seconds: dict[str, list[float]] = {name: [] for name in curves}
        before: list[int] = []
        for turn in range(repeats + 1):
            changing = [words[(turn * (i % every == 0) + i) % len(words)] for i in range(length - 3)]
            thought = [layout.think, *changing, layout.end_think, layout.action]
            decisions = {}
            for name, policy in (("plain", plain), ("drafts", drafts)):
                samplers[name].dictate(thought)
                decisions[name] = policy.decide(observation.images, observation.instruction)
            known = np.array(before or thought)
            decisions["background"] = drafts.act(observation.images, observation.instruction, known)
            whole = plain.act(observation.images, observation.instruction, np.array(thought))
            before = thought
            if turn == 0:  # there is no draft yet
                continue
            for name, decision in decisions.items():
                seconds[name].append(decision.timings["total"])
            parts = decisions["plain"].timings
            seconds["reference"].append(parts["total"] - parts["act"] + whole.timings["act"])
        for name, values in seconds.items():
            curves[name].append(round(1e3 * float(np.median(values)), 2))
    return curves


def plot(curves: dict[str, list[float]], path: Path, title: str, lengths: Iterable[int] = LENGTHS) -> None:
    """Draws `by_length` into a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    names = {
        "reference": "the reference's way (think, then all again)",
        "plain": "plain (cached keys)",
        "drafts": "drafts of the last thought",
        "background": "acting on the last thought",
    }
    for name, values in curves.items():
        axes.plot(list(lengths), values, marker="o", label=names[name])
    axes.set(xlabel="length of the thought (tokens)", ylabel="median decision (ms)", title=title, ylim=0)
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def row_cost(backend: OnnxRuntimeBackend, token: int, more: int = 16, repeats: int = 50) -> float:
    """One more row of a pass against a pass of one row, by medians."""

    def median_s(rows: int) -> float:
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            backend.decode(
                np.full(rows, token), Bounds(100, NEVER, 100 + rows, 100), think_rows=tuple(range(rows))
            )
            seconds.append(time.perf_counter() - started)
        return float(np.median(seconds))

    one = median_s(1)
    return (median_s(1 + more) - one) / more / one


def table(report: ThoughtReport) -> Table:
    """The report for people."""
    words = "dictated thoughts, random weights" if report.scripted else "recorded looks"
    view = Table(
        box=box.SIMPLE,
        collapse_padding=True,
        pad_edge=False,
        title=f"What thinking costs: {report.bundle}, {words}",
        caption=f"One more row costs {report.row_cost:.2f} of a pass; times: p50 of that without a thought. "
        f"Words, acts: of {report.modes['plain'].decisions} decisions, those whose words or actions are "
        "not the plain ones.",
    )
    heads = ("mode", "tokens", "kept", "passes", "p50 ms", "p99 ms", "times", "words", "acts", "solved")
    for name in heads:
        view.add_column(name, justify="left" if name == "mode" else "right")
    base = report.modes["no thought"].latency_ms[0]
    for name, mode in report.modes.items():
        same = name in ("plain", "no thought")
        view.add_row(
            name,
            f"{mode.tokens:.1f}",
            f"{mode.accepted:.0%}",
            f"{mode.passes:.1f}",
            f"{mode.latency_ms[0]:.1f}",
            f"{mode.latency_ms[1]:.1f}",
            f"{mode.latency_ms[0] / base:.2f}",
            "" if same else str(mode.words_changed),
            "" if same else str(mode.actions_changed),
            f"{mode.solved[0]}/{mode.solved[1]}" if mode.solved else "",
        )
    return view
