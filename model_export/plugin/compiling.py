"""Compiles one kernel variant for one architecture without a GPU, and reads what came out.

Triton appends two scratch pointers to every kernel's parameters. Whoever launches the PTX himself (TensorRT)
would have to pass them, so they are taken out again, after a check that nothing reads them.
"""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from model_export.plugin.plan import Dtype, Tile, padded

Kind = Literal["single", "split", "combine"]
# The oldest PTX version that knows the architecture and what Triton emits for it: drivers refuse newer PTX
# than their own. 8.0 is CUDA 12.0 (driver 525), 8.6 CUDA 12.7, 8.7 CUDA 12.8, 9.0 CUDA 13.0 (sm_110's name).
PTX_VERSIONS = {80: 80, 86: 80, 87: 80, 89: 80, 90: 80, 100: 86, 110: 90, 120: 87}
HIDDEN_PARAMETERS = 2
SINGLE_PARAMETERS = ("Q", "K", "V", "BOUNDS", "rows", "cache", "OUT")  # inputs, extra integers, outputs
_INTEGERS = ("rows", "cache", "stacked")
_FLOATS = ("PEAK", "TOTAL", "ACC")
_ALIGNMENT = 16  # bytes; torch and TensorRT align every tensor to 256
_INSTRUCTIONS = (
    ("wgmma", r"\bwgmma\.mma_async"),
    ("tcgen05", r"\btcgen05\.mma"),
    ("mma.sync", r"\bmma\.sync"),
)


class CompileError(RuntimeError):
    """A kernel that could not be compiled, or PTX that is not what was expected."""


@dataclass(frozen=True)
class Variant:
    """One kernel with all its constants."""

    name: str
    kind: Kind
    dtype: Dtype
    tile: Tile
    parts: int = 1
    head_dim: int = 256
    group: int = 8  # query heads per key head
    scale: float = 256**-0.5


@dataclass(frozen=True)
class Compiled:
    """A variant compiled for one architecture, and what a launch of it needs."""

    variant: Variant
    capability: int
    entry: str  # the kernel's name in the PTX
    ptx: str  # without Triton's hidden parameters
    parameters: tuple[str, ...]  # in order
    threads: int
    shared: int  # bytes of dynamic shared memory
    registers: int  # per thread
    spills: int  # bytes stored
    instructions: str  # wgmma, tcgen05, mma.sync or fma
    ptx_version: str
    assembler: str  # version of the ptxas that read the stripped PTX


def compile_variant(variant: Variant, capability: int) -> Compiled:
    """Compiles, strips and assembles.

    Raises:
        CompileError: this Triton cannot, or the PTX is not as expected.
    """
    if capability not in PTX_VERSIONS:  # LLVM ends the process for a processor that it does not know
        raise CompileError(f"There is no PTX version set for sm_{capability}; known: {list(PTX_VERSIONS)}.")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function, constants = _function(variant), _constants(variant)
    if not hasattr(function, "arg_names") or not hasattr(triton, "compile"):
        raise CompileError("Triton runs its interpreter (TRITON_INTERPRET is set); unset it to compile.")
    signature, attributes = {}, {}
    for place, name in enumerate(function.arg_names):
        signature[name] = _type(name, variant.dtype, constants)
        if signature[name].startswith("*"):
            attributes[(place,)] = [["tt.divisibility", _ALIGNMENT]]
    options: dict[str, Any] = {"ptx_version": PTX_VERSIONS[capability], "enable_fp_fusion": True}
    if variant.kind != "combine":
        options |= {"num_warps": variant.tile.warps, "num_stages": variant.tile.stages}
    try:
        # A failing assembler makes Triton print the whole PTX.
        with contextlib.redirect_stdout(io.StringIO()):
            kernel = triton.compile(
                ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attributes),
                target=GPUTarget("cuda", capability, 32),
                options=options,
            )
    except Exception as error:  # the compiler's passes raise many kinds
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CompileError(f"Triton {triton.__version__} fails for sm_{capability}: {first}") from None
    data = kernel.metadata
    if data.global_scratch_size or data.profile_scratch_size:
        raise CompileError(f"{variant.name} for sm_{capability} uses Triton's scratch memory.")
    parameters = tuple(name for name in function.arg_names if name not in constants)
    ptx = strip_hidden_parameters(kernel.asm["ptx"], len(parameters))
    registers, spills, assembler = assemble(ptx, capability)
    found = (name for name, pattern in _INSTRUCTIONS if re.search(pattern, ptx))
    version = re.search(r"^\.version (\S+)", ptx, re.M)
    return Compiled(
        variant=variant,
        capability=capability,
        entry=data.name,
        ptx=ptx,
        parameters=parameters,
        threads=data.num_warps * data.warp_size,
        shared=data.shared,
        registers=registers,
        spills=spills,
        instructions=next(found, "fma"),
        ptx_version=version.group(1) if version else "",
        assembler=assembler,
    )


def _function(variant: Variant) -> Any:
    from model_export.plugin import kernel

    kinds = {
        "single": kernel.attention_kernel,
        "split": kernel.split_kernel,
        "combine": kernel.combine_kernel,
    }
    return kinds[variant.kind]


def _constants(variant: Variant) -> dict[str, Any]:
    width = padded(variant.head_dim)
    if variant.kind == "combine":
        slots = 1 << (variant.parts - 1).bit_length()
        return {"D": variant.head_dim, "WIDTH": width, "PARTS": variant.parts, "SLOTS": slots}
    constants: dict[str, Any] = {
        "SCALE": variant.scale,
        "GROUP": variant.group,
        "D": variant.head_dim,
        "WIDTH": width,
        "ROWS": variant.tile.rows,
        "KEYS": variant.tile.keys,
        "PRECISION": variant.tile.precision,
    }
    return constants if variant.kind == "single" else {**constants, "PARTS": variant.parts}


def _type(name: str, dtype: Dtype, constants: dict[str, Any]) -> str:
    if name in constants:
        return "constexpr"
    if name in _INTEGERS:
        return "i32"
    if name == "BOUNDS":
        return "*i32"
    return "*fp32" if name in _FLOATS else f"*{dtype}"


def strip_hidden_parameters(ptx: str, keep: int) -> str:
    """The PTX with its first `keep` parameters only, and without debug sections.

    Raises:
        CompileError: there are not two parameters more, or one of the two is read.
    """
    entry = re.search(r"(\.visible \.entry \w+\(\n)(.*?)(\n\))", ptx, re.S)
    if entry is None:
        raise CompileError("The PTX has no visible entry.")
    declared = entry.group(2).split(",\n")
    if len(declared) != keep + HIDDEN_PARAMETERS:
        raise CompileError(
            f"The PTX has {len(declared)} parameters; {keep} of ours and {HIDDEN_PARAMETERS} scratch "
            "pointers of Triton were expected. Another Triton may pass something else."
        )
    for number in range(keep, len(declared)):
        if len(re.findall(rf"_param_{number}\b", ptx)) != 1:
            raise CompileError(f"The PTX reads parameter {number}, one of Triton's scratch pointers.")
    ptx = ptx[: entry.start(2)] + ",\n".join(declared[:keep]) + ptx[entry.end(2) :]
    # Line tables name files of this machine; they would only make the engine larger.
    ptx = re.sub(r"^\s*\.(loc|file)\s.*\n|^\$L__tmp\d+:\n|^\s*//.*\n", "", ptx, flags=re.M)
    return re.sub(r"\n\s*\.section\s+\.debug.*", "\n", ptx, flags=re.S)


def parameter_types(ptx: str) -> list[str]:
    """The PTX types of the entry's parameters, such as u64 for pointers and u32 for integers."""
    entry = re.search(r"\.visible \.entry \w+\((.*?)\n\)", ptx, re.S)
    return re.findall(r"\.param\s+\.(\w+)", entry.group(1)) if entry else []


def assemble(ptx: str, capability: int) -> tuple[int, int, str]:
    """Registers per thread, bytes of spills, and the version of the assembler that Triton brings along.

    Raises:
        CompileError: the assembler refuses the PTX.
    """
    from triton import knobs

    tool = knobs.nvidia.ptxas if capability < 90 else knobs.nvidia.ptxas_blackwell
    target = re.search(r"^\.target (\w+)", ptx, re.M)
    if target is None:
        raise CompileError("The PTX names no target.")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [tool.path, "-v", f"-arch={target.group(1)}", str(source), "-o", f"{folder}/kernel.cubin"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    registers = re.search(r"Used (\d+) registers", done.stderr)
    spills = re.search(r"(\d+) bytes spill stores", done.stderr)
    if done.returncode or registers is None or spills is None:
        first = (done.stderr.strip().splitlines() or ["no output"])[0]
        raise CompileError(f"ptxas {tool.version} refuses the PTX for {target.group(1)}: {first}")
    return int(registers.group(1)), int(spills.group(1)), str(tool.version)
