"""Checkpoints of a run that survive what may happen while they are written.

A run's folder holds `step_000100/`, `step_000200/` and the links `last` and `best`. A checkpoint is written
beside them and renamed when it is whole, and the link is moved after that: kill -9, or a full disk, leaves
the one before. Each is a complete checkpoint (`python -m model_export runs/sft/tiny/best`) with the
trainer's state beside the weights: `torch.distributed.checkpoint`, so that a run on eight GPUs goes on on
four, and every process writes its own share.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch.distributed as distributed
from safetensors import SafetensorError
from torch import nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from training.common import parallel

LAST, BEST = "last", "best"
TRAINER = "trainer"
PART = ".part"


class TrainingError(ValueError):
    """A run that cannot go on; the message says why and what to do."""


@contextlib.contextmanager
def writing(what: str) -> Iterator[None]:
    """Turns a full disk into a sentence.

    Raises:
        TrainingError: it is full, or cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"{what} cannot be written: {error.strerror or error}. Make room, and run the same command "
            "again: it goes on from the last checkpoint."
        ) from error


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: of the run.
        keep: how many of the newest stay; the best one stays always.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self._keep = folder, max(1, keep)

    def last(self) -> Path | None:
        """The newest whole checkpoint; None before the first one."""
        return self._linked(LAST)

    def best(self) -> Path | None:
        """The best one by the run's own measure; None when none was called so."""
        return self._linked(BEST)

    def steps(self) -> list[Path]:
        """All whole checkpoints, oldest first."""
        found = (path for path in self.folder.glob("step_*") if re.fullmatch(r"step_\d+", path.name))
        return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """Writes the checkpoint of a step and makes it the last one.

        Args:
            step: optimiser steps done.
            write: fills the given folder; called in every process, with the same folder.

        Raises:
            TrainingError: the disk is full or cannot be written; what was there before is whole.
        """
        goal = self.folder / f"step_{step:06d}"
        part = goal.with_name(goal.name + PART)
        error: OSError | None = None
        try:
            if parallel.rank() == 0:
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir(parents=True)
            parallel.wait()
            write(part)
            parallel.wait()
            if parallel.rank() == 0:
                _flush(part.rglob("*"))
                shutil.rmtree(goal, ignore_errors=True)
                part.rename(goal)
                self._link(LAST, goal)
                self._tidy()
        except (OSError, RuntimeError, SafetensorError, CheckpointException) as caught:
            error = _cause(caught)
            if error is None:
                raise
        if error is not None:
            shutil.rmtree(part, ignore_errors=True)
            raise TrainingError(
                f"The checkpoint of step {step} cannot be written to {self.folder}: "
                f"{error.strerror or error}. "
                f"The last whole one is {self.last() or 'none'}. Make room, and run the same command again: "
                "it goes on from there."
            ) from error
        parallel.wait()
        return goal

    def mark_best(self, checkpoint: Path) -> None:
        """Makes a checkpoint the best one."""
        if parallel.rank() == 0:
            self._link(BEST, checkpoint)
            self._tidy()

    def _linked(self, name: str) -> Path | None:
        link = self.folder / name
        return link.resolve() if link.is_dir() else None

    def _link(self, name: str, goal: Path) -> None:
        fresh = self.folder / f"{name}{PART}"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(goal.name)
        os.replace(fresh, self.folder / name)

    def _tidy(self) -> None:
        kept = {self.last(), self.best(), *(path.resolve() for path in self.steps()[-self._keep :])}
        for path in self.steps():
            if path.resolve() not in kept:
                shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.glob(f"step_*{PART}"):
            shutil.rmtree(path, ignore_errors=True)


def full_weights(model: nn.Module) -> dict[str, Any]:
    """All weights on the CPU, in the first process; empty in the others. Every process must call it."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: dict[str, Any] = get_model_state_dict(model, options=options)
    return weights if parallel.rank() == 0 else {}


def save_trainer(folder: Path, model: nn.Module, optimisers: list[Optimizer], rest: dict[str, Any]) -> None:
    """Weights, optimisers and `rest` (anything that `torch.distributed.checkpoint` stores), sharded."""
    state = _trainer_state(model, optimisers) | rest
    with _quietly():
        state_dict_saver.save(state, checkpoint_id=folder / TRAINER, no_dist=not distributed.is_initialized())


def load_trainer(
    folder: Path, model: nn.Module, optimisers: list[Optimizer], rest: dict[str, Any]
) -> dict[str, Any]:
    """Restores what `save_trainer` wrote, on any number of processes; returns `rest` as it was saved.

    Raises:
        TrainingError: the checkpoint is of another model, or damaged.
    """
    state = _trainer_state(model, optimisers) | rest
    try:
        with _quietly():
            state_dict_loader.load(
                state, checkpoint_id=folder / TRAINER, no_dist=not distributed.is_initialized()
            )
    except (RuntimeError, ValueError, OSError, CheckpointException) as error:
        reason = str(_cause(error) or error).strip().splitlines()[-1]
        raise TrainingError(
            f"{folder} does not fit this run ({reason}). Was the configuration changed? Give another --out, "
            "or the settings that it was made with."
        ) from error
    set_model_state_dict(model, state["model"])
    for number, optimiser in enumerate(optimisers):
        set_optimizer_state_dict(model, optimiser, state[f"optimiser_{number}"])
    return {key: state[key] for key in rest}


def _trainer_state(model: nn.Module, optimisers: list[Optimizer]) -> dict[str, Any]:
    state: dict[str, Any] = {"model": get_model_state_dict(model)}
    for number, optimiser in enumerate(optimisers):
        state[f"optimiser_{number}"] = get_optimizer_state_dict(model, optimiser)
    return state


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the library's remark that a single process saves for itself: it is meant to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*assuming the intent is to.*")
        yield


def _flush(paths: Iterable[Path]) -> None:
    """Onto the disk itself: a rename must not overtake the contents when the power fails."""
    for path in paths:
        if path.is_file():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())


def _cause(error: BaseException) -> OSError | None:
    """The system's error inside one of the libraries'."""
    if isinstance(error, OSError):
        return error
    if number := re.search(r"os error (\d+)", str(error)):  # how Rust says it
        return OSError(int(number[1]), os.strerror(int(number[1])))
    inner = list(getattr(error, "failures", {}).values())
    found_in = [item[0] if isinstance(item, tuple) else item for item in inner]
    for each in [*found_in, error.__cause__, error.__context__]:
        if isinstance(each, BaseException) and (found := _cause(each)) is not None:
            return found
    return None
