"""Which backend runs a bundle, and one sentence that says so."""

from __future__ import annotations

from typing import NamedTuple

from dtvla.errors import BundleError, InputError
from dtvla.policy.backends.onnxruntime import OnnxRuntimeBackend
from dtvla.policy.backends.protocol import Backend
from dtvla.policy.backends.tensorrt import TensorRTBackend
from dtvla.policy.bundle.loading import Bundle
from dtvla.policy.options import BACKENDS


class ChosenBackend(NamedTuple):
    """A backend and what it runs on, in one sentence."""

    backend: Backend
    sentence: str


def choose_backend(bundle: Bundle, name: str = "auto", threads: int | None = None) -> ChosenBackend:
    """Loads a bundle into a backend.

    "auto" takes TensorRT when the bundle has engines for this machine, else ONNX Runtime, and the sentence
    says why. Asked for by name, a backend runs or is an error.

    Args:
        bundle: a verified bundle.
        name: one of `BACKENDS`.
        threads: threads of one operator of ONNX Runtime; None lets it choose.

    Raises:
        BundleError: the backend cannot run the bundle.
        InputError: an unknown name.
    """
    if name not in BACKENDS:
        raise InputError(f"Unknown backend {name!r}; choose one of {', '.join(BACKENDS)}.")
    if name == "tensorrt":
        return _tensorrt(bundle)
    why = ""
    if name == "auto" and bundle.engines:
        try:
            return _tensorrt(bundle)
        except BundleError as error:
            why = f" Its TensorRT engines are not used: {error}"
    provider = name.removeprefix("onnxruntime-") if name.startswith("onnxruntime-") else "cpu"
    onnx = OnnxRuntimeBackend(bundle.path, bundle.spec, threads, provider)
    return ChosenBackend(onnx, f"{bundle.path.name} runs on {onnx.description}.{why}")


def _tensorrt(bundle: Bundle) -> ChosenBackend:
    backend = TensorRTBackend(bundle)
    return ChosenBackend(backend, f"{bundle.path.name} runs on {backend.description}.")
