"""Attention written out for ONNX Runtime on a CPU: one mask for all layers, and no key that nobody may see.

The body of `dtvla::HybridAttention` makes the mask anew in every layer and multiplies with the whole cache,
because a runtime with a plugin takes each node alone and TensorRT wants sizes that no input decides. On a CPU
that costs the shipped policy a fifth of a pass of one row and a third of a prefill (decision 0007).
Here one function makes the mask once per pass, and each layer sees the cache up to the longest sequence only.

    python -m model_export.onnx.shared_mask BUNDLE      # an int8 bundle made before this existed, in place
"""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import tyro
from onnx import helper, parser
from rich.console import Console
from tyro.conf import Positional

from dtvla.errors import BundleError
from dtvla.policy.bundle.loading import Bundle, write_bundle
from model_export.bundle import new_bundle
from model_export.errors import ExportError
from model_export.onnx.export import save_graph
from model_export.onnx.hybrid_attention import DOMAIN, OPERATOR

# bounds: see `dtvla.policy.token_layout.Bounds`. Queries of one key head are stacked as rows, head by head.
_MASK = """
<domain: "dtvla", opset_import: ["" : {opset}]>
HybridMask (q, k, bounds) => (bias, keys_end, stacked, apart)
{{
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    first_axis = Constant <value_ints = [0]> ()
    second_axis = Constant <value_ints = [1]> ()
    rest = Constant <value_ints = [-1]> ()
    single = Constant <value_ints = [1]> ()
    batch = Shape <start = 0, end = 1> (q)
    heads = Shape <start = 1, end = 2> (q)
    rows = Shape <start = 2, end = 3> (q)
    depth = Shape <start = 3, end = 4> (q)
    key_heads = Shape <start = 1, end = 2> (k)
    stacked = Concat <axis = 0> (batch, key_heads, rest, depth)
    apart = Concat <axis = 0> (batch, heads, rest, depth)
    column = Constant <value_ints = [-1, 4, 1, 1]> ()
    bounds64 = Cast <to = 7> (bounds)
    limits = Reshape (bounds64, column)
    prefix, start, length, first = Split <axis = 1, num_outputs = 4> (limits)
    row_count = Squeeze (rows, first_axis)
    row_range = Range (zero, row_count, one)
    row = Unsqueeze (row_range, second_axis)
    i = Add (first, row)
    next = Add (i, one)
    at_least = Max (prefix, next)
    causal = Min (at_least, length)
    thinks = Less (i, start)
    limit = Where (thinks, causal, length)
    longest = ReduceMax <keepdims = 0> (length)
    keys_end = Unsqueeze (longest, first_axis)
    key = Range (zero, longest, one)
    visible = Less (key, limit)
    seen = Constant <value_float = 0.0> ()
    hidden = Constant <value_float = -1e30> ()
    bias_of_a_head = Where (visible, seen, hidden)
    group = Div (heads, key_heads)
    repeats = Concat <axis = 0> (single, single, group, single)
    bias = Tile (bias_of_a_head, repeats)
}}
"""
_ATTENTION = """
<domain: "dtvla", opset_import: ["" : {opset}]>
MaskedAttention <scale: float = 1.0> (q, k, v, bias, keys_end, stacked, apart) => (out)
{{
    start = Constant <value_ints = [0]> ()
    axis = Constant <value_ints = [2]> ()
    scale = Constant <value_float: float = @scale> ()
    keys = Slice (k, start, keys_end, axis)
    values = Slice (v, start, keys_end, axis)
    q4 = Reshape (q, stacked)
    keys_t = Transpose <perm = [0, 1, 3, 2]> (keys)
    products = MatMul (q4, keys_t)
    scores = Mul (products, scale)
    masked = Add (scores, bias)
    weights = Softmax <axis = -1> (masked)
    mixed = MatMul (weights, values)
    out = Reshape (mixed, apart)
}}
"""
_SHARED = ("bias", "keys_end", "stacked", "apart")


def share_mask(proto: onnx.ModelProto) -> bool:
    """Replaces every HybridAttention of a graph whose attention is in float32, in place.

    The numbers stay what they were, but for sums that leave out zeros.

    Returns:
        Whether there was one.
    """
    names = [f"shared_{name}" for name in _SHARED]
    nodes: list[onnx.NodeProto] = []
    found = False
    for node in proto.graph.node:
        if node.op_type != OPERATOR:
            nodes.append(node)
            continue
        q, k, v, bounds = node.input
        if not found:
            nodes.append(helper.make_node("HybridMask", [q, k, bounds], names, domain=DOMAIN))
        found = True
        scale = next(helper.get_attribute_value(a) for a in node.attribute if a.name == "scale")
        inputs = [q, k, v, *names]
        nodes.append(helper.make_node("MaskedAttention", inputs, node.output, domain=DOMAIN, scale=scale))
    if not found:
        return False
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    opset = next(entry.version for entry in proto.opset_import if entry.domain == "")
    del proto.functions[:]
    proto.functions.extend(parser.parse_function(text.format(opset=opset)) for text in (_MASK, _ATTENTION))
    return True


def convert(bundle: Path) -> None:
    """Rewrites the decoder of an int8 bundle; everything else stays as it is.

    Raises:
        BundleError: the bundle must not be run.
        ExportError: it is not an int8 bundle, or has been rewritten before.
    """
    source = Bundle.load(bundle)
    if source.spec.precision != "int8":
        raise ExportError(f"{bundle} is in {source.spec.precision}; only int8 bundles are for CPUs alone.")
    proto = onnx.load(str(bundle / "decoder.onnx"))
    if not share_mask(proto):
        raise ExportError(f"The decoder of {bundle} has no {OPERATOR} node; it was rewritten before.")
    with new_bundle(bundle) as folder:
        for name in ("tokenizer.json", "vision.onnx"):
            shutil.copy(bundle / name, folder)
        save_graph(proto, folder / "decoder.onnx")
        write_bundle(folder, source.spec)


def main(bundle: Positional[Path]) -> int:
    """Rewrites a bundle; returns the exit code."""
    try:
        convert(bundle)
    except (BundleError, ExportError) as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}", highlight=False)
        return 1
    Console().print(f"{bundle}: one mask for all layers", highlight=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main, description=__doc__))
