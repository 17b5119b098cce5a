"""The custom ONNX operator `dtvla::HybridAttention`: one node per layer, with a body in standard ops.

    out = HybridAttention(q [B, N, S, D], k [B, K, C, D], v [B, K, C, D], bounds int32 [B, 4])

`bounds` is (prefix_len, action_start, kv_len, q_start). Runtimes with a plugin of that name take the
plugin; all others inline the body. The plugin attributes are always emitted: without `plugin_namespace`
newer TensorRT parsers take the body although the plugin is there. The body's value names begin with
`dt_` because that parser looks functions up by type alone and skips them when names collide.
"""

from __future__ import annotations

import onnx
import torch
from onnxscript import opset18 as op
from onnxscript import script, values
from torch import Tensor

DOMAIN = "dtvla"
OPERATOR = "HybridAttention"
PLUGIN_VERSION = "1"
_DOMAIN_VERSION = 1
_PREFIX = "dt_"  # onnxscript names what has no name in Python "tmp" and "return_val"
_OPSET = values.Opset(DOMAIN, _DOMAIN_VERSION)


def hybrid_attention_node(
    q_BNSD: Tensor, k_BKCD: Tensor, v_BKCD: Tensor, bounds_B4: Tensor, scale: float
) -> Tensor:
    """Stands for the operator while torch traces the model for export; it computes nothing."""
    node = torch.onnx.ops.symbolic(
        f"{DOMAIN}::{OPERATOR}",
        (q_BNSD, k_BKCD, v_BKCD, bounds_B4),
        {"scale": scale, "plugin_namespace": DOMAIN, "plugin_version": PLUGIN_VERSION},
        dtype=q_BNSD.dtype,
        shape=q_BNSD.shape,
        version=_DOMAIN_VERSION,
    )
    assert isinstance(node, Tensor)
    return node


def function_body(opset_version: int) -> onnx.FunctionProto:
    """The operator's definition in standard ops of the given opset."""
    body: onnx.FunctionProto = HybridAttention.to_function_proto()
    for entry in body.opset_import:
        if entry.domain == "":
            entry.version = opset_version
    for names in (body.output, *(names for node in body.node for names in (node.input, node.output))):
        names[:] = [name if not name or name.startswith(_PREFIX) else _PREFIX + name for name in names]
    return body


# fmt: off
@script(_OPSET, default_opset=op)
def HybridAttention(  # type: ignore[no-untyped-def]  # noqa: D103, N802 - a graph in Python's clothes
    dt_q, dt_k, dt_v, dt_bounds,
    scale: float = 1.0, plugin_namespace: str = "dtvla", plugin_version: str = "1",
):
    dt_batch = op.Shape(dt_q, start=0, end=1)
    dt_rows = op.Shape(dt_q, start=2, end=3)
    dt_depth = op.Shape(dt_q, start=3, end=4)
    dt_kv_heads = op.Shape(dt_k, start=1, end=2)
    dt_keys = op.Shape(dt_k, start=2, end=3)
    dt_rest = op.Constant(value_ints=[-1])
    dt_zero = op.Constant(value_int=0)
    dt_one = op.Constant(value_int=1)
    # Queries of one key head are stacked as rows: [B, K, N/K * S, D].
    dt_q4 = op.Cast(op.Reshape(dt_q, op.Concat(dt_batch, dt_kv_heads, dt_rest, dt_depth, axis=0)), to=1)
    dt_k4 = op.Transpose(op.Cast(dt_k, to=1), perm=[0, 1, 3, 2])
    dt_scores = op.Mul(op.MatMul(dt_q4, dt_k4), op.Constant(value_float=scale))
    dt_scores5 = op.Reshape(dt_scores, op.Concat(dt_batch, dt_kv_heads, dt_rest, dt_rows, dt_keys, axis=0))
    # i >= action_start is j <= NEVER for such rows: one limit per row, below which every key is visible.
    dt_limits = op.Reshape(op.Cast(dt_bounds, to=7), op.Constant(value_ints=[-1, 4, 1, 1, 1]))
    dt_prefix, dt_start, dt_length, dt_first = op.Split(dt_limits, num_outputs=4, axis=1)
    dt_row = op.Unsqueeze(op.Range(dt_zero, op.Squeeze(dt_rows), dt_one), op.Constant(value_ints=[1]))
    dt_i = op.Add(dt_first, dt_row)
    dt_causal = op.Min(op.Max(dt_prefix, op.Add(dt_i, dt_one)), dt_length)
    dt_limit = op.Where(op.Less(dt_i, dt_start), dt_causal, dt_length)
    dt_visible = op.Less(op.Range(dt_zero, op.Squeeze(dt_keys), dt_one), dt_limit)
    dt_masked = op.Where(dt_visible, dt_scores5, op.Constant(value_float=-1e30))
    dt_weights = op.Reshape(op.Softmax(dt_masked, axis=-1), op.Shape(dt_scores))
    dt_out = op.MatMul(dt_weights, op.Cast(dt_v, to=1))
    return op.CastLike(op.Reshape(dt_out, op.Shape(dt_q)), dt_q)
# fmt: on
