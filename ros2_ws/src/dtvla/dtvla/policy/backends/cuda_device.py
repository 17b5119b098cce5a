"""What `tensorrt.py` needs of a GPU: the two optional libraries, memory, a stream, a captured graph.

Both libraries are imported when a backend asks for them: a robot without a GPU has neither.
"""

from __future__ import annotations

import ctypes
import importlib
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dtvla.errors import BundleError, PolicyFault

INSTALL = (
    "Take this repository's Dockerfile (targets gpu and export), or install both with pip install "
    "--extra-index-url https://pypi.nvidia.com tensorrt-cu13==10.16.1.* cuda-python==13.* (CUDA 13)"
)
ALIGNMENT = 256  # of every tensor's address, as TensorRT asks


class Libraries(NamedTuple):
    """TensorRT and the CUDA runtime, as modules."""

    trt: Any
    cuda: Any


class Gpu(NamedTuple):
    """The device of this process."""

    name: str  # the driver's, such as "NVIDIA H200"
    compute_capability: str  # such as "9.0"


def libraries() -> Libraries:
    """Imports TensorRT and cuda-python.

    Raises:
        BundleError: one of them is not installed; the sentence says where to get it.
    """
    modules = []
    for name, module in (("TensorRT", "tensorrt"), ("cuda-python", "cuda.bindings.runtime")):
        try:
            modules.append(importlib.import_module(module))
        except (ImportError, OSError) as error:  # OSError: the package is there, its library is not
            raise BundleError(
                f"TensorRT engines need {name}, which is not here ({error}). {INSTALL}; or run the ONNX "
                "graphs (--backend onnxruntime)."
            ) from None
    return Libraries(*modules)


def gpu(cuda: Any) -> Gpu:
    """The GPU that this process sees first (CUDA_VISIBLE_DEVICES chooses among several).

    Raises:
        BundleError: there is no usable one.
    """
    error, properties = cuda.cudaGetDeviceProperties(0)
    if error != cuda.cudaError_t.cudaSuccess:
        raise BundleError(
            f"TensorRT engines need an NVIDIA GPU, and CUDA finds none ({_reason(cuda, error)}). Check the "
            "driver (nvidia-smi), or run the ONNX graphs (--backend onnxruntime)."
        )
    name = properties.name
    return Gpu(
        name.decode() if isinstance(name, bytes) else str(name), f"{properties.major}.{properties.minor}"
    )


class CudaDevice:
    """One stream of the GPU; copies and passes of one sequence run on it in order.

    Args:
        cuda: the module `cuda.bindings.runtime`.
    """

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        self.stream = self.call("cudaStreamCreateWithFlags", cuda.cudaStreamNonBlocking)
        weakref.finalize(self, cuda.cudaStreamDestroy, self.stream)

    @property
    def handle(self) -> int:
        """The stream as TensorRT takes it."""
        return int(self.stream)

    def call(self, function: str, *arguments: object) -> Any:
        """Calls a function of the CUDA runtime; returns its result, if it has one.

        Raises:
            PolicyFault: CUDA reports an error; the sentence names the function.
        """
        error, *result = getattr(self._cuda, function)(*arguments)
        if error != self._cuda.cudaError_t.cudaSuccess:
            raise PolicyFault(f"{function} failed on the GPU: {_reason(self._cuda, error)}.")
        return result[0] if result else None

    def allocate(self, size: int) -> DeviceMemory:
        """Zeroed device memory of `size` bytes; never empty, since TensorRT takes no null address."""
        memory = DeviceMemory(self.call("cudaMalloc", max(size, ALIGNMENT)), max(size, ALIGNMENT))
        weakref.finalize(memory, self._cuda.cudaFree, memory.address)
        self.zero(memory)
        return memory

    def staging(self, size: int) -> NDArray[np.uint8]:
        """Page-locked host memory [size]: copies from and to it do not stop the CPU."""
        size = max(size, ALIGNMENT)
        address = self.call("cudaMallocHost", size)
        block = (ctypes.c_uint8 * size).from_address(int(address))
        weakref.finalize(block, self._cuda.cudaFreeHost, address)
        array = np.ctypeslib.as_array(block)  # keeps the block alive
        array[:] = 0
        return array

    def zero(self, memory: DeviceMemory) -> None:
        """Fills device memory with zeros."""
        self.call("cudaMemsetAsync", memory.address, 0, memory.size, self.stream)

    def upload(self, memory: DeviceMemory, host: NDArray[np.uint8], size: int) -> None:
        """Copies the first `size` bytes to the device."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", memory.address, host.ctypes.data, size, kind, self.stream)

    def download(self, host: NDArray[np.uint8], memory: DeviceMemory, size: int) -> None:
        """Copies the first `size` bytes from the device."""
        if size:
            kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
            self.call("cudaMemcpyAsync", host.ctypes.data, memory.address, size, kind, self.stream)

    def wait(self) -> None:
        """Returns when everything on the stream is done."""
        self.call("cudaStreamSynchronize", self.stream)

    def capture(self, work: Callable[[], None]) -> Any:
        """Records what `work` puts on the stream, without running it; to be launched any number of times.

        Raises:
            PolicyFault: something in it cannot be recorded; the stream is as it was.
        """
        modes = self._cuda.cudaStreamCaptureMode
        # Other threads may go on allocating meanwhile.
        self.call("cudaStreamBeginCapture", self.stream, modes.cudaStreamCaptureModeThreadLocal)
        try:
            work()
        except BaseException:
            self._cuda.cudaStreamEndCapture(self.stream)
            raise
        graph = self.call("cudaStreamEndCapture", self.stream)
        launchable = self.call("cudaGraphInstantiate", graph, 0)
        self.call("cudaGraphDestroy", graph)
        weakref.finalize(self, self._cuda.cudaGraphExecDestroy, launchable)
        return launchable

    def launch(self, launchable: Any) -> None:
        """Runs what `capture` returned."""
        self.call("cudaGraphLaunch", launchable, self.stream)


class DeviceMemory:
    """An address on the device; freed with this object."""

    def __init__(self, address: int, size: int) -> None:
        self.address = int(address)
        self.size = size


class InputBlock:
    """The small inputs of a pass: one block on the host, one on the device, one copy between them.

    Args:
        device: where it is used.
        counts: most elements and type of each input, by name.
    """

    def __init__(self, device: CudaDevice, counts: Mapping[str, tuple[int, type[np.generic]]]) -> None:
        offsets, size = {}, 0
        for name, (count, dtype) in counts.items():
            offsets[name] = size
            size += math.ceil(max(count, 1) * np.dtype(dtype).itemsize / ALIGNMENT) * ALIGNMENT
        self._device, self._size = device, size
        self._block, self._host = device.allocate(size), device.staging(size)
        self._arrays: dict[str, NDArray[np.generic]] = {}
        self.memory: dict[str, DeviceMemory] = {}
        for name, (count, dtype) in counts.items():
            length = count * np.dtype(dtype).itemsize
            self._arrays[name] = self._host[offsets[name] : offsets[name] + length].view(dtype)
            self.memory[name] = DeviceMemory(self._block.address + offsets[name], length)

    def fill(self, name: str, values: Sequence[int] | NDArray[np.int64]) -> None:
        """Sets the first elements of an input on the host."""
        self._arrays[name][: len(values)] = values

    def upload(self) -> None:
        """Puts the copy of all inputs to the device on the stream."""
        self._device.upload(self._block, self._host, self._size)


def _reason(cuda: Any, error: Any) -> str:
    _, text = cuda.cudaGetErrorString(error)
    return text.decode() if isinstance(text, bytes) else str(text)
