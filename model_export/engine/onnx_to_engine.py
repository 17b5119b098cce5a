"""One TensorRT engine from one ONNX graph.

The network is strongly typed: every tensor has the type that the ONNX file gives it, so the precision of an
engine is that of the export (TensorRT 11 knows no other kind). The attention nodes become the plugin of
`model_export.plugin`, whose kernels end up in the engine as PTX: no Python at run time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from rich.progress import Progress, TaskID

from model_export.engine.profiles import Shape, fix_sizes
from model_export.errors import ExportError
from model_export.onnx.hybrid_attention import DOMAIN


@dataclass(frozen=True)
class EngineRecipe:
    """What to build.

    Attributes:
        onnx: the graph's file.
        sizes: dynamic dimensions that become constants.
        shapes: for every profile, the smallest, usual and largest shape of each dynamic input.
        refit: let new weights of the same shapes be put into the engine later, as after more training,
            without timing kernels again. It costs the fusions that work weights into each other. (TensorRT's
            REFIT_IDENTICAL would cost nothing, but takes back only the weights of this very export: it
            serves engines that are shipped without weights.)
    """

    onnx: Path
    sizes: Mapping[str, int]
    shapes: Sequence[Mapping[str, tuple[Shape, Shape, Shape]]]
    refit: bool = False


@dataclass(frozen=True)
class Built:
    """An engine, and what was learnt about kernels on the way."""

    plan: bytes
    timing_cache: bytes


@dataclass
class Phases:
    """TensorRT's phases as bars: a phase may have phases inside, and is gone when it is done."""

    progress: Progress
    tasks: dict[str, TaskID] = field(default_factory=dict)
    depth: dict[str, int] = field(default_factory=dict)
    cancelled: bool = False

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins."""
        self.depth[name] = self.depth.get(parent, -1) + 1 if parent else 0
        self.tasks[name] = self.progress.add_task("  " * self.depth[name] + name, total=steps)

    def step(self, name: str, step: int) -> bool:
        """A step is done; False asks TensorRT to give up (Ctrl-C)."""
        try:
            self.progress.update(self.tasks[name], completed=step + 1)
        except KeyboardInterrupt:
            self.cancelled = True
        return not self.cancelled

    def finish(self, name: str) -> None:
        """A phase is over."""
        self.progress.remove_task(self.tasks.pop(name))


def build(trt: Any, recipe: EngineRecipe, timing_cache: bytes, phases: Phases) -> Built:
    """Builds an engine for the GPU of this machine.

    Args:
        trt: the module `tensorrt`; the attention plugin is registered.
        recipe: what to build.
        timing_cache: of an earlier build on the same kind of GPU, or empty.
        phases: shows how far it is.

    Raises:
        ExportError: TensorRT cannot parse or build the graph; its own words are in the sentence or above it.
        KeyboardInterrupt: Ctrl-C while building.
    """
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt))
    _parse(trt, network, logger, recipe)
    config = builder.create_builder_config()
    # float32 graphs are there to compute what torch computes; TF32 products would change words.
    config.clear_flag(trt.BuilderFlag.TF32)
    if recipe.refit:
        config.set_flag(trt.BuilderFlag.REFIT)
    for shapes in recipe.shapes:
        profile = builder.create_optimization_profile()
        for name, (low, usual, high) in shapes.items():
            profile.set_shape(name, low, usual, high)
        if config.add_optimization_profile(profile) < 0:
            raise ExportError(
                f"TensorRT refuses an optimisation profile of {recipe.onnx.name}: {dict(shapes)}."
            )
    cache = config.create_timing_cache(timing_cache)
    # One of another GPU or version is not taken over; TensorRT says so and times everything itself.
    config.set_timing_cache(cache, ignore_mismatch=False)
    config.progress_monitor = _monitor(trt, phases)
    plan = builder.build_serialized_network(network, config)
    if phases.cancelled:
        raise KeyboardInterrupt
    if plan is None:
        raise ExportError(
            f"TensorRT {trt.__version__} cannot build {recipe.onnx.name}; its reason stands above in the log."
        )
    learnt = config.get_timing_cache()
    return Built(bytes(plan), bytes(learnt.serialize()) if learnt is not None else timing_cache)


def _network_flags(trt: Any) -> int:
    """Strongly typed, with kernels of Python plugins compiled now: they may not need Python at run time."""
    kinds = trt.NetworkDefinitionCreationFlag
    return int(1 << int(kinds.STRONGLY_TYPED) | 1 << int(kinds.PREFER_AOT_PYTHON_PLUGINS))


def _parse(trt: Any, network: Any, logger: Any, recipe: EngineRecipe) -> None:
    # Weights beside the file stay there: TensorRT reads them itself, relative to `path`.
    proto = onnx.load(str(recipe.onnx), load_external_data=False)
    fix_sizes(proto, recipe.sizes)
    parser = trt.OnnxParser(network, logger)
    # Without it the parser would take the operator's body in standard ops, which is in the file too.
    parser.set_flag(trt.OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE)
    if not parser.parse(proto.SerializeToString(), path=str(recipe.onnx)):
        errors = "; ".join(str(parser.get_error(index).desc()) for index in range(parser.num_errors))
        raise ExportError(f"TensorRT {trt.__version__} cannot parse {recipe.onnx}: {errors}")
    wanted = sum(node.domain == DOMAIN for node in proto.graph.node)
    layers = (network.get_layer(index) for index in range(network.num_layers))
    found = sum(layer.type == trt.LayerType.PLUGIN_V3 for layer in layers)
    if found != wanted:
        raise ExportError(
            f"{recipe.onnx.name} has {wanted} attention nodes, but TensorRT took the plugin for {found} of "
            "them. Check that the nodes name it (plugin_namespace, plugin_version)."
        )


def _monitor(trt: Any, phases: Phases) -> Any:
    """TensorRT's progress interface in front of `phases`; a class of a module that may not be there."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return phases.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

    return Monitor()
