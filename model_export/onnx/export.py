"""Writes vision.onnx and decoder.onnx."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from model_export.onnx.graphs import DecoderGraph, VisionGraph
from model_export.onnx.hybrid_attention import DOMAIN, function_body
from training.model.deepthinkvla import DeepThinkVLA

Signature = dict[str, tuple[str, ...]]
VISION_OPSET = 20  # the first with Gelu; later ones would only narrow the runtimes that read it
DECODER_OPSET = 24  # the first with TensorScatter
ONE_FILE = 1_000_000_000  # bytes of weights from which on they get a file of their own
# Signature of decoder.onnx: its dynamic dimensions by name. B batch, S rows of this pass, F image features,
# C cache length, T and A rows to score.
DECODER_INPUTS: Signature = {
    "ids": ("B", "S"),  # int64; token ids, -1 is an action slot (zero embedding)
    "features": ("B", "F", ""),  # float32, last is hidden size; for the image ids of this pass, in order
    "bounds": ("B", ""),  # int32, 4: prefix_len, action_start, kv_len, q_start
    "write_index": ("B",),  # int64; where in the cache the rows go (= q_start)
    "think_rows": ("T",),  # int64; rows at which the vocabulary is scored
    "act_rows": ("A",),  # int64; rows at which the action ids are scored
}
CACHE = (
    "B",
    "",
    "C",
    "",
)  # in the weights' precision; key/value heads, head size; bind key_i and key_i_out to the same memory
DECODER_OUTPUTS = {"think_logits": ("B", "T", ""), "action_logits": ("B", "A", "")}


def export_vision(model: DeepThinkVLA, path: Path, *, keep_names: bool = False) -> None:
    """Writes the vision graph: pixels [N, 3, S, S] -> features [N, T, H]; see `export_decoder`."""
    size = model.config.vision.image_size
    inputs: Signature = {"pixels": ("N", "", "", "")}
    example = {"pixels": torch.zeros(2, 3, size, size)}
    proto = _export(VisionGraph(model), example, inputs, VISION_OPSET, plain=keep_names)
    _name(proto, inputs, {"features": ("N", "", "")})
    _save(proto, path)


def export_decoder(
    model: DeepThinkVLA, path: Path, *, whole_head: bool = False, keep_names: bool = False
) -> None:
    """Writes the decoder graph (see `DECODER_INPUTS`), the operator's function body inside.

    Args:
        model: in eval mode; the precision of its weights is the graph's.
        path: file to write; weights of 1 GB and more go into a second file, `<name>.data`.
        whole_head: see `DecoderGraph`.
        keep_names: the graph's weights are those of the checkpoint under their names, so that others can be
            put in their place. Runtimes fold what this leaves to them when they load the graph.
    """
    text, dtype = model.config.text, model.decoder.embed_tokens.weight.dtype
    batch, length = 2, 24  # of the example; both stay dynamic

    def caches() -> list[Tensor]:
        shape = (batch, text.kv_heads, length, text.head_dim)
        return [torch.zeros(shape, dtype=dtype) for _ in range(text.layers)]

    example = {
        "ids": torch.zeros(batch, 7, dtype=torch.int64),
        "features": torch.zeros(batch, 5, text.hidden_size),
        "bounds": torch.zeros(batch, 4, dtype=torch.int32),
        "write_index": torch.zeros(batch, dtype=torch.int64),
        "think_rows": torch.zeros(3, dtype=torch.int64),
        "act_rows": torch.zeros(4, dtype=torch.int64),
        "keys": caches(),
        "values": caches(),
    }
    per_layer = [CACHE] * text.layers
    proto = _export(
        DecoderGraph(model, whole_head=whole_head, keep_names=keep_names),
        example,
        {**DECODER_INPUTS, "keys": per_layer, "values": per_layer},
        DECODER_OPSET,
        plain=keep_names,
    )
    names = [f"{kind}_{i}" for kind in ("key", "value") for i in range(text.layers)]
    _name(
        proto,
        {**DECODER_INPUTS, **dict.fromkeys(names, CACHE)},
        {**DECODER_OUTPUTS, **{f"{name}_out": CACHE for name in names}},
    )
    proto.functions.append(function_body(DECODER_OPSET))
    if not any(entry.domain == DOMAIN for entry in proto.opset_import):
        proto.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    _save(proto, path)


def _export(
    module: nn.Module, example: dict[str, Any], shapes: dict[str, Any], opset: int, *, plain: bool = False
) -> onnx.ModelProto:
    """One torch.onnx.export; named dimensions are dynamic. `plain`: no constant is folded into others."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad(), _quiet():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        program = torch.onnx.export(
            module.eval(),
            kwargs=example,
            dynamo=True,
            opset_version=opset,
            dynamic_shapes={name: _dynamic(shape) for name, shape in shapes.items()},
            optimize=not plain,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def _dynamic(shape: Any) -> Any:
    if isinstance(shape, list):
        return [_dynamic(entry) for entry in shape]
    return {axis: torch.export.Dim.DYNAMIC for axis, name in enumerate(shape) if name}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter's remarks about torchvision, which nothing here uses."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _name(proto: onnx.ModelProto, inputs: Signature, outputs: Signature) -> None:
    """Gives inputs, outputs and their dynamic dimensions the names of this file's tables."""
    graph = proto.graph
    renamed: dict[str, str] = {}
    for values, table in ((graph.input, inputs), (graph.output, outputs)):
        for value, (name, shape) in zip(values, table.items(), strict=True):
            renamed[value.name] = name
            value.name = name
            for dim, label in zip(value.type.tensor_type.shape.dim, shape, strict=True):
                if label:
                    dim.dim_param = label
    del graph.value_info[:]  # they still have the exporter's dimension names
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]


def save_graph(proto: onnx.ModelProto, path: Path) -> None:
    """Writes a graph and checks the file. Protobuf ends at 2 GB: large weights go into a file beside it."""
    outside = sum(len(tensor.raw_data) for tensor in proto.graph.initializer) >= ONE_FILE
    onnx.save(
        proto,
        str(path),
        save_as_external_data=outside,
        location=f"{path.name}.data",
        size_threshold=1024,
    )
    onnx.checker.check_model(str(path))


def _save(proto: onnx.ModelProto, path: Path) -> None:
    """Checks and writes; the exporter's stack traces hold paths of this machine and are dropped."""
    for node in proto.graph.node:
        del node.metadata_props[:]
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del value.metadata_props[:]
    del proto.graph.metadata_props[:]
    del proto.metadata_props[:]
    save_graph(proto, path)
