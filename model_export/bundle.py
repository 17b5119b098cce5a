"""Puts a policy bundle together: graphs, tokenizer, policy.json, and proof that they agree with torch."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from tokenizers import Tokenizer

from dtvla.policy.backends.onnxruntime import OnnxRuntimeBackend
from dtvla.policy.bundle import write_bundle
from dtvla.policy.spec import PolicySpec
from model_export.onnx_export import export_decoder, export_vision
from model_export.parity import Parity, check_parity
from training.model import DeepThinkVLA


def export_bundle(model: DeepThinkVLA, spec: PolicySpec, tokenizer: Tokenizer, out: Path) -> list[Parity]:
    """Writes a bundle; it appears at `out` only when it is whole and its graphs agree with the model.

    Args:
        model: float32, in eval mode.
        spec: what the policy is beside its weights.
        tokenizer: its tokenizer.
        out: bundle directory; an older bundle there is replaced.

    Returns:
        The comparisons with torch, all within tolerance.

    Raises:
        BundleError: spec, tokenizer and graphs do not fit together.
        ParityError: ONNX Runtime computes something else than torch.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        folder = Path(scratch) / out.name
        folder.mkdir()
        tokenizer.save(str(folder / "tokenizer.json"))
        export_vision(model, folder / "vision.onnx")
        export_decoder(model, folder / "decoder.onnx")
        write_bundle(folder, spec)
        results = check_parity(model, OnnxRuntimeBackend(folder, spec))
        if out.is_dir():
            shutil.rmtree(out)
        os.replace(folder, out)
    return results
