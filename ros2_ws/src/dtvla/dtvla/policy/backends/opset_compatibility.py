"""The decoder graph for ONNX Runtimes that stop before opset 24 (the last ones for Python 3.10).

Opset 24 is there for one operator, TensorScatter, the in-place cache update. Here it becomes ScatterND,
which ONNX Runtime also does in place when input and output are the same memory. Needs the `onnx`
package, which newer runtimes do not.
"""

from __future__ import annotations

from pathlib import Path

from dtvla.errors import BundleError

FIRST_WITH_TENSOR_SCATTER = (1, 24)
OPSET = 21
# rows [B, K, S, D] go to cache[b, k, at[b] + s]; ScatterND wants these triples.
INDICES = f"""
<domain: "dtvla", opset_import: ["" : {OPSET}]>
ScatterIndices (dt_rows, dt_at) => (dt_indices)
{{
    dt_zero = Constant <value_int = 0> ()
    dt_one = Constant <value_int = 1> ()
    dt_last = Constant <value_ints = [-1]> ()
    dt_batches = Shape <start = 0, end = 1> (dt_rows)
    dt_heads = Shape <start = 1, end = 2> (dt_rows)
    dt_count = Shape <start = 2, end = 3> (dt_rows)
    dt_shape = Shape <start = 0, end = 3> (dt_rows)
    dt_batch_size = Squeeze (dt_batches)
    dt_head_size = Squeeze (dt_heads)
    dt_count_size = Squeeze (dt_count)
    dt_batch_range = Range (dt_zero, dt_batch_size, dt_one)
    dt_head_range = Range (dt_zero, dt_head_size, dt_one)
    dt_row_range = Range (dt_zero, dt_count_size, dt_one)
    dt_column = Constant <value_ints = [-1, 1, 1]> ()
    dt_middle = Constant <value_ints = [1, -1, 1]> ()
    dt_b = Reshape (dt_batch_range, dt_column)
    dt_k = Reshape (dt_head_range, dt_middle)
    dt_start = Reshape (dt_at, dt_column)
    dt_s = Add (dt_start, dt_row_range)
    dt_b3 = Expand (dt_b, dt_shape)
    dt_k3 = Expand (dt_k, dt_shape)
    dt_s3 = Expand (dt_s, dt_shape)
    dt_b4 = Unsqueeze (dt_b3, dt_last)
    dt_k4 = Unsqueeze (dt_k3, dt_last)
    dt_s4 = Unsqueeze (dt_s3, dt_last)
    dt_indices = Concat <axis = -1> (dt_b4, dt_k4, dt_s4)
}}
"""


def needs_conversion(version: str) -> bool:
    """Whether an ONNX Runtime of this version lacks TensorScatter."""
    major, minor = version.split(".")[:2]
    return (int(major), int(minor)) < FIRST_WITH_TENSOR_SCATTER


def converted(path: Path) -> bytes:
    """The graph of `path` with every TensorScatter as ScatterND, at opset 21.

    Raises:
        BundleError: the onnx package is not installed.
    """
    try:
        import onnx
        from onnx import helper, parser
    except ModuleNotFoundError:
        raise BundleError(
            f"{path} needs ONNX Runtime {'.'.join(map(str, FIRST_WITH_TENSOR_SCATTER))} or newer. With this "
            "older one it is rewritten on loading, for which the onnx package is missing: pip install onnx."
        ) from None
    proto = onnx.load(str(path))
    nodes, indices = [], ""
    for node in proto.graph.node:
        if node.op_type != "TensorScatter":
            nodes.append(node)
            continue
        cache, rows, at = node.input
        if not indices:
            indices = "scatter_indices"
            nodes.append(helper.make_node("ScatterIndices", [rows, at], [indices], domain="dtvla"))
        nodes.append(helper.make_node("ScatterND", [cache, indices, rows], node.output))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    if indices:
        proto.functions.append(parser.parse_function(INDICES))
    for model in (proto, *proto.functions):
        for entry in model.opset_import:
            if entry.domain == "":
                entry.version = OPSET
    return bytes(proto.SerializeToString())
