"""The command `dtvla gate`: for a workflow that must not let a worse policy or runtime pass."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import arg

from dtvla.policy.options import BackendName

OK, FAILED = 0, 1

console = Console()


def gate(
    record: Path,
    bundle: Annotated[str | None, arg(aliases=("--policy",))] = None,
    episodes: int = 12,
    backend: BackendName = "auto",
    ros: bool = False,
    workers: int = 0,
    assets: Path | None = None,
    output: Path = Path("runs/gate"),
) -> int:
    """Let a policy pass only if it still solves what is on record. Exit status 0: passed, 1: not.

    Args:
        record: The results.json of an evaluation (dtvla eval): suite, tasks, seeds and options are taken from
            it. Its success rate, minus the 95 % interval for as many episodes as run now, must be reached.
        bundle: Folder of the policy bundle, or expert. Default: the bundle that ships with dtvla.
        episodes: Number of episodes, the first of the record; 0: all of them.
        backend: What runs it. auto: TensorRT engines that fit this machine, else ONNX Runtime on the CPU.
        ros: Through the real ROS graph in lockstep.
        workers: Processes, or graphs. Default: one per processor.
        assets: Folder or tar archive with LIBERO's assets. Default: DTVLA_ASSETS, or what was fetched.
        output: Where the results go (a folder per run is made in it).
    """
    from dtvla.bringup import graph_evaluation
    from dtvla.bringup.demo import fresh_folder
    from dtvla.cli.evaluate import evaluate_into, use_assets
    from dtvla.evaluation.gate import judge, load_reference
    from dtvla.evaluation.runner import in_processes
    from dtvla.policy.bundle.loading import Bundle
    from dtvla.resources import default_bundle

    use_assets(assets)
    on_record = load_reference(record)
    most = len(on_record.results)
    options = replace(
        on_record.options,
        policy=bundle or default_bundle(),
        backend=backend,
        episodes=min(episodes or most, most),
        trials=None,
        through="ros" if ros else "process",
        watched=False,
    )
    if ros:
        graph_evaluation.check(options)
    if not options.scripted:
        loaded = Bundle.load(options.policy)
        options = replace(options, policy=str(loaded.path))
        if loaded.fingerprint != on_record.head["fingerprint"]:
            console.print("Another bundle than the one on record: its success rate is the one to reach.")
    folder = fresh_folder(output)
    runner = graph_evaluation.runner(folder) if ros else in_processes
    results = evaluate_into(folder, options, workers or os.cpu_count() or 1, runner)
    verdict = judge(on_record, results)
    console.print(
        verdict.sentence, style="green" if verdict.passed else "red", highlight=False, soft_wrap=True
    )
    return OK if verdict.passed else FAILED
