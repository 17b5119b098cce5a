"""8-bit weights and activations for a bundle, int8 for CPUs and fp8 for GPUs, as standard Q/DQ nodes.

    python -m model_export.quantise BUNDLE --out SMALLER --calibrate data/embedded

Every matrix product with a weight becomes x -> QuantizeLinear -> DequantizeLinear -> MatMul with a
dequantised weight; runtimes fuse the four into one 8-bit product. A weight has one scale per column, an
activation one scale, fixed by calibration: what a row becomes does not depend on the rows beside it, so
drafts and batches change nothing (a scale taken anew from each pass, ONNX Runtime's "dynamic" kind, would let
a neighbour change a word). Attention, norms, embeddings and convolutions keep their precision.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from rich.console import Console
from tyro.conf import Positional

from dtvla.errors import BundleError
from dtvla.policy.bundle.loading import Bundle, write_bundle
from model_export.bundle import new_bundle, size_mb
from model_export.errors import ExportError
from model_export.onnx.export import save_graph
from model_export.onnx.shared_mask import share_mask
from model_export.onnx.weights import Constants, weight_inputs
from model_export.quantise.calibration import LOOKS, Ranges, calibrate, recorded_looks

Kind = Literal["int8", "fp8"]
FP8_MOST = 448.0  # largest value of float8 e4m3fn
# Codes of int8 weights end at 63, not 127: x86 processors without VNNI add two products of 8 bits in 16 bits,
# which overflows beyond (ONNX Runtime's documentation of quantisation: reduce_range). So all CPUs agree.
INT8_MOST = 63


@dataclass(frozen=True)
class Grid:
    """How numbers are put into 8 bits: value = (code - zero) * scale."""

    scale: NDArray[np.float32]
    zero: NDArray[np.generic]
    axis: int | None = None  # of a weight's scales

    def codes(self, values: NDArray[np.float32]) -> NDArray[np.generic]:
        """The nearest codes of the values."""
        scaled = values / self.scale
        kind: np.dtype[Any] = self.zero.dtype
        codes: NDArray[np.generic]
        if kind == ml_dtypes.float8_e4m3fn:
            codes = np.clip(scaled, -FP8_MOST, FP8_MOST).astype(kind)
        else:
            low, high = (-INT8_MOST, INT8_MOST) if kind == np.int8 else (0, 255)
            codes = np.clip(np.rint(scaled) + self.zero.astype(np.float32), low, high).astype(kind)
        return codes


def weight_grid(weight: NDArray[np.float32], kind: Kind) -> Grid:
    """One scale for each column of a weight [in, out], symmetric around zero."""
    most = np.maximum(np.abs(weight).max(0), np.float32(1e-12))
    if kind == "fp8":
        zeros = np.zeros(most.shape, ml_dtypes.float8_e4m3fn)
        return Grid((most / FP8_MOST).astype(np.float32), zeros, axis=1)
    return Grid((most / INT8_MOST).astype(np.float32), np.zeros(most.shape, np.int8), axis=1)


def activation_grid(low: float, high: float, kind: Kind) -> Grid:
    """One scale for an activation whose calibrated range is [low, high]."""
    if kind == "fp8":
        most = max(abs(low), abs(high), 1e-12)
        return Grid(np.array(most / FP8_MOST, np.float32), np.zeros((), ml_dtypes.float8_e4m3fn))
    low, high = min(low, 0.0), max(high, 0.0)  # zero must have a code of its own
    scale = max(high - low, 1e-12) / 255
    return Grid(np.array(scale, np.float32), np.array(round(-low / scale), np.uint8))


def quantise(proto: onnx.ModelProto, ranges: Ranges, kind: Kind) -> int:
    """Puts every weighted matrix product of a graph into 8 bits, in place.

    Args:
        proto: the graph; scales take the precision of its weights.
        ranges: calibrated ranges of the products' inputs, by name.
        kind: int8 or fp8.

    Returns:
        How many products there are.

    Raises:
        ExportError: a product has no calibrated range.
    """
    graph = proto.graph
    constants = Constants(graph)
    codes: dict[str, str] = {}  # what has been quantised already, by the name of the original
    before: dict[str, list[onnx.NodeProto]] = {}  # nodes to insert, by what the next one computes
    count = 0
    for node in list(weight_inputs(graph)):
        x, w = node.input
        if x not in ranges:
            raise ExportError(f"The input {x} of {node.name} was not calibrated; calibrate this very graph.")
        new: list[onnx.NodeProto] = []
        if x not in codes:
            codes[x] = f"{x}_8bit"
            new += _activation(
                graph, x, codes[x], activation_grid(*ranges[x], kind), constants.value(w).dtype
            )
        if w not in codes:
            codes[w] = f"{w}_8bit"
            new += _weight(graph, codes[w], constants.value(w), kind)
        node.input[:] = [codes[x], codes[w]]
        before[node.output[0]] = new
        count += 1
    nodes = [each for node in graph.node for each in (*before.get(node.output[0], ()), node)]
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unused(graph)
    return count


def by_order(measured: onnx.GraphProto, ranges: Ranges, target: onnx.GraphProto) -> Ranges:
    """Ranges of one graph under the names of another export of the same model in another precision."""
    pairs = zip(weight_inputs(measured), weight_inputs(target), strict=True)
    return {theirs.input[0]: ranges[ours.input[0]] for ours, theirs in pairs}


def _activation(
    graph: onnx.GraphProto, name: str, out: str, grid: Grid, dtype: np.dtype[np.generic]
) -> list[onnx.NodeProto]:
    scale, zero = f"{out}_scale", f"{out}_zero"
    graph.initializer.extend(
        [numpy_helper.from_array(grid.scale.astype(dtype), scale), numpy_helper.from_array(grid.zero, zero)]
    )
    return [
        helper.make_node("QuantizeLinear", [name, scale, zero], [f"{out}_codes"]),
        helper.make_node("DequantizeLinear", [f"{out}_codes", scale, zero], [out]),
    ]


def _weight(
    graph: onnx.GraphProto, out: str, weight: NDArray[np.generic], kind: Kind
) -> list[onnx.NodeProto]:
    grid = weight_grid(weight.astype(np.float32), kind)
    names = [f"{out}_{part}" for part in ("codes", "scale", "zero")]
    arrays = [grid.codes(weight.astype(np.float32)), grid.scale.astype(weight.dtype), grid.zero]
    graph.initializer.extend(numpy_helper.from_array(a, n) for a, n in zip(arrays, names, strict=True))
    return [helper.make_node("DequantizeLinear", names, [out], axis=grid.axis)]


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Takes out what nobody reads any more: the weights that were quantised, and how they were made."""
    while True:
        read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
        dead = [node for node in graph.node if not read & set(node.output)]
        if not dead:
            break
        for node in dead:
            graph.node.remove(node)
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)


def quantise_bundle(
    bundle: Path, out: Path, ranges: Mapping[str, Ranges], kind: Kind, measured: Path | None = None
) -> None:
    """Writes a bundle in 8 bits.

    Args:
        bundle: what to quantise; what stays outside the matrix products keeps its precision.
        out: directory to write; an older bundle there is replaced.
        ranges: what `calibrate` found.
        kind: int8 or fp8.
        measured: the bundle whose ranges they are, when it is another export of the same model.

    Raises:
        ExportError: the ranges are another bundle's.
        BundleError: the result would not load.
    """
    source = Bundle.load(bundle)
    with new_bundle(out) as folder:
        shutil.copy(bundle / "tokenizer.json", folder)
        for name, found in ranges.items():
            proto = onnx.load(str(bundle / f"{name}.onnx"))
            if measured is not None and measured != bundle:
                before = onnx.load(str(measured / f"{name}.onnx"))
                found = by_order(before.graph, found, proto.graph)
            quantise(proto, found, kind)
            if kind == "int8":  # for CPUs, which have no plugin
                share_mask(proto)
            save_graph(proto, folder / f"{name}.onnx")
        provenance = {**source.spec.provenance, "quantised_from": source.fingerprint}
        write_bundle(folder, replace(source.spec, precision=kind, provenance=provenance))


@dataclass(frozen=True)
class Quantise:
    """Puts a float32 bundle into 8 bits."""

    bundle: Positional[Path]  # in float32
    out: Path  # bundle directory to write; replaced when it exists
    calibrate: Path  # folder of `python -m training.collect`
    precision: Kind = "int8"  # fp8 is for GPUs; on a CPU it only shows what its numbers cost
    looks: int = LOOKS  # pictures to calibrate on


def main(config: Quantise) -> int:
    """Calibrates and quantises; returns the exit code."""
    console = Console()
    try:
        with console.status(f"calibrating on {config.looks} pictures"):
            ranges = calibrate(config.bundle, recorded_looks(config.calibrate, config.looks))
        quantise_bundle(config.bundle, config.out, ranges, config.precision)
    except (BundleError, ExportError) as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}", highlight=False)
        return 1
    sizes = f"{size_mb(config.bundle):.1f} MB, now {size_mb(config.out):.1f} MB"
    console.print(f"{config.out}: {config.precision}; it was {sizes}", highlight=False)
    return 0
