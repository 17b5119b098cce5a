"""Optimisers with a learning rate for each part of the model, and the reference's schedule."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from training.common.muon import Muon
from training.common.schedules import cosine_share
from training.sft.models import part_of, trained
from training.sft.settings import OptimiserSettings

BASE = "base_lr"  # of a parameter group: what the schedule's factor multiplies


def _rate(settings: OptimiserSettings, part: str) -> float:
    """The learning rate of a part of the model."""
    own = {"vision": settings.vision_lr, "projector": settings.projector_lr}.get(part)
    return settings.lr if own is None else own


def freeze(settings: OptimiserSettings, model: nn.Module) -> None:
    """Freezes the parts whose learning rate is 0.

    Raises:
        ValueError: nothing is left to train.
    """
    for name, parameter in trained(model).items():
        parameter.requires_grad_(_rate(settings, part_of(name)) != 0)
    if not trained(model):
        raise ValueError("Every learning rate is 0, so nothing would be trained.")


def make_optimisers(settings: OptimiserSettings, model: nn.Module) -> list[Optimizer]:
    """Optimisers of the trained parameters, a group for each part of the model.

    Muon moves the matrices of both towers, AdamW what is left (embeddings, convolutions, norms, biases); it
    is for training from scratch. The reference fine-tunes its checkpoint with AdamW alone.
    """
    groups: dict[tuple[bool, str, bool], list[nn.Parameter]] = {}
    for name, parameter in trained(model).items():
        part = part_of(name)
        matrix = parameter.ndim == 2 and "embed" not in name
        by_muon = settings.kind == "muon" and matrix
        decays = matrix if settings.kind == "muon" else parameter.ndim > 1
        groups.setdefault((by_muon, part, decays), []).append(parameter)
    sorted_groups: dict[bool, list[dict[str, Any]]] = {}
    for (by_muon, part, decays), parameters in groups.items():
        rate = _rate(settings, part)
        group: dict[str, Any] = {"params": parameters, "lr": rate, BASE: rate}
        group["weight_decay"] = settings.weight_decay if decays else 0.0
        sorted_groups.setdefault(by_muon, []).append(group)
    found: list[Optimizer] = []
    if True in sorted_groups:
        found.append(Muon(sorted_groups[True], lr=settings.lr))
    if False in sorted_groups:
        found.append(
            torch.optim.AdamW(sorted_groups[False], lr=settings.lr, betas=settings.betas, eps=settings.eps)
        )
    return found


def factor(settings: OptimiserSettings, step: int, steps: int) -> float:
    """The learning rates' common factor at a step.

    The reference's schedule (sft/sft_trainer.py:get_cosine_with_min_lr_schedule_with_warmup_align_jax).
    """
    return cosine_share(step, steps, settings.warmup, settings.final_share)


def set_rates(optimisers: list[Optimizer], share: float) -> None:
    """Sets every group's learning rate to a share of its own."""
    for group in (group for optimiser in optimisers for group in optimiser.param_groups):
        group["lr"] = group[BASE] * share
