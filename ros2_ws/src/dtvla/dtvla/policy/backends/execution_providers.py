"""ONNX Runtime's execution providers: which device runs the graphs, chosen by name and never in silence.

ONNX Runtime itself takes the CPU with a warning when a provider cannot be had; here that is an error that
says what was asked for and what is there.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from dtvla.errors import BundleError, plain
from dtvla.policy.backends.opset_compatibility import converted, needs_conversion

_LOG_ERRORS_ONLY = 3
SMALL_DECODER = 16_000_000  # bytes; below, one thread is as fast
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16
ELEMENT_TYPES = {"tensor(float)": 1, "tensor(float16)": 10, "tensor(bfloat16)": _BFLOAT16}  # ONNX's numbers
_NUMPY = {1: np.float32, 10: np.float16, _BFLOAT16: np.uint16}  # bfloat16 as its bits


@dataclass(frozen=True)
class Provider:
    """One way to run a graph.

    Attributes:
        name: ONNX Runtime's name of it.
        device: where its memory is, in ONNX Runtime's words.
        precisions: of bundles that it computes.
        install: how to get it.
        options: given to it as they are.
    """

    name: str
    device: str
    precisions: Sequence[str]
    install: str
    options: dict[str, str]


_GPU = ("fp32", "fp16", "bf16", "int8", "fp8")
_CUDA_WHEEL = "tools/setup.sh gpu installs onnxruntime-gpu, which needs CUDA 13 and cuDNN 9"
_RTX_WHEEL = "pip install onnxruntime-ep-nv-tensorrt-rtx-cu13"
PROVIDERS = {
    "cpu": Provider("CPUExecutionProvider", "cpu", ("fp32", "fp16", "int8", "fp8"), "it is always there", {}),
    "cuda": Provider("CUDAExecutionProvider", "cuda", _GPU, _CUDA_WHEEL, {}),
    "tensorrt": Provider(
        "TensorrtExecutionProvider", "cuda", _GPU, f"{_CUDA_WHEEL}; TensorRT 10 as well", {}
    ),
    "rtx": Provider("NvTensorRTRTXExecutionProvider", "cuda", _GPU, _RTX_WHEEL, {}),
}


def open_session(
    path: Path, threads: int, provider: Provider, precision: str, *, scatters: bool
) -> ort.InferenceSession:
    """Loads a graph for a provider.

    Args:
        path: the graph's file.
        threads: threads of one operator, on the CPU.
        provider: one of `PROVIDERS`.
        precision: of the bundle.
        scatters: the graph needs opset 24 (TensorScatter), which older runtimes lack.

    Raises:
        BundleError: the provider is not there, does not compute this precision, or cannot load the graph.
    """
    if precision not in provider.precisions:
        raise BundleError(
            f"{path} is in {precision}, which ONNX Runtime's {provider.name} does not compute "
            f"({', '.join(provider.precisions)}). Choose another --backend, or export in one of these."
        )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _LOG_ERRORS_ONLY
    # Idle workers must not burn the core that the simulator or the controller needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if provider is PROVIDERS["rtx"]:
        _use_rtx(options)
        names: list[object] = []
    else:
        available = ort.get_available_providers()
        if provider.name not in available:
            raise BundleError(_missing(provider, f"this ONNX Runtime {ort.__version__} has {available}"))
        names = [(provider.name, provider.options)]
        if provider.device != "cpu":
            names.append("CPUExecutionProvider")  # for the few operators on shapes
    try:
        graph = converted(path) if scatters and needs_conversion(ort.__version__) else str(path)
        session = ort.InferenceSession(graph, options, providers=names or None)
    except BundleError:
        raise
    except Exception as error:  # onnxruntime raises many kinds
        opsets = re.search(r"Opset (\d+) is under.* till opset (\d+)", str(error), re.DOTALL)
        if opsets:
            raise BundleError(
                f"{path} is in opset {opsets[1]}; this ONNX Runtime {ort.__version__} reads up to "
                f"{opsets[2]}. Install a newer onnxruntime, or export the policy again with this code."
            ) from None
        raise BundleError(
            f"{path} cannot be loaded by ONNX Runtime ({plain(error)}). Export the policy again."
        ) from None
    if provider.name not in session.get_providers():
        raise BundleError(_missing(provider, f"ONNX Runtime fell back to {session.get_providers()}"))
    return session


def default_threads(decoder: Path) -> int:
    """Threads of one operator on the CPU: waking a second one costs small policies more than it brings."""
    external = decoder.with_name(f"{decoder.name}.data")
    size = decoder.stat().st_size + (external.stat().st_size if external.is_file() else 0)
    return 1 if size < SMALL_DECODER else max(1, len(os.sched_getaffinity(0)))


def zeros(shape: Sequence[int], element_type: int, device: str) -> ort.OrtValue:
    """A tensor of zeros in the memory of a device. `element_type` is ONNX's number (`ELEMENT_TYPES`)."""
    array = np.zeros(shape, _NUMPY[element_type])
    here = (
        ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, element_type)
        if element_type == _BFLOAT16
        else ort.OrtValue.ortvalue_from_numpy(array)
    )
    if device == "cpu":
        return here
    there = ort.OrtValue.ortvalue_from_shape_and_type(list(shape), element_type, device, 0)
    ort.copy_tensors([here], [there])
    return there


def _use_rtx(options: ort.SessionOptions) -> None:
    """TensorRT-RTX is a plugin: a library that is registered once, and devices that it names."""
    provider = PROVIDERS["rtx"]
    try:
        rtx = importlib.import_module("onnxruntime_ep_nv_tensorrt_rtx")
    except ImportError as error:
        raise BundleError(_missing(provider, str(error))) from None
    if not any(device.ep_name == provider.name for device in ort.get_ep_devices()):
        ort.register_execution_provider_library(provider.name, rtx.get_library_path())
    devices = [device for device in ort.get_ep_devices() if device.ep_name == provider.name]
    if not devices:
        raise BundleError(_missing(provider, "its library finds no GPU"))
    options.add_provider_for_devices(devices, {})


def _missing(provider: Provider, why: str) -> str:
    return (
        f"ONNX Runtime cannot run on {provider.name}: {why}. To get it: {provider.install}. "
        "Or take another --backend: onnxruntime runs on the CPU."
    )
