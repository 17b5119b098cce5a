"""The attention kernels compiled for every target without a GPU, and the TensorRT plugin made of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_export.plugin import compiling, tensorrt_plugin
from model_export.plugin.ahead_of_time import try_variant, variants, write
from model_export.plugin.plan import DEFAULT_SHARED, SHARED_LIMIT, TARGETS, Tile, choose_tile

POINTERS_AND_INTEGERS = ["u64"] * 4 + ["u32"] * 2 + ["u64"]  # q, k, v, bounds, rows, cache, out

# ------------------------------------------------------------------------------------- ahead of time


@pytest.fixture(scope="module")
def triton_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@pytest.mark.parametrize("capability", TARGETS)
def test_both_tiles_compile_for_every_target_without_spills(
    triton_cache: None, capability: int, tmp_path: Path
) -> None:
    chosen = [v for v in variants("bf16", capability) if v.name in ("few_rows", "many_rows")]
    results = [try_variant(variant, capability) for variant in chosen]
    assert len(results) == 2
    for result in results:
        assert result.problem == ""
        compiled = result.compiled
        assert compiled is not None
        assert compiled.spills == 0
        assert compiled.shared <= SHARED_LIMIT[capability]
        assert compiled.instructions != "fma"
        assert compiled.parameters == compiling.SINGLE_PARAMETERS
        assert compiling.parameter_types(compiled.ptx) == POINTERS_AND_INTEGERS
        assert ".debug" not in compiled.ptx
        assert compiled.ptx_version == f"{compiling.PTX_VERSIONS[capability] / 10:.1f}"
    write(results, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert [row["target"] for row in report] == [f"sm_{capability}"] * 2
    assert all((tmp_path / row["file"]).is_file() for row in report)


def test_the_tight_tile_needs_no_raised_limit(triton_cache: None) -> None:
    variant = next(v for v in variants("fp16", 90) if v.name == "tight")
    result = try_variant(variant, 90)
    assert result.compiled is not None
    assert result.compiled.shared <= DEFAULT_SHARED
    assert not result.failed


def test_a_target_that_triton_does_not_know_is_reported_as_not_compiled(monkeypatch: Any) -> None:
    variant = variants("bf16", 90)[0]
    result = try_variant(variant, 13)
    assert result.compiled is None
    assert "sm_13" in result.problem
    assert not result.failed


PTX = """.version 8.0
.target sm_90a
.visible .entry kernel(
\t.param .u64 .ptr .global .align 1 kernel_param_0,
\t.param .u32 kernel_param_1,
\t.param .u64 .ptr .global .align 1 kernel_param_2,
\t.param .u64 .ptr .global .align 1 kernel_param_3
)
{
\t.loc 1 7 0
\tld.param.b64 %rd1, [kernel_param_0];
\tret;
}
\t.section\t.debug_abbrev
"""


def test_the_hidden_parameters_and_the_debug_sections_go() -> None:
    stripped = compiling.strip_hidden_parameters(PTX, 2)
    assert compiling.parameter_types(stripped) == ["u64", "u32"]
    assert "kernel_param_2" not in stripped
    assert ".loc" not in stripped
    assert ".debug" not in stripped


@pytest.mark.parametrize(
    ("ptx", "keep", "words"),
    [
        (PTX, 3, "4 parameters; 3 of ours"),
        (PTX.replace("\tret", "\tld.param.b64 %rd2, [kernel_param_3];\n\tret"), 2, "reads parameter 3"),
        ("", 2, "no visible entry"),
    ],
)
def test_ptx_that_is_not_as_expected_is_refused(ptx: str, keep: int, words: str) -> None:
    with pytest.raises(compiling.CompileError, match=words):
        compiling.strip_hidden_parameters(ptx, keep)


# ----------------------------------------------------------------------------------------- TensorRT


def test_registering_without_tensorrt_says_what_to_install(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", None)
    with pytest.raises(RuntimeError, match=r"Install TensorRT 10\.16"):
        tensorrt_plugin.register(capability=90)


def test_a_gpu_without_a_layout_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"this GPU has 7\.5"):
        tensorrt_plugin.check_capability(75)


def test_dynamic_heads_are_refused() -> None:
    with pytest.raises(RuntimeError, match="-1 is dynamic"):
        tensorrt_plugin.geometry_of((1, -1, 5, 256), (1, 1, 9, 256))


@given(
    st.integers(1, 3), st.integers(1, 8), st.integers(1, 600), st.integers(1, 4), st.sampled_from([16, 64])
)
def test_the_grid_covers_every_row_once(
    kv_heads: int, group: int, rows: int, samples: int, size: int
) -> None:
    geometry = tensorrt_plugin.Geometry(kv_heads * group, kv_heads, 64)
    tile = Tile(size, 32, 4, 2, "ieee", "")
    x, y, z = tensorrt_plugin.grid(rows, samples, geometry, tile, lambda a, b: -(-a // b))
    assert (y, z) == (kv_heads, samples)
    assert (x - 1) * size < group * rows <= x * size


class Shape(tuple):
    """What TensorRT shows of a shape: -1 where dynamic, with the profile's optimum beside."""

    opt: tuple[int, ...]
    is_dynamic = True


def described(shape: tuple[int, ...], opt: tuple[int, ...], names: tuple[str, ...]) -> Any:
    numbers = Shape(shape)
    numbers.opt = opt
    dtype = SimpleNamespace(name="BF16")
    desc = SimpleNamespace(shape=numbers, dtype=dtype, shape_expr=[Expr(name) for name in names])
    desc.like = lambda: desc
    return desc


class Expr:
    """A symbolic expression that remembers how it was made."""

    def __init__(self, text: object) -> None:
        self.text = str(text)

    def __mul__(self, other: object) -> Expr:
        return Expr(f"{self.text}*{other}")


class Plugins(SimpleNamespace):
    """The decorators of tensorrt.plugin, recording what they decorate."""

    def __init__(self) -> None:
        super().__init__(
            TensorDesc=SimpleNamespace, KernelLaunchParams=SimpleNamespace, SymExprs=tuple,
            SymInt32=lambda e: e, SymIntExprs=SimpleNamespace(from_tuple=tuple), AutoTuneCombination=AutoTune,
            cdiv=lambda a, b: Expr(f"ceil({a.text}/{b})"), made={},
        )  # fmt: skip
        for name in ("register", "autotune", "aot_impl"):
            setattr(self, name, lambda plugin, name=name: lambda f: self.made.update({name: (plugin, f)}))


class AutoTune(tuple):
    def __new__(cls, *parts: object) -> AutoTune:
        return super().__new__(cls, parts)


@pytest.mark.parametrize(("rows", "tactic", "tile_rows"), [(1, 1, 16), (73, 2, 64)])
def test_the_plugin_gives_tensorrt_ptx_and_expressions_of_shapes(
    monkeypatch: Any, triton_cache: None, rows: int, tactic: int, tile_rows: int
) -> None:
    trtp = Plugins()
    monkeypatch.setattr(tensorrt_plugin, "load_tensorrt", lambda: trtp)
    monkeypatch.setattr(tensorrt_plugin, "_registered", {})
    tensorrt_plugin.register(capability=90)
    tensorrt_plugin.register(capability=90)  # once is enough, twice does no harm
    assert {plugin for plugin, _ in trtp.made.values()} == {"dtvla::HybridAttention"}
    q = described((-1, 8, -1, 256), (1, 8, rows, 256), ("B", "8", "S", "256"))
    k = described((-1, 1, -1, 256), (1, 1, 1024, 256), ("B", "1", "C", "256"))
    bounds = described((-1, 4), (1, 4), ("B", "4"))
    offered = trtp.made["autotune"][1](q, k, k, bounds, (q,))
    assert offered == [(tensorrt_plugin.IO_TYPES, "LINEAR", [tactic])]
    scale = np.array([0.0625], np.float32)
    entry, ptx, params, extra = trtp.made["aot_impl"][1](q, k, k, bounds, scale, (q,), tactic)
    assert f".visible .entry {entry}(" in ptx
    assert compiling.parameter_types(ptx) == POINTERS_AND_INTEGERS
    assert (params.grid_x.text, params.grid_y, params.grid_z.text) == (f"ceil(S*8/{tile_rows})", 1, "B")
    assert [e.text for e in extra] == ["S", "C"]
    assert params.block_x == 32 * choose_tile(8 * rows, "bf16", 256, 90).warps
    assert list(trtp.made["register"][1].__annotations__) == ["q", "k", "v", "bounds", "scale", "return"]
