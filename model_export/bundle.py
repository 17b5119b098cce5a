"""Puts a policy bundle together: graphs, tokenizer, policy.json, and proof that they agree with torch."""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import torch
from tokenizers import Tokenizer

from dtvla.policy.backends.onnxruntime import OnnxRuntimeBackend
from dtvla.policy.bundle.loading import write_bundle
from dtvla.policy.bundle.policy_spec import PolicySpec
from model_export.onnx.export import export_decoder, export_vision
from model_export.parity import TOLERANCES, Parity, check_parity
from training.model.deepthinkvla import DeepThinkVLA

Precision = Literal["fp32", "fp16", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def export_bundle(
    model: DeepThinkVLA,
    spec: PolicySpec,
    tokenizer: Tokenizer,
    out: Path,
    precision: Precision = "fp32",
    *,
    keep_names: bool = False,
) -> list[Parity]:
    """Writes a bundle; it appears at `out` only when it is whole and its graphs agree with the model.

    Args:
        model: in eval mode, in float32 or in `precision` (half the memory).
        spec: what the policy is beside its weights.
        tokenizer: its tokenizer.
        out: bundle directory; an older bundle there is replaced.
        precision: of weights, activations and caches; pixels, features and logits stay float32.
        keep_names: see `onnx_export.export_decoder`.

    Returns:
        The comparisons with torch, all within tolerance; none for bf16, which ONNX Runtime does not compute
        on a CPU.

    Raises:
        BundleError: spec, tokenizer and graphs do not fit together.
        ParityError: ONNX Runtime computes something else than torch.
    """
    spec = replace(spec, precision=precision)
    dtype = DTYPES[precision]
    if model.decoder.embed_tokens.weight.dtype != dtype:
        model = copy.deepcopy(model).to(dtype)
    with new_bundle(out) as folder:
        tokenizer.save(str(folder / "tokenizer.json"))
        export_vision(model, folder / "vision.onnx", keep_names=keep_names)
        export_decoder(model, folder / "decoder.onnx", keep_names=keep_names)
        write_bundle(folder, spec)
        if precision == "bf16":
            return []
        return check_parity(model, OnnxRuntimeBackend(folder, spec), tolerance=TOLERANCES[precision])


@contextlib.contextmanager
def new_bundle(out: Path) -> Iterator[Path]:
    """A folder to fill; it takes the place of `out` at the end, and is gone if anything goes wrong before."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        folder = Path(scratch) / out.name
        folder.mkdir()
        yield folder
        if out.is_dir():
            shutil.rmtree(out)
        os.replace(folder, out)


def size_mb(bundle: Path) -> float:
    """Bytes of a bundle's files in MB (10^6)."""
    return sum(file.stat().st_size for file in bundle.iterdir()) / 1e6
