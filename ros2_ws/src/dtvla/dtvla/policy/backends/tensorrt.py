"""TensorRT engines: weights, image features and the key/value cache stay on the GPU.

What crosses the bus within a decision is what the host has to know: token ids and the mask's four integers on
the way in, the rows of logits that were asked for on the way out. All buffers are allocated once. A cache is
bound as input and output at one address, which is how TensorRT's KVCacheUpdate layer writes it in
place. The one-row thinking step is captured as a CUDA graph: its copies and kernels are one launch.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtvla.errors import BundleError, PolicyFault
from dtvla.policy.backends.cuda_device import CudaDevice, DeviceMemory, InputBlock
from dtvla.policy.backends.engine_pair import LoadedPair, tensor_names
from dtvla.policy.backends.protocol import GPU_ROW_COST, Features, Logits
from dtvla.policy.bundle.engine_files import profile_for, widest
from dtvla.policy.bundle.loading import Bundle
from dtvla.policy.token_layout import Bounds

_LOGGER = logging.getLogger(__name__)
_STEP = (1, 0, (0,), ())  # rows, image features, think rows and action rows of a thinking step
_FLOAT = 4  # bytes; pixels, features and logits are float32 whatever the precision inside


class DeviceFeatures:
    """Image features [F, hidden] that stay on the GPU, in the backend's one buffer for them.

    Good until the same backend encodes the next images.
    """

    def __init__(self, backend: TensorRTBackend, count: int, turn: int) -> None:
        self._backend, self._count, self._turn = backend, count, turn

    def __len__(self) -> int:
        return self._count

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.float32]:
        """A copy on the host, for tests and comparisons."""
        return self._backend.features_on_host(self)

    def is_current(self, backend: TensorRTBackend, turn: int) -> bool:
        """Whether the backend's buffer still holds these features."""
        return self._backend is backend and self._turn == turn


class TensorRTBackend:
    """Runs a bundle's engines for one sequence at a time (see `dtvla.policy.backends.protocol.Backend`).

    Raises:
        BundleError: something is missing or does not fit (see `LoadedPair`), or the GPU lacks memory.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._engines = LoadedPair(bundle)
        try:
            self._make_state()
        except PolicyFault as error:
            raise BundleError(
                f"The engines of {bundle.path} cannot be set up on {self.description}: {error} Free GPU "
                "memory, or run the ONNX graphs (--backend onnxruntime)."
            ) from None

    @property
    def description(self) -> str:
        """What runs the graphs, in words."""
        return self._engines.description

    @property
    def row_cost(self) -> float:
        """See `Backend.row_cost`."""
        return GPU_ROW_COST

    def _make_state(self) -> None:
        """Everything that belongs to one sequence: stream, buffers, contexts, and later the captured step."""
        engines, layout, most = self._engines, self._engines.spec.layout, widest(self._engines.profiles)
        self._device = CudaDevice(engines.cuda)
        pixels = layout.images * 3 * engines.spec.image.size**2 * _FLOAT
        think = most.think_rows.high * layout.vocab_size * _FLOAT
        action = most.action_rows.high * layout.bins * _FLOAT
        counts: dict[str, tuple[int, type[np.generic]]] = {
            "ids": (most.rows.high, np.int64),
            "bounds": (len(Bounds._fields), np.int32),
            "write_index": (1, np.int64),
            "think_rows": (most.think_rows.high, np.int64),
            "act_rows": (most.action_rows.high, np.int64),
        }
        self._inputs = InputBlock(self._device, counts)
        self._caches = {name: self._device.allocate(engines.cache_bytes(name)) for name in engines.caches}
        self._buffers: dict[str, DeviceMemory] = {
            **self._inputs.memory,
            **self._caches,
            **{f"{name}_out": cache for name, cache in self._caches.items()},
            "pixels": self._device.allocate(pixels),
            "features": self._device.allocate(most.features.high * engines.hidden * _FLOAT),
            "think_logits": self._device.allocate(think),
            "action_logits": self._device.allocate(action),
        }
        self._pixels = self._device.staging(pixels)
        self._think, self._action = self._device.staging(think), self._device.staging(action)
        # Passes of one stream follow each other, so that all contexts can work in the same memory.
        scratch = max(engine.device_memory_size_v2 for engine in (engines.vision, engines.decoder))
        self._scratch = self._device.allocate(scratch)
        self._seeing = self._context(engines.vision, 0)
        self._contexts: dict[tuple[int, str], Any] = {}
        self._step: Any = None
        self._may_capture = True
        self._turn = 0

    def sibling(self) -> TensorRTBackend:
        """See `Backend.sibling`: the engines are shared; stream, buffers and cache are its own."""
        other = copy.copy(self)
        other._make_state()
        return other

    @property
    def cache_length(self) -> int:
        """How many positions a sequence may have: what the cache holds and the longest pass allows."""
        return min(self._engines.spec.cache_length, widest(self._engines.profiles).rows.high)

    def clear(self) -> None:
        """Zeroes the cache (see `Backend.clear`)."""
        for cache in self._caches.values():
            self._device.zero(cache)

    def encode(self, pixels: NDArray[np.float32]) -> DeviceFeatures:
        """Normalised images [N, 3, S, S] to features [N * tokens, hidden], which stay on the GPU."""
        layout = self._engines.spec.layout
        if len(pixels) != layout.images:
            raise ValueError(f"{len(pixels)} images for engines that were built for {layout.images}.")
        self._device.wait()  # the staging memory may still be on its way from the last time
        self._pixels[: pixels.nbytes].view(np.float32)[:] = np.asarray(pixels, np.float32).ravel()
        self._device.upload(self._buffers["pixels"], self._pixels, pixels.nbytes)
        self._run(self._seeing)
        self._turn += 1
        return DeviceFeatures(self, len(pixels) * layout.image_tokens, self._turn)

    def features_on_host(self, features: DeviceFeatures) -> NDArray[np.float32]:
        """A copy [F, hidden] of the features that the last `encode` left on the GPU."""
        size = self._count(features) * self._engines.hidden * _FLOAT
        host = self._device.staging(size)
        self._device.download(host, self._buffers["features"], size)
        self._device.wait()
        pinned_FH = host[:size].view(np.float32).reshape(-1, self._engines.hidden)
        features_FH: NDArray[np.float32] = pinned_FH.copy()
        return features_FH

    def decode(
        self,
        ids: NDArray[np.int64],
        bounds: Bounds,
        *,
        features: Features | None = None,
        think_rows: Sequence[int] = (),
        action_rows: Sequence[int] = (),
    ) -> Logits:
        """One pass (see `Backend.decode`).

        Raises:
            ValueError: the rows do not fit into the cache, or the features are not the last encoded ones.
            PolicyFault: the GPU reports an error.
        """
        length, layout = self._engines.spec.cache_length, self._engines.spec.layout
        if bounds.q_start + len(ids) > length:
            raise ValueError(
                f"{len(ids)} rows from position {bounds.q_start} on exceed the cache of {length} rows."
            )
        think, action = len(think_rows), len(action_rows)
        images = 0 if features is None else self._count(features)
        profile = profile_for(self._engines.profiles, len(ids), images, think, action)
        self._inputs.fill("ids", ids)
        self._inputs.fill("bounds", bounds)
        self._inputs.fill("write_index", (bounds.q_start,))
        self._inputs.fill("think_rows", think_rows)
        self._inputs.fill("act_rows", action_rows)
        if (len(ids), images, tuple(think_rows), tuple(action_rows)) == _STEP:
            self._think_step(profile)
        else:
            self._enqueue(self._decoding(profile, "any"), len(ids), images, think, action)
        self._device.wait()
        return Logits(_rows(self._think, think, layout.vocab_size), _rows(self._action, action, layout.bins))

    def _count(self, features: Features) -> int:
        if not (isinstance(features, DeviceFeatures) and features.is_current(self, self._turn)):
            raise ValueError("These image features are no longer on the GPU: encode the images again.")
        return len(features)

    def _think_step(self, profile: int) -> None:
        """A thinking step, in a context of its own whose shapes never change: from the second on, one launch.

        The first runs as it is, since TensorRT finishes its preparation for new shapes in it.
        """
        first = (profile, "step") not in self._contexts
        context = self._decoding(profile, "step")
        if first:
            self._enqueue(context, 1, 0, 1, 0)
            return
        if self._step is None and self._may_capture:
            try:
                self._step = self._device.capture(lambda: self._copies_and_kernels(context, 1, 0))
            except PolicyFault as error:
                self._may_capture = False
                _LOGGER.warning("Thinking is slower than it could be, without a CUDA graph: %s", error)
        if self._step is None:
            self._copies_and_kernels(context, 1, 0)
        else:
            self._device.launch(self._step)

    def _decoding(self, profile: int, use: str) -> Any:
        """The decoder's context for a profile and a use, made at its first pass."""
        if (profile, use) not in self._contexts:
            self._contexts[profile, use] = self._context(self._engines.decoder, profile)
        return self._contexts[profile, use]

    def _enqueue(self, context: Any, rows: int, images: int, think: int, action: int) -> None:
        """Puts a pass with its copies on the stream."""
        shapes = {
            "ids": (1, rows),
            "features": (1, images, self._engines.hidden),
            "think_rows": (think,),
            "act_rows": (action,),
        }
        for name, shape in shapes.items():
            _require(context.set_input_shape(name, shape), f"takes no {name} of shape {shape}")
        self._copies_and_kernels(context, think, action)

    def _copies_and_kernels(self, context: Any, think: int, action: int) -> None:
        layout = self._engines.spec.layout
        self._inputs.upload()
        self._run(context)
        for host, name, size in (
            (self._think, "think_logits", think * layout.vocab_size * _FLOAT),
            (self._action, "action_logits", action * layout.bins * _FLOAT),
        ):
            self._device.download(host, self._buffers[name], size)

    def _run(self, context: Any) -> None:
        _require(context.execute_async_v3(self._device.handle), "could not start a pass")

    def _context(self, engine: Any, profile: int) -> Any:
        """An execution context with its profile and all addresses set; it works in the shared scratch."""
        strategy = self._engines.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = engine.create_execution_context(strategy)
        _require(context is not None, "has no room for another execution context")
        context.set_device_memory(self._scratch.address, self._scratch.size)
        chosen = context.set_optimization_profile_async(profile, self._device.handle)
        _require(chosen, f"has no optimisation profile {profile}")
        for name in tensor_names(engine):
            done = context.set_tensor_address(name, self._buffers[name].address)
            _require(done, f"takes no address of {name}")
        self._device.wait()
        return context


def _require(done: object, what: str) -> None:
    if not done:
        raise PolicyFault(f"The TensorRT engine {what}; TensorRT's own words stand above in the log.")


def _rows(host: NDArray[np.uint8], rows: int, width: int) -> NDArray[np.float32]:
    return host[: rows * width * _FLOAT].view(np.float32).reshape(rows, width)
