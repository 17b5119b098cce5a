"""Several processes as one learner: FSDP2 shards, sums over processes, gradients averaged and clipped."""

from __future__ import annotations

import atexit
import os
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.distributed._composable import checkpoint  # type: ignore[attr-defined]
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from training.model.deepthinkvla import DeepThinkVLA

PATIENCE = timedelta(hours=12)  # processes wait for each other's rollouts, and for evaluations


def begin(device: str) -> None:
    """Joins the other processes of a torchrun, until this one ends."""
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group("gloo" if device == "cpu" else "cpu:gloo,cuda:nccl", timeout=PATIENCE)
    atexit.register(_end)


def _end() -> None:
    """Leaves them, whichever way the program comes to its end.

    Threads of gloo let go of the tensors of the last sum after everybody has it, and ask the interpreter to:
    one that is ending by then aborts the process (one of six, measured). It only has to be free for a moment.
    """
    if distributed.is_initialized():
        time.sleep(0.2)
        distributed.destroy_process_group()


def world() -> int:
    """Number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this is."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def wait() -> None:
    """Until all processes are here."""
    if distributed.is_initialized():
        distributed.barrier()


def total(values: Tensor) -> Tensor:
    """The sum over processes."""
    if distributed.is_initialized():
        values = values.clone()
        distributed.all_reduce(values)
    return values


def largest(value: int) -> int:
    """The largest of all processes' values."""
    return int(largest_float(float(value)))


def largest_float(value: float) -> float:
    """The same of a number that is not whole."""
    if not distributed.is_initialized():
        return value
    values = torch.tensor([value], dtype=torch.float64)
    distributed.all_reduce(values, distributed.ReduceOp.MAX)
    return float(values)


def gathered(value: Any) -> list[Any]:
    """All processes' values, in every process."""
    if not distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * world()
    distributed.all_gather_object(values, value)
    return values


def recompute_layers(model: DeepThinkVLA) -> None:
    """Layers forget their activations and compute them again in the backward pass.

    By torch's composable activation checkpointing, which sets hooks on a layer. Its `checkpoint_wrapper` puts
    another module around it: state dicts take that out of their names again, but `named_parameters` of the
    model, by which the optimisers tell the parts of the model, does not.
    """
    for layer in layers(model):
        checkpoint(layer)


def layers(model: DeepThinkVLA) -> list[nn.Module]:
    """What is gathered at once: the layers of both towers."""
    return [*model.vision_tower.vision_model.encoder.layers, *model.decoder.layers]


def shard(whole: nn.Module, model: DeepThinkVLA, precision: torch.dtype) -> None:
    """Spreads parameters, gradients and optimiser state over the processes; nothing to do in a single one.

    The root gives its weights back after every pass: else one without a backward (a validation) leaves them
    whole, and the next gradients are off.
    """
    if not distributed.is_initialized():
        return
    policy = MixedPrecisionPolicy(param_dtype=precision, reduce_dtype=torch.float32)
    for layer in layers(model):
        fully_shard(layer, mp_policy=policy)
    fully_shard(whole, mp_policy=policy, reshard_after_forward=True)


def average_gradients(model: nn.Module) -> None:
    """Averages the gradients of replicated models over all processes; nothing to do in a single one."""
    if world() == 1:
        return
    gradients: list[Tensor] = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    distributed.all_reduce(flat)
    flat /= world()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def clip_gradients(module: nn.Module, limit: float) -> float:
    """Scales the gradients of all processes to a norm of at most `limit`; returns the norm they had."""
    norm = nn.utils.clip_grad_norm_(module.parameters(), limit)
    whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
    return float(whole)
