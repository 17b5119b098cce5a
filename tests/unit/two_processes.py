"""Runs under torchrun: the run of `test_sft.py` twice, replicated and sharded. Arguments: data, folder."""

from __future__ import annotations

import sys
from pathlib import Path

from training.sft.__main__ import run
from training.sft.settings import DataSettings, OptimiserSettings, Sft

if __name__ == "__main__":
    data, folder = map(Path, sys.argv[1:])
    for parallel in ("replicate", "shard"):
        run(
            Sft(
                out=folder / parallel,
                steps=4,
                batch=4,
                threads=1,
                log_every=1,
                save_every=2,
                parallel=parallel,
                data=DataSettings(data, hold_out=4),
                optimiser=OptimiserSettings("adamw", 1e-3, warmup=2, eps=1e-3),
            )
        )
