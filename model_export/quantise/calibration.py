"""How large the inputs of each weight matrix get on recorded episodes: 8-bit activations are scaled by it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader
from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

from dtvla.policy.decoding import whole_pass
from dtvla.policy.options import CAMERAS
from dtvla.policy.policy import Policy
from dtvla.policy.stopwatch import Stopwatch
from model_export.errors import ExportError
from model_export.onnx.weights import weight_inputs

Ranges = dict[str, tuple[float, float]]  # smallest and largest value by the tensor's name
Feeds = list[dict[str, NDArray[Any]]]
Look = tuple[Mapping[str, NDArray[np.uint8]], str]
_WARNINGS, _ERRORS = 2, 3  # ONNX Runtime's severities
LOOKS = 64  # decisions to calibrate on


def calibrate(bundle: Path, looks: Iterable[Look]) -> dict[str, Ranges]:
    """Runs whole decisions of a float32 bundle on recorded pictures.

    Args:
        bundle: the policy, in float32.
        looks: pictures by camera, upright RGB uint8 [H, W, 3], and the instruction (see `recorded_looks`).

    Returns:
        By graph ("vision", "decoder"), the range of every tensor that meets a weight matrix.

    Raises:
        ExportError: the bundle is not in float32.
    """
    vision: Feeds = []
    decoder: Feeds = []
    policy = Policy.load(bundle)
    if policy.bundle.spec.precision != "fp32":
        raise ExportError(
            f"{bundle} is in {policy.bundle.spec.precision}; ranges are measured in fp32. Give that bundle."
        )
    for images, instruction in looks:
        prompt, pixels = policy.prepare(images, instruction, Stopwatch())
        features = policy.backend.encode(pixels)
        vision.append({"pixels": pixels})
        decision = policy.decide(images, instruction)
        decoder.append(_decoder_feed(policy, prompt, features, decision.thought_ids))
    return {
        "vision": _ranges(bundle / "vision.onnx", vision),
        "decoder": _ranges(bundle / "decoder.onnx", decoder),
    }


def recorded_looks(episodes: Path, looks: int = LOOKS) -> Iterator[Look]:
    """Pictures by camera and their instruction, spread evenly over all episodes of a folder.

    Raises:
        ExportError: there are none.
    """
    files = sorted(episodes.glob("*.npz"))
    if not files:
        raise ExportError(
            f"{episodes} holds no recorded episodes (*.npz). `python -m training.collect --out {episodes}` "
            "makes some."
        )
    share = -(-looks // len(files))
    for path in files[:: max(1, len(files) // looks)]:
        with np.load(path) as data:
            pictures, instruction = data["images"], str(data["instruction"])
        for index in np.linspace(0, len(pictures) - 1, share).astype(int):
            yield dict(zip(CAMERAS, pictures[index], strict=True)), instruction


def _decoder_feed(
    policy: Policy,
    prompt: NDArray[np.int64],
    features: NDArray[np.float32],
    thought: NDArray[np.int64],
) -> dict[str, NDArray[Any]]:
    """One whole decision as inputs of decoder.onnx; the caches are added by `_Reader`."""
    step = whole_pass(policy.bundle.spec.layout, prompt, features, thought)
    n = len(prompt)
    return {
        "ids": step.ids[None],
        "features": features[None],
        "bounds": np.array([step.bounds], np.int32),
        "write_index": np.zeros(1, np.int64),
        "think_rows": np.arange(n - 1, n + len(thought) - 1),
        "act_rows": np.asarray(step.action_rows, np.int64),
    }


class _Reader(CalibrationDataReader):
    """Hands the feeds out one by one, each with empty caches."""

    def __init__(self, feeds: Sequence[Mapping[str, Any]], caches: Mapping[str, tuple[int, ...]]) -> None:
        self._feeds, self._caches = iter(feeds), caches

    def get_next(self) -> dict[str, Any] | None:
        feed = next(self._feeds, None)
        if feed is None:
            return None
        length = feed["ids"].shape[1] if "ids" in feed else 0
        empty = {
            name: np.zeros((1, heads, length, size), np.float32)
            for name, (heads, size) in self._caches.items()
        }
        return {**feed, **empty}


@contextlib.contextmanager
def _errors_only() -> Iterator[None]:
    """Sessions that begin within give no warnings: here every pass copies its caches, one warning each."""
    ort.set_default_logger_severity(_ERRORS)
    try:
        yield
    finally:
        ort.set_default_logger_severity(_WARNINGS)


def _ranges(path: Path, feeds: Feeds) -> Ranges:
    graph = onnx.load(str(path), load_external_data=False).graph
    wanted = sorted({node.input[0] for node in weight_inputs(graph)})
    caches = {
        value.name: tuple(value.type.tensor_type.shape.dim[axis].dim_value for axis in (1, 3))
        for value in graph.input
        if value.name.startswith(("key_", "value_"))
    }
    with tempfile.TemporaryDirectory() as scratch, _errors_only():
        calibrator = create_calibrator(
            str(path),
            op_types_to_calibrate=["MatMul"],
            augmented_model_path=str(Path(scratch) / "augmented.onnx"),
            calibrate_method=CalibrationMethod.MinMax,
        )
        calibrator.collect_data(_Reader(feeds, caches))
        found = calibrator.compute_data()
    return {
        name: (float(np.min(found[name].range_value[0])), float(np.max(found[name].range_value[1])))
        for name in wanted
    }
