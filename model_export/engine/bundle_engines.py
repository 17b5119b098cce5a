"""Builds TensorRT engines for this machine's GPU from a bundle's ONNX graphs and puts them into the bundle.

    python -m model_export.engine BUNDLE
    python -m model_export.engine BUNDLE --timing-cache runs/h200.timing --max-rows 800

Needs TensorRT 10.16.1 with CUDA 13 and an NVIDIA GPU. An engine has the precision of the ONNX graphs
(`python -m model_export CHECKPOINT --precision bf16`) and runs on this model of GPU with this version of
TensorRT only; engines for other machines stay in the bundle. The bundle is replaced when all is built; when
anything fails before, it is as it was.
"""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import onnx
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dtvla.errors import BundleError
from dtvla.policy.backends.cuda_device import Gpu, Libraries, gpu, libraries
from dtvla.policy.bundle.engine_files import Engine, Profile, graph_digest, short_version
from dtvla.policy.bundle.loading import Bundle, write_bundle
from dtvla.policy.bundle.policy_spec import FILE
from model_export.bundle import new_bundle, size_mb
from model_export.engine.onnx_to_engine import EngineRecipe, Phases, build
from model_export.engine.profiles import (
    decoder_profiles,
    decoder_shapes,
    engine_name,
    fixed_sizes,
    longest_pass,
    merged,
    vision_profiles,
)
from model_export.errors import ExportError

PLUGIN = "model_export.plugin.tensorrt_plugin"  # imported late: it wants a GPU


def main(
    bundle: tyro.conf.Positional[Path],
    max_rows: Annotated[int | None, tyro.conf.arg(metavar="ROWS")] = None,
    timing_cache: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    refit: bool = False,
) -> int:
    """Builds engines of BUNDLE for this machine's GPU; returns the exit code.

    Args:
        bundle: policy bundle to put them into.
        max_rows: rows of the longest pass; fewer than the cache holds save memory and refuse long prompts.
        timing_cache: what earlier builds measured; read if it exists, and written.
        refit: let new weights be put into the engines later.
    """
    try:
        source = Bundle.load(bundle.resolve())
        rows = longest_pass(source.spec, max_rows)
        modules = libraries()
        device = gpu(modules.cuda)
        importlib.import_module(PLUGIN).register()
        engines = build_engines(source, modules, device, rows, timing_cache, refit=refit)
    except (BundleError, ExportError, RuntimeError) as error:  # RuntimeError: the plugin's refusals
        Console(stderr=True).print(f"[red]error:[/red] {error}", highlight=False)
        return 1
    except KeyboardInterrupt:
        Console(stderr=True).print("Stopped; the bundle is as it was.")
        return 130
    Console().print(
        f"{bundle}: {engines[0].precision} engines for {engines[0].runs_on()}, {size_mb(bundle):.1f} MB",
        highlight=False,
    )
    return 0


def build_engines(
    source: Bundle, modules: Libraries, device: Gpu, max_rows: int, timing_cache: Path | None, *, refit: bool
) -> list[Engine]:
    """Builds both engines and replaces the bundle by one that has them.

    Raises:
        BundleError: the result would not load.
        ExportError: TensorRT cannot build a graph.
    """
    if source.spec.precision == "int8":
        raise ExportError(
            f"{source.path} is in int8, which is for CPUs. Export the checkpoint in bf16 or fp8."
        )
    measured = timing_cache.read_bytes() if timing_cache is not None and timing_cache.is_file() else b""
    hidden = hidden_size(source.path / "decoder.onnx")
    tables = {"vision": vision_profiles(source.spec), "decoder": decoder_profiles(source.spec, max_rows)}
    engines = [
        describe(source, graph, profiles, device, modules.trt.__version__)
        for graph, profiles in tables.items()
    ]
    with new_bundle(source.path) as folder:
        kept = take_over(source, folder, engines)
        for engine in engines:
            shapes = [decoder_shapes(p, hidden) for p in engine.profiles] if engine.graph == "decoder" else []
            sizes = fixed_sizes(source.spec, engine.graph)
            recipe = EngineRecipe(source.path / f"{engine.graph}.onnx", sizes, shapes, refit)
            with _progress() as progress:
                built = build(modules.trt, recipe, measured, Phases(progress))
            (folder / engine.file).write_bytes(built.plan)
            measured = built.timing_cache
            if timing_cache is not None:  # after each graph: a later failure must not lose what was measured
                replace_file(timing_cache, measured)
        write_bundle(folder, source.spec, kept)
    return engines


def describe(source: Bundle, graph: str, profiles: tuple[Profile, ...], device: Gpu, tensorrt: str) -> Engine:
    """What policy.json will say about an engine."""
    version = short_version(tensorrt)
    return Engine(
        file=engine_name(graph, device.name, version),
        graph=graph,
        gpu=device.name,
        compute_capability=device.compute_capability,
        tensorrt=version,
        precision=source.spec.precision,
        onnx_sha256=graph_digest(source.files, graph),
        profiles=profiles,
    )


def take_over(source: Bundle, folder: Path, new: Iterable[Engine]) -> tuple[Engine, ...]:
    """Fills a new bundle's folder with the old one's files, engines that will be replaced apart.

    Returns:
        All engines of the new bundle.
    """
    engines = merged(source.engines, new)
    outdated = {engine.file for engine in source.engines} - {e.file for e in engines if e in source.engines}
    for name in source.files:
        if name not in outdated and name != FILE:
            _link(source.path / name, folder / name)
    return engines


def hidden_size(decoder: Path) -> int:
    """Width of the image features that a decoder graph takes."""
    proto = onnx.load(str(decoder), load_external_data=False)
    features = next(value for value in proto.graph.input if value.name == "features")
    return int(features.type.tensor_type.shape.dim[-1].dim_value)


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file so that it is never there in part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.new")
    scratch.write_bytes(content)
    os.replace(scratch, path)


def _link(source: Path, target: Path) -> None:
    """A second name for the same bytes: a bundle of gigabytes needs no second copy to be replaced."""
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, transient=True)
