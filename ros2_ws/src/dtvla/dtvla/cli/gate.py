"""The command `dtvla gate`: for a workflow that must not let a worse policy or runtime pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from dtvla.cli.common import FAILED, FLAT, OK, PolicyChoice, console, use_assets


@dataclass(frozen=True, kw_only=True)
class Gate(PolicyChoice):
    """Options of `dtvla gate`."""

    record: Path
    """The results.json of an evaluation (dtvla eval): suite, tasks, seeds and options are taken from it. Its
    success rate, minus the 95 % interval for as many episodes as run now, must be reached."""
    bundle: Annotated[str | None, arg(aliases=("--policy",))] = None
    """Folder of the policy bundle, or expert. Default: the bundle that ships with dtvla."""
    episodes: int = 12
    """Number of episodes, the first of the record; 0: all of them."""
    ros: bool = False
    """Through the real ROS graph in lockstep."""
    workers: int = 0
    """Processes, or graphs. Default: one per processor."""
    output: Path = Path("runs/gate")
    """Where the results go (a folder per run is made in it)."""


def gate(asked: Annotated[Gate, FLAT]) -> int:
    """Let a policy pass only if it still solves what is on record. Exit status 0: passed, 1: not."""
    from dtvla.bringup import graph_evaluation
    from dtvla.bringup.demo import fresh_folder
    from dtvla.cli.evaluate import evaluate_into
    from dtvla.evaluation.gate import judge, load_reference
    from dtvla.evaluation.runner import in_processes
    from dtvla.policy.bundle.loading import Bundle
    from dtvla.resources import default_bundle

    use_assets(asked.assets)
    on_record = load_reference(asked.record)
    most = len(on_record.results)
    options = replace(
        on_record.options,
        policy=asked.bundle or default_bundle(),
        backend=asked.backend,
        episodes=min(asked.episodes or most, most),
        trials=None,
        through="ros" if asked.ros else "process",
        watched=False,
    )
    if asked.ros:
        graph_evaluation.check(options)
    if not options.scripted:
        loaded = Bundle.load(options.policy)
        options = replace(options, policy=str(loaded.path))
        if loaded.fingerprint != on_record.head["fingerprint"]:
            console.print("Another bundle than the one on record: its success rate is the one to reach.")
    folder = fresh_folder(asked.output)
    runner = graph_evaluation.runner(folder) if asked.ros else in_processes
    results = evaluate_into(folder, options, asked.processes, runner)
    verdict = judge(on_record, results)
    console.print(
        verdict.sentence, style="green" if verdict.passed else "red", highlight=False, soft_wrap=True
    )
    return OK if verdict.passed else FAILED
