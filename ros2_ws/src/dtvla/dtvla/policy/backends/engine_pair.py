"""A bundle's two TensorRT engines, loaded and compared with policy.json: what sibling backends share."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from dtvla.errors import BundleError
from dtvla.policy.backends.cuda_device import gpu, libraries
from dtvla.policy.bundle.engine_files import Engine, choose
from dtvla.policy.bundle.loading import Bundle

_UNKNOWN = -1  # a size that TensorRT works out at run time
_AGAIN = "Build the engines again (python -m model_export.engine)."


class LoadedPair:
    """The engines of a bundle for this machine.

    Attributes:
        trt: the module `tensorrt`.
        cuda: the module `cuda.bindings.runtime`.
        spec: of the policy.
        profiles: the decoder's, in its order.
        vision: TensorRT's engine of the vision graph.
        decoder: and of the decoder.
        hidden: width of the image features.
        caches: names of the cache inputs; their outputs end in `_out`.
        description: TensorRT, device and precision in words.

    Raises:
        BundleError: TensorRT, cuda-python or a GPU is missing, no engine is for this GPU and this TensorRT,
            or an engine does not load or does not fit policy.json.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.trt, self.cuda = libraries()
        device = gpu(self.cuda)
        pair = choose(bundle.engines, *device, self.trt.__version__)
        self.spec = bundle.spec
        self.profiles = pair.decoder.profiles
        self.description = f"TensorRT {self.trt.__version__}, {device.name}, {pair.decoder.precision}"
        self._runtime = self.trt.Runtime(self.trt.Logger(self.trt.Logger.WARNING))
        self.vision = self._load(bundle.path, pair.vision)
        self.decoder = self._load(bundle.path, pair.decoder)
        shapes = {name: tuple(self.decoder.get_tensor_shape(name)) for name in tensor_names(self.decoder)}
        self.hidden = int(shapes["features"][-1])
        self.caches = [
            name for name in shapes if name.startswith(("key_", "value_")) and not name.endswith("_out")
        ]
        self._check(bundle.path / pair.decoder.file, shapes)

    def cache_bytes(self, name: str) -> int:
        """Size of a cache."""
        element = int(self.decoder.get_tensor_dtype(name).itemsize)
        shape: tuple[int, ...] = tuple(self.decoder.get_tensor_shape(name))
        return math.prod(shape) * element

    def _load(self, folder: Path, engine: Engine) -> Any:
        path = folder / engine.file
        loaded = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if loaded is None:
            raise BundleError(
                f"{self.description} cannot load {path}, which was built for {engine.runs_on()}. {_AGAIN} "
                "Or run the ONNX graphs (--backend onnxruntime)."
            )
        return loaded

    def _check(self, path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
        """Compares the decoder with policy.json, which may have been written anew since it was built."""
        layout = self.spec.layout
        sizes = {
            "think_logits (layout.vocab_size)": (shapes["think_logits"][-1], layout.vocab_size),
            "action_logits (layout.bins)": (shapes["action_logits"][-1], layout.bins),
            "the key/value cache (cache_length)": (shapes[self.caches[0]][2], self.spec.cache_length),
            "bounds (one sequence)": (shapes["bounds"][0], 1),
        }
        for what, (found, expected) in sizes.items():
            if found not in (expected, _UNKNOWN):
                raise BundleError(
                    f"{path}: the size of {what} is {found}, policy.json asks for {expected}. {_AGAIN}"
                )
        if (count := self.decoder.num_optimization_profiles) != len(self.profiles):
            raise BundleError(
                f"{path} has {count} optimisation profiles, policy.json lists {len(self.profiles)}. {_AGAIN}"
            )
        for name in self.caches:
            if self.decoder.get_aliased_input_tensor(f"{name}_out") != name:
                raise BundleError(f"{path} does not update {name} in place. {_AGAIN}")


def tensor_names(engine: Any) -> list[str]:
    """Names of an engine's inputs and outputs."""
    return [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
