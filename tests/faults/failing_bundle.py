"""A copy of a bundle whose decoder fails inside ONNX Runtime when one character comes up.

The graph gets one node more: a Gather whose index leaves its data when the prompt holds the trigger. What
raises is the provider's own session, in the middle of a run; every hash and signature of the bundle fits.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from dtvla.policy.bundle.loading import sealed

TRIGGER = "~"


def make(source: Path, folder: Path) -> Path:
    """Writes the copy into `folder` and returns it."""
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(source, folder)
    token = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"][TRIGGER]
    model = onnx.load(str(folder / "decoder.onnx"))
    graph = model.graph
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == "ids":
                node.input[index] = "ids_or_failure"
    constants = {"trigger": [token], "nothing": [0], "far": [10**9], "axes": [0, 1]}
    for name, values in constants.items():
        graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), f"fault_{name}"))
    fault = [
        helper.make_node("Equal", ["ids", "fault_trigger"], ["fault_found"]),
        helper.make_node("Cast", ["fault_found"], ["fault_seen"], to=onnx.TensorProto.INT64),
        helper.make_node("ReduceMax", ["fault_seen", "fault_axes"], ["fault_any"], keepdims=0),
        helper.make_node("Mul", ["fault_any", "fault_far"], ["fault_index"]),
        helper.make_node("Gather", ["fault_nothing", "fault_index"], ["fault_zero"]),
        helper.make_node("Add", ["ids", "fault_zero"], ["ids_or_failure"]),
    ]
    nodes = [*fault, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, str(folder / "decoder.onnx"))
    data = json.loads((folder / "policy.json").read_text())
    for name in data["files"]:
        data["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "policy.json").write_bytes(sealed(data))
    return folder
