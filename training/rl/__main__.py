"""Reinforcement learning of a policy in the simulator: GRPO on success and well-formed thoughts.

    python -m training.rl --config rl-tiny --checkpoint runs/sft/tiny/best --out runs/rl/tiny
    torchrun --nproc-per-node 8 -m training.rl --config rl-deepthinkvla-2.9b --checkpoint owner/name

The same command resumes. TensorBoard reads the run's folder.
"""

from __future__ import annotations

import os

from rich.console import Console

from dtvla.errors import BundleError
from dtvla.evaluation.worker_pool import EvaluationRefused
from dtvla.sim.bootstrap import SimulatorUnavailable
from training.common import parallel
from training.common.run_checkpoints import TrainingError
from training.common.settings import parse
from training.model.hf_checkpoint import CheckpointError
from training.rl.loop import train
from training.rl.settings import Rl


def main(settings: Rl) -> int:
    """Trains; returns the exit code."""
    quiet = os.environ.get("RANK", "0") != "0"
    if "WORLD_SIZE" in os.environ:
        parallel.begin(settings.device)
    try:
        train(settings, Console(quiet=quiet))
    except (
        TrainingError,
        CheckpointError,
        BundleError,
        EvaluationRefused,
        SimulatorUnavailable,
    ) as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}", highlight=False)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main(parse(Rl, __doc__ or "")))
