"""TensorRT engines, where TensorRT can be imported; a sentence otherwise."""

from __future__ import annotations

import importlib
import math
import tempfile
import time
from pathlib import Path
from typing import Any

from model_export.gpu_check.device import first_line


def check() -> dict[str, Any]:
    """Builds the engines of a tiny policy through `model_export.engine` and compares them with torch."""
    try:
        tensorrt = importlib.import_module("tensorrt")
    except ImportError as error:
        return {"available": False, "why": f"TensorRT is not importable ({first_line(error)})."}
    version = getattr(tensorrt, "__version__", "unknown")
    try:
        return {"available": True, "version": version, **build_and_compare()}
    except Exception as error:  # a report with a reason is worth more than a traceback after minutes
        why = f"the engines could not be built or run: {type(error).__name__}: {first_line(error)}"
        return {"available": False, "version": version, "why": why}


def build_and_compare() -> dict[str, Any]:
    """Seconds of the build, and the largest difference from torch in every phase (float32)."""
    from dtvla.policy.backends.cuda_device import gpu, libraries
    from dtvla.policy.backends.factory import choose_backend
    from dtvla.policy.bundle.loading import Bundle
    from model_export.engine.bundle_engines import build_engines
    from model_export.engine.profiles import longest_pass
    from model_export.parity import check_parity
    from model_export.plugin import tensorrt_plugin
    from model_export.sample import byte_tokenizer, random_bundle, random_config, random_model

    seed = 0
    with tempfile.TemporaryDirectory() as folder:
        path = random_bundle(Path(folder) / "tiny", seed)
        source = Bundle.load(path)
        modules = libraries()
        tensorrt_plugin.register()
        begin = time.perf_counter()
        rows = longest_pass(source.spec, None)
        build_engines(source, modules, gpu(modules.cuda), rows, None, refit=False)
        seconds = time.perf_counter() - begin
        backend = choose_backend(Bundle.load(path), "tensorrt").backend
        model = random_model(random_config(byte_tokenizer()), seed)
        # Every difference is reported; what is too much is for the reader, and for the export, to say.
        phases = check_parity(model, backend, tolerance=math.inf)
    return {"build_s": seconds, "differences": {phase.phase: phase.difference for phase in phases}}
