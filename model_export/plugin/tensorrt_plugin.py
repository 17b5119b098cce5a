"""The ONNX node `dtvla::HybridAttention` as a TensorRT Quick Deployable Plugin, compiled ahead of time.

TensorRT 10.16 (and 11) asks `aot_impl` for PTX, launch sizes and extra integers while it builds an engine
and bakes them in: at run time there is neither Python nor Triton. What that allows decides this file:

- One kernel per plugin, so attention runs in one pass. The shares of the keys that `op.hybrid_attention` uses
  for few rows need a second kernel: a decoded token occupies as many multiprocessors as there are samples
  times key heads. `python -m model_export.gpu_check` says what that costs.
- Scalars are int32 expressions of shapes. What changes from call to call (`bounds`) is a tensor.
- The kernel's parameters come as inputs, extra integers, outputs: q, k, v, bounds, rows, cache, out.
- While TensorRT times tactics, `bounds` holds arbitrary numbers, so times say nothing: the tile follows from
  the profile's optimum shape instead (`tactic_for`). Should TensorRT ask for tactics only once per node,
  all profiles get the first one's tile: right all the same, not as fast. The kernel keeps any bounds
  inside the cache.

The node's attributes `plugin_namespace` and `plugin_version` are read by the ONNX parser, which finds this
plugin by them; only `scale` reaches the plugin. It is declared as an array although it is one float: the
creator turns a declared float into `float(array)`, which numpy 2.4 refuses for arrays of one element.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from types import GenericAlias, ModuleType
from typing import Any, Union

import numpy as np
from numpy.typing import NDArray

from model_export.plugin.compiling import SINGLE_PARAMETERS, Compiled, Variant, compile_variant
from model_export.plugin.plan import FEW_ROWS, SHARED_LIMIT, Dtype, Tile, choose_tile, tight_tile

PLUGIN_ID = "dtvla::HybridAttention"
TYPES = "FP32|FP16|BF16"
IO_TYPES = f"{TYPES}, {TYPES}, {TYPES}, INT32, {TYPES}"  # q, k, v, bounds, out: one type, bounds apart
_DTYPES: dict[str, Dtype] = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16"}  # TensorRT's names


class Tactic(IntEnum):
    """The tiles a build may choose between; TensorRT wants positive numbers."""

    FEW_ROWS = 1  # one decoded token
    MANY_ROWS = 2  # prefill, verification, action block
    TIGHT = 3  # any rows within 48 kB of shared memory


@dataclass(frozen=True)
class Geometry:
    """The sizes of a node that are constants of its kernel."""

    heads: int
    kv_heads: int
    head_dim: int

    @property
    def group(self) -> int:
        """Query heads per key head."""
        return self.heads // self.kv_heads


def tactic_for(geometry: Geometry, rows: int, *, tight: bool = False) -> Tactic:
    """The tile for a number of rows: 16 stacked rows or fewer are a token's worth."""
    if tight:
        return Tactic.TIGHT
    return Tactic.FEW_ROWS if geometry.group * rows <= FEW_ROWS else Tactic.MANY_ROWS


def tile_of(tactic: Tactic, dtype: Dtype, head_dim: int, capability: int) -> Tile:
    """What a tactic stands for on an architecture."""
    if tactic is Tactic.TIGHT:
        return tight_tile(dtype)
    stacked = FEW_ROWS if tactic is Tactic.FEW_ROWS else FEW_ROWS + 1
    return choose_tile(stacked, dtype, head_dim, capability)


@lru_cache
def kernel_for(geometry: Geometry, scale: float, tactic: Tactic, dtype: Dtype, capability: int) -> Compiled:
    """The stripped PTX of one node's kernel and what its launch needs."""
    tile = tile_of(tactic, dtype, geometry.head_dim, capability)
    compiled = compile_variant(
        Variant(
            tactic.name.lower(),
            "single",
            dtype,
            tile,
            head_dim=geometry.head_dim,
            group=geometry.group,
            scale=scale,
        ),
        capability,
    )
    assert compiled.parameters == SINGLE_PARAMETERS
    return compiled


def grid(
    rows: Any, samples: Any, geometry: Geometry, tile: Tile, cdiv: Callable[..., Any]
) -> tuple[Any, ...]:
    """The launch grid (x, y, z) from numbers or from TensorRT's expressions of them.

    Args:
        rows: S of q [B, N, S, D].
        samples: B.
        geometry: the node's constants.
        tile: the kernel's.
        cdiv: division rounded up, of whatever `rows` is.
    """
    return cdiv(rows * geometry.group, tile.rows), geometry.kv_heads, samples


def geometry_of(q_shape: Any, k_shape: Any) -> Geometry:
    """The constants of a node from its input shapes.

    Raises:
        RuntimeError: heads or head dimension are dynamic or do not fit.
    """
    heads, kv_heads, head_dim = int(q_shape[1]), int(k_shape[1]), int(q_shape[3])
    if min(heads, kv_heads, head_dim) < 1 or heads % kv_heads or int(k_shape[3]) != head_dim:
        raise RuntimeError(
            f"{PLUGIN_ID} takes q [B, N, S, D] and k [B, K, C, D] with fixed N, K and D, N a multiple of K; "
            f"this node has q {list(q_shape)} and k {list(k_shape)} (-1 is dynamic)."
        )
    return Geometry(heads, kv_heads, head_dim)


def optimum(shape: Any) -> tuple[int, ...]:
    """The shape a profile is optimised for; a fixed shape is its own."""
    return tuple(shape.opt) if shape.is_dynamic else tuple(shape)


def dtype_of(tensorrt_type: Any) -> Dtype:
    """Triton's name of a tensorrt.DataType.

    Raises:
        RuntimeError: a type the kernel does not take.
    """
    if tensorrt_type.name not in _DTYPES:
        raise RuntimeError(f"{PLUGIN_ID} takes FP32, FP16 and BF16, not {tensorrt_type.name}.")
    return _DTYPES[tensorrt_type.name]


def load_tensorrt() -> ModuleType:
    """The module `tensorrt.plugin`.

    Raises:
        RuntimeError: TensorRT is not installed or has no ahead-of-time plugins.
    """
    try:
        trtp = importlib.import_module("tensorrt.plugin")
    except ImportError as error:
        raise RuntimeError(
            f"TensorRT's Python package is needed to build engines and cannot be imported ({error}). Install "
            "TensorRT 10.16 with its Python wheel (pip install tensorrt==10.16.1.*, from NVIDIA's index or "
            "its container), or use the bundle with ONNX Runtime, which needs no plugin."
        ) from None
    if not hasattr(trtp, "aot_impl"):
        raise RuntimeError("This TensorRT has no ahead-of-time Python plugins; install TensorRT 10.16.")
    return trtp


def build_capability() -> int:
    """The compute capability (times ten) of the GPU that the engine is built on.

    Raises:
        RuntimeError: no GPU, or one the kernels have not been laid out for.
    """
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("No CUDA GPU is visible; TensorRT builds an engine on the GPU that will run it.")
    major, minor = torch.cuda.get_device_capability()
    return check_capability(10 * major + minor)


def check_capability(capability: int) -> int:
    """The capability itself.

    Raises:
        RuntimeError: one the kernels have not been laid out for.
    """
    if capability not in SHARED_LIMIT:
        known = ", ".join(f"{c / 10:.1f}" for c in SHARED_LIMIT)
        raise RuntimeError(
            f"The attention plugin knows compute capabilities {known}; this GPU has {capability / 10:.1f}. "
            "Add it to model_export/plugin/plan.py, or build without the plugin."
        )
    return capability


_registered: dict[str, bool] = {}


def register(capability: int | None = None, *, tight: bool = False) -> None:
    """Registers the plugin with TensorRT; ONNX files with the node can be parsed afterwards. Once is enough.

    Args:
        capability: compute capability times ten; of the visible GPU by default.
        tight: stay within 48 kB of shared memory, in case an engine fails to launch the plugin because
            its kernel asks for more than a launch may have by default.

    Raises:
        RuntimeError: TensorRT is missing, or there is no known GPU.
    """
    if _registered:
        return
    trtp = load_tensorrt()
    target = build_capability() if capability is None else check_capability(capability)
    desc, outs = trtp.TensorDesc, GenericAlias(tuple, (trtp.TensorDesc,))
    tensors = {"q": desc, "k": desc, "v": desc, "bounds": desc}
    scale_type = {"scale": NDArray[np.float32]}

    def describe(q: Any, k: Any, v: Any, bounds: Any, scale: Any) -> Any:
        return q.like()

    def offer(q: Any, k: Any, v: Any, bounds: Any, outputs: Any) -> Any:
        geometry = geometry_of(q.shape, k.shape)
        tactic = tactic_for(geometry, optimum(q.shape)[2], tight=tight)
        return [trtp.AutoTuneCombination(IO_TYPES, "LINEAR", [int(tactic)])]

    def implement(q: Any, k: Any, v: Any, bounds: Any, scale: Any, outputs: Any, tactic: Any) -> Any:
        geometry = geometry_of(q.shape, k.shape)
        factor = float(np.ravel(scale)[0])
        kernel = kernel_for(geometry, factor, Tactic(tactic), dtype_of(q.dtype), target)
        rows, samples, cache = q.shape_expr[2], q.shape_expr[0], k.shape_expr[2]
        params = trtp.KernelLaunchParams()
        x, y, z = grid(rows, samples, geometry, kernel.variant.tile, trtp.cdiv)
        params.grid_x, params.grid_y, params.grid_z = x, y, z
        params.block_x, params.shared_mem = kernel.threads, kernel.shared
        extra = trtp.SymIntExprs.from_tuple((trtp.SymInt32(rows), trtp.SymInt32(cache)))
        return kernel.entry, kernel.ptx, params, extra

    # TensorRT reads real classes off the annotations; this module's are strings.
    text = Union[str, bytes]  # noqa: UP007 - compared with typing.Union
    describe.__annotations__ = {**tensors, **scale_type, "return": desc}
    offer.__annotations__ = {
        **tensors,
        "outputs": outs,
        "return": GenericAlias(list, (trtp.AutoTuneCombination,)),
    }
    implement.__annotations__ = {
        **tensors,
        **scale_type,
        "outputs": outs,
        "tactic": int,
        "return": GenericAlias(tuple, (text, text, trtp.KernelLaunchParams, trtp.SymExprs)),
    }
    trtp.register(PLUGIN_ID)(describe)
    trtp.autotune(PLUGIN_ID)(offer)
    trtp.aot_impl(PLUGIN_ID)(implement)
    _registered[PLUGIN_ID] = True
