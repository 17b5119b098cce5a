"""NVIDIA's ONNX parser and engine builder, called without headers; run as a process, since C++ may crash.

    python vendor.py FOLDER GRAPH.onnx [PROFILES.json CAPABILITY]

FOLDER holds the wheel's libraries. Prints one JSON object: whether the graph was parsed, what the network
looks like, what was said about plugins, and the size of the engine when profiles were given. The libraries
export a few C functions that return C++ objects; what follows calls their virtual methods by position. The
positions are those of the public headers of TensorRT-RTX 1.6 (NvInferImpl.h, NvOnnxParser.h), which 1.7.1
still has.
"""

from __future__ import annotations

import ctypes as c
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

VERSION = 1_07_01  # major, minor, patch of TensorRT-RTX, two digits each
KV_CACHE_UPDATE = 54  # of enum LayerType
WARNING = 2  # of enum ILogger::Severity
# Virtual methods by position; most classes begin with the two destructors of their base.
CREATE_CONFIG, CREATE_NETWORK, CREATE_PROFILE, BUILD = 5, 6, 7, 11  # VBuilder
ADD_PROFILE, SET_CAPABILITIES, SET_CAPABILITY = 23, 55, 57  # VBuilderConfig
LAYERS, LAYER = 12, 13  # VNetworkDefinition
TYPE = 2  # VLayer
SET_DIMENSIONS, IS_VALID = 2, 7  # VOptimizationProfile
SIZE = 3  # VHostMemory
PARSE, ERRORS, ERROR = 0, 3, 4  # IParser
DESCRIPTION = 1  # IParserError


class Dims(c.Structure):
    """nvinfer1::Dims."""

    _fields_ = (("count", c.c_int32), ("sizes", c.c_int64 * 8))


class Logger:
    """An nvinfer1::ILogger that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, str]] = []
        language = c.CFUNCTYPE(c.c_int32, c.c_void_p)(lambda _: 0)
        nothing = c.CFUNCTYPE(None, c.c_void_p)(lambda _: None)
        log = c.CFUNCTYPE(None, c.c_void_p, c.c_int32, c.c_char_p)(self._log)
        # getAPILanguage, getInterfaceInfo, two destructors, log
        methods = [c.cast(f, c.c_void_p) for f in (language, language, nothing, nothing, log)]
        table = (c.c_void_p * len(methods))(*methods)
        pointer = (c.c_void_p * 1)(c.addressof(table))
        self._alive = (language, nothing, log, table, pointer)
        self.address = c.addressof(pointer)

    def _log(self, _: int, severity: int, message: bytes) -> None:
        self.lines.append((severity, message.decode(errors="replace")))


def call(target: int, position: int, result: Any, *arguments: Any) -> Any:
    """Calls a virtual method; integers go as addresses or as what ctypes type they are wrapped in."""
    table = c.cast(target, c.POINTER(c.c_void_p))[0]
    assert table is not None
    function = c.cast(table, c.POINTER(c.c_void_p))[position]
    kinds = [c.c_void_p if isinstance(argument, int) else type(argument) for argument in arguments]
    return c.CFUNCTYPE(result, c.c_void_p, *kinds)(function)(target, *arguments)


def implementation(target: int) -> int:
    """The object behind a public class: its only member, after the table of methods."""
    found = c.cast(target, c.POINTER(c.c_void_p))[1]
    assert found is not None
    return found


class Vendor:
    """The builder and the parser of one network.

    Args:
        folder: the wheel's libraries.
    """

    def __init__(self, folder: Path) -> None:
        self.logger = Logger()
        rtx = c.CDLL(str(next(folder.glob("libtensorrt_rtx.so.*.*"))), mode=c.RTLD_GLOBAL)
        onnx = c.CDLL(str(next(folder.glob("libtensorrt_onnxparser_rtx.so.*.*"))), mode=c.RTLD_GLOBAL)
        self.version = int(rtx.getInferLibVersion())
        create = rtx.createInferBuilder_INTERNAL
        create.restype, create.argtypes = c.c_void_p, (c.c_void_p, c.c_int32)
        self._builder = implementation(create(self.logger.address, VERSION))
        self._network = call(self._builder, CREATE_NETWORK, c.c_void_p, c.c_uint32(1))  # strongly typed
        create = onnx.createNvOnnxParser_INTERNAL
        create.restype, create.argtypes = c.c_void_p, (c.c_void_p, c.c_void_p, c.c_int32)
        self._parser = create(self._network, self.logger.address, onnx.getNvOnnxParserVersion())

    def parse(self, graph: bytes) -> list[str]:
        """Parses a graph; returns the parser's errors."""
        arguments = (c.c_char_p(graph), c.c_size_t(len(graph)), c.c_char_p(None))
        parsed = call(self._parser, PARSE, c.c_bool, *arguments)
        errors = [
            call(call(self._parser, ERROR, c.c_void_p, c.c_int(i)), DESCRIPTION, c.c_char_p).decode()
            for i in range(call(self._parser, ERRORS, c.c_int))
        ]
        return errors if errors or parsed else ["the parser gave no reason"]

    def layer_types(self) -> Counter[int]:
        """How often each type of layer stands in the network."""
        network = implementation(self._network)
        layers = (
            implementation(call(network, LAYER, c.c_void_p, c.c_int32(i)))
            for i in range(call(network, LAYERS, c.c_int32))
        )
        return Counter(call(layer, TYPE, c.c_int32) for layer in layers)

    def build(self, profiles: Sequence[Mapping[str, Sequence[Sequence[int]]]], capability: int) -> int:
        """Builds an engine for a compute capability (times ten), without a GPU; returns its size in bytes."""
        public = call(self._builder, CREATE_CONFIG, c.c_void_p)
        config = implementation(public)
        assert call(config, SET_CAPABILITIES, c.c_bool, c.c_int32(1))
        assert call(config, SET_CAPABILITY, c.c_bool, c.c_int32(capability), c.c_int32(0))
        for shapes in profiles:
            profile = call(self._builder, CREATE_PROFILE, c.c_void_p)
            inner = implementation(profile)
            for name, selected in shapes.items():
                for which, shape in zip((0, 1, 2), selected, strict=True):  # enum: smallest, usual, largest
                    dims = Dims(len(shape), (c.c_int64 * 8)(*shape))
                    arguments = (c.c_char_p(name.encode()), c.c_int32(which), c.pointer(dims))
                    assert call(inner, SET_DIMENSIONS, c.c_bool, *arguments), (name, shape)
            assert call(inner, IS_VALID, c.c_bool)
            assert call(config, ADD_PROFILE, c.c_int32, profile) >= 0
        memory = call(self._builder, BUILD, c.c_void_p, self._network, public)
        return int(call(implementation(memory), SIZE, c.c_size_t)) if memory else 0


def main(folder: str, graph: str, *rest: str) -> None:
    """Parses and perhaps builds; prints what came of it."""
    vendor = Vendor(Path(folder))
    errors = vendor.parse(Path(graph).read_bytes())
    said = [line for _, line in vendor.logger.lines]
    result: dict[str, object] = {
        "version": vendor.version,
        "errors": errors,
        "plugin_lookups": [line for line in said if "can be treated as plugin" in line],
        "local_functions": sum("Importing as a local function" in line for line in said),
    }
    if not errors:
        types = vendor.layer_types()
        result |= {"layers": sum(types.values()), "cache_updates": types[KV_CACHE_UPDATE]}
    if rest and not errors:
        result["engine_bytes"] = vendor.build(json.loads(Path(rest[0]).read_text()), int(rest[1]))
    result["complaints"] = [line for severity, line in vendor.logger.lines if severity < WARNING]
    print(json.dumps(result))
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
