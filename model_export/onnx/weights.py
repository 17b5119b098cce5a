"""Which matrix products of an ONNX graph have weights, and the values of those weights."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

_RESHAPING = ("Transpose", "Slice", "Identity", "Cast", "Constant")


class Constants:
    """Values that follow from the file alone: weights, and weights that are sliced or transposed."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._makers = {
            output: node for node in graph.node if node.op_type in _RESHAPING for output in node.output
        }

    def __contains__(self, name: str) -> bool:
        if name in self._tensors:
            return True
        maker = self._makers.get(name)
        return maker is not None and all(entry in self for entry in maker.input if entry)

    def value(self, name: str) -> NDArray[np.generic]:
        """The value of a constant."""
        if name in self._tensors:
            constant: NDArray[np.generic] = onnx.numpy_helper.to_array(self._tensors[name])
            return constant
        maker = self._makers[name]
        inputs = {entry: self.value(entry) for entry in maker.input if entry}
        return np.asarray(ReferenceEvaluator(maker).run(None, inputs)[0])


def weight_inputs(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The matrix products `x @ W` whose W is a constant matrix."""
    constants = Constants(graph)
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in constants and node.input[0] not in constants:
            yield node
