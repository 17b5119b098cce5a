"""Several sequences in one pass of the same ONNX Runtime sessions, each with its own length and mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dtvla.policy.backends.batch_padding import pad_batch
from dtvla.policy.backends.onnxruntime import OnnxRuntimeBackend
from dtvla.policy.backends.protocol import Logits, Pass


class OnnxRuntimeBatch:
    """The decoder for `size` sequences with caches of their own.

    A pass is as long as its longest sequence needs: shorter ones are filled up with rows behind their
    `kv_len`, where nobody looks and the next pass writes. A sequence that is not asked computes rows that
    nobody reads, from position 0 on: it must not be in the middle of a decision.

    Args:
        backend: its sessions are shared; `slack` positions more than its cache holds make room for filling.
        size: number of sequences.
        slack: how much longer the longest rest of a thought may be than another sequence's.
    """

    def __init__(self, backend: OnnxRuntimeBackend, size: int, slack: int) -> None:
        self.size = size
        self._backend = backend
        self._session = backend.decoder
        self._hidden = backend.hidden_size
        self._length = backend.cache_length + slack
        self._caches = backend.allocate_caches(size, self._length)
        self._binding = backend.bind_caches(self._caches)

    def encode(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalised images [N, 3, S, S] to features [N * tokens, hidden]."""
        return self._backend.encode(pixels)

    def clear(self, sequence: int) -> None:
        """Zeroes the cache of one sequence (see `Backend.clear`)."""
        for cache in self._caches.values():
            cache.numpy()[sequence] = 0.0

    def decode(self, passes: Sequence[Pass | None]) -> list[Logits | None]:
        """One pass over all sequences; None stands for one that is not asked.

        Raises:
            ValueError: not one entry per sequence, or rows that do not fit into the cache.
        """
        ids, bounds = pad_batch(passes, self.size, self._length)
        asked = [step for step in passes if step is not None]
        images = max((len(step.features) for step in asked if step.features is not None), default=0)
        features = np.zeros((self.size, images, self._hidden), np.float32)
        for b, step in enumerate(passes):
            if step is not None and step.features is not None:
                features[b, : len(step.features)] = step.features
        think = sorted({row for step in asked for row in step.think_rows})
        act = sorted({row for step in asked for row in step.action_rows})
        inputs = {
            "ids": ids,
            "features": features,
            "bounds": bounds.astype(np.int32),
            "write_index": np.ascontiguousarray(bounds[:, 3]),
            "think_rows": np.array(think, np.int64),
            "act_rows": np.array(act, np.int64),
        }
        for name, array in inputs.items():
            self._binding.bind_cpu_input(name, array)
        for name in ("think_logits", "action_logits"):
            self._binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(self._binding)
        think_logits, action_logits = (value.numpy() for value in self._binding.get_outputs()[-2:])
        return [
            None
            if step is None
            else Logits(
                think_logits[b, np.searchsorted(think, step.think_rows)],
                action_logits[b, np.searchsorted(act, step.action_rows)],
            )
            for b, step in enumerate(passes)
        ]
