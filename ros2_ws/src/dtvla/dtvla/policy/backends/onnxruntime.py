"""ONNX Runtime: a static key/value cache on the device, bound once and updated in place."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from dtvla.errors import BundleError
from dtvla.policy.backends.execution_providers import (
    ELEMENT_TYPES,
    PROVIDERS,
    default_threads,
    open_session,
    zeros,
)
from dtvla.policy.backends.graph_signatures import check_decoder, check_vision, is_cache
from dtvla.policy.backends.protocol import CPU_ROW_COST, GPU_ROW_COST, Logits
from dtvla.policy.bundle.policy_spec import PolicySpec
from dtvla.policy.token_layout import Bounds


class OnnxRuntimeBackend:
    """Runs vision.onnx and decoder.onnx of a bundle for one sequence at a time.

    Args:
        folder: directory with the two graphs (of a verified bundle).
        spec: what policy.json says about them.
        threads: threads of one operator on the CPU; None takes one for small policies, else all processors.
        provider: what runs the graphs, a key of `providers.PROVIDERS`.

    Raises:
        BundleError: a graph cannot be loaded or its shapes are not what policy.json says, or the provider
            cannot run it.
    """

    def __init__(
        self, folder: Path, spec: PolicySpec, threads: int | None = None, provider: str = "cpu"
    ) -> None:
        self._provider = PROVIDERS[provider]
        self._threads = threads or default_threads(folder / "decoder.onnx")
        chosen = (self._threads, self._provider, spec.precision)
        self._vision = open_session(folder / "vision.onnx", *chosen, scatters=False)
        self.decoder = open_session(folder / "decoder.onnx", *chosen, scatters=True)
        given = check_vision(self._vision, folder / "vision.onnx", spec)
        self.hidden_size = check_decoder(self.decoder, folder / "decoder.onnx", spec.layout)
        if given != self.hidden_size:
            raise BundleError(
                f"{folder}: vision.onnx gives features of {given} numbers, decoder.onnx takes "
                f"{self.hidden_size}. Export the policy again."
            )
        self._length = spec.cache_length
        self._vocab_size, self._bins = spec.layout.vocab_size, spec.layout.bins
        self._block_rows = spec.layout.slots + 3
        self._make_cache()

    def _make_cache(self) -> None:
        self._caches = self.allocate_caches(1, self._length)
        self._no_features = np.zeros((1, 0, self.hidden_size), np.float32)
        self._block = self.bind_caches(self._caches)
        few = FEW + self._block_rows
        self._think = np.empty((1, few, self._vocab_size), np.float32)
        self._action = np.empty((1, few, self._bins), np.float32)
        self._few: dict[tuple[int, int, int], _FewRows] = {}

    @property
    def description(self) -> str:
        """What runs the graphs, in words."""
        where = f"{self._threads} threads" if self._provider.device == "cpu" else self._provider.device
        return f"ONNX Runtime {ort.__version__}, {self.decoder.get_providers()[0]}, {where}"

    @property
    def row_cost(self) -> float:
        """See `Backend.row_cost`."""
        return CPU_ROW_COST if self._provider.device == "cpu" else GPU_ROW_COST

    def sibling(self) -> OnnxRuntimeBackend:
        """See `Backend.sibling`; a session of ONNX Runtime may run in several threads."""
        other = copy.copy(self)
        other._make_cache()
        return other

    @property
    def cache_length(self) -> int:
        """How many positions the key/value cache holds."""
        return self._length

    def clear(self) -> None:
        """Zeroes the cache (see `Backend.clear`)."""
        if self._provider.device != "cpu":
            self._make_cache()
            return
        for cache in self._caches.values():
            cache.numpy()[:] = 0.0

    def encode(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalised images [N, 3, S, S] to features [N * tokens, hidden]."""
        features = self._vision.run(["features"], {"pixels": pixels})[0]
        return np.asarray(features).reshape(-1, self.hidden_size)

    def decode(
        self,
        ids: NDArray[np.int64],
        bounds: Bounds,
        *,
        features: NDArray[np.float32] | None = None,
        think_rows: Sequence[int] = (),
        action_rows: Sequence[int] = (),
    ) -> Logits:
        """One pass (see `Backend.decode`).

        Raises:
            ValueError: the rows do not fit into the cache.
        """
        if bounds.q_start + len(ids) > self._length:
            raise ValueError(
                f"{len(ids)} rows from position {bounds.q_start} on exceed the cache of {self._length} rows."
            )
        if features is None and len(ids) <= FEW + (self._block_rows if len(action_rows) else 0):
            few = self._few_rows(len(ids), len(think_rows), len(action_rows))
            return few.run(self.decoder, ids, bounds, think_rows, action_rows)
        binding = self._block
        binding.bind_cpu_input("ids", np.ascontiguousarray(ids[None], np.int64))
        binding.bind_cpu_input("features", self._no_features if features is None else features[None])
        binding.bind_cpu_input("bounds", np.array([bounds], np.int32))
        binding.bind_cpu_input("write_index", np.array([bounds.q_start], np.int64))
        binding.bind_cpu_input("think_rows", _numbers(think_rows))
        binding.bind_cpu_input("act_rows", _numbers(action_rows))
        for name in ("think_logits", "action_logits"):
            binding.bind_output(name, "cpu")
        self.decoder.run_with_iobinding(binding)
        think, action = (value.numpy()[0] for value in binding.get_outputs()[-2:])
        return Logits(think, action)

    def _few_rows(self, rows: int, think: int, action: int) -> _FewRows:
        key = rows, think, action
        if key not in self._few:
            binding = self.bind_caches(self._caches)
            logits = Logits(self._think[:, :think], self._action[:, :action])
            self._few[key] = _FewRows(binding, rows, self._no_features, logits)
        return self._few[key]

    def allocate_caches(self, batch: int, length: int) -> dict[str, ort.OrtValue]:
        """One zeroed buffer per layer for keys and one for values, by the graph's names."""
        entries = [entry for entry in self.decoder.get_inputs() if is_cache(entry.name)]
        kind = ELEMENT_TYPES[entries[0].type]
        sizes = {entry.name: (batch, entry.shape[1], length, entry.shape[3]) for entry in entries}
        return {name: zeros(shape, kind, self._provider.device) for name, shape in sizes.items()}

    def bind_caches(self, caches: dict[str, ort.OrtValue]) -> ort.IOBinding:
        """A binding in which every cache is input and output at once, so that nothing is copied."""
        binding = self.decoder.io_binding()
        for name, cache in caches.items():
            binding.bind_ortvalue_input(name, cache)
            binding.bind_ortvalue_output(f"{name}_out", cache)
        return binding


# Most rows, beside an action block, of a pass whose buffers are kept bound: all but those with a prompt.
FEW = 32


class _FewRows:
    """Passes of some number of rows with all their buffers bound once: a pass writes a few integers.

    Args:
        binding: with the caches bound.
        rows: of the passes.
        no_features: [1, 0, H].
        logits: [1, think rows, V] and [1, action rows, bins], contiguous; every pass writes here.
    """

    def __init__(
        self, binding: ort.IOBinding, rows: int, no_features: NDArray[np.float32], logits: Logits
    ) -> None:
        self._binding = binding
        self._ids = np.zeros((1, rows), np.int64)
        self._bounds = np.zeros((1, 4), np.int32)
        self._write_index = np.zeros(1, np.int64)
        self._think_rows = np.zeros(logits.think.shape[1], np.int64)
        self._action_rows = np.zeros(logits.action.shape[1], np.int64)
        self._logits = Logits(logits.think[0], logits.action[0])
        inputs = {
            "ids": self._ids,
            "features": no_features,
            "bounds": self._bounds,
            "write_index": self._write_index,
            "think_rows": self._think_rows,
            "act_rows": self._action_rows,
        }
        # On the CPU an OrtValue is a view: writing to the array is writing to the bound input.
        self._keep = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in inputs.items()}
        for name, value in self._keep.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output("think_logits", ort.OrtValue.ortvalue_from_numpy(logits.think))
        binding.bind_ortvalue_output("action_logits", ort.OrtValue.ortvalue_from_numpy(logits.action))

    def run(
        self,
        session: ort.InferenceSession,
        ids: NDArray[np.int64],
        bounds: Bounds,
        think_rows: Sequence[int],
        action_rows: Sequence[int],
    ) -> Logits:
        """One pass; the logits are overwritten by the next one."""
        self._ids[0] = ids
        self._bounds[0] = bounds
        self._write_index[0] = bounds.q_start
        self._think_rows[:] = _numbers(think_rows)
        self._action_rows[:] = _numbers(action_rows)
        session.run_with_iobinding(self._binding)
        return self._logits


def _numbers(rows: Sequence[int]) -> NDArray[np.int64]:
    """Row numbers as an array; numpy would read a range number by number."""
    return (
        np.arange(rows.start, rows.stop)
        if isinstance(rows, range) and rows.step == 1
        else np.asarray(rows, np.int64)
    )
