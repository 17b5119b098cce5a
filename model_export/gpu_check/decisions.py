"""Latency of every stage of a decision, computed in several ways beside each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from model_export.gpu_check import fp8
from model_export.gpu_check.ceilings import Ceilings
from model_export.gpu_check.device import TimedDevice, Unavailable, first_line
from model_export.gpu_check.model import (
    ModelStage,
    Sizes,
    StageCost,
    prompt_length,
    stage_work,
    stages,
    vision_work,
)
from model_export.plugin.op import hybrid_attention
from training.model.deepthinkvla import DeepThinkVLA
from training.model.kv_cache_decoder import CachedDecoder

VISION = "vision"


@dataclass(frozen=True)
class Implementation:
    """How the same model is computed."""

    name: str
    kernel: bool = False  # our attention, or torch's under a mask tensor
    compiled: bool = False
    graph: bool = False
    fp8: bool = False


# The weights are replaced for the ways with eight-bit ones, so those come last.
IMPLEMENTATIONS = (
    Implementation("torch eager"),
    Implementation("torch eager, CUDA graph", graph=True),
    Implementation("torch.compile", compiled=True),
    Implementation("torch.compile, CUDA graph", compiled=True, graph=True),
    Implementation("kernel", kernel=True),
    Implementation("kernel, CUDA graph", kernel=True, graph=True),
    Implementation("kernel, torch.compile, CUDA graph", kernel=True, compiled=True, graph=True),
    Implementation("kernel, fp8 weights, CUDA graph", kernel=True, graph=True, fp8=True),
    Implementation(
        "kernel, fp8 weights, torch.compile, CUDA graph", kernel=True, compiled=True, graph=True, fp8=True
    ),
)
QUICK_IMPLEMENTATIONS = tuple(way for way in IMPLEMENTATIONS if not way.compiled)  # compiling takes minutes


@dataclass(frozen=True)
class StageResult:
    """One stage in one way; `ms` is None where it could not run."""

    way: str
    stage: str
    rows: int
    ms: float | None
    floor_ms: float  # of this machine's measured ceilings
    gigabytes: float
    gflop: float
    difference: float | None = None  # of logits from plain torch, in standard deviations of plain torch's
    note: str = ""

    @property
    def share(self) -> float | None:
        """Floor over time: 1 is the machine's limit."""
        return None if self.ms is None else self.floor_ms / self.ms

    def row(self) -> dict[str, object]:
        return {**asdict(self), "share": self.share}


def measure(
    device: TimedDevice,
    model: DeepThinkVLA,
    sizes: Sizes,
    ceilings: Ceilings,
    ways: Sequence[Implementation] = IMPLEMENTATIONS,
) -> Iterator[StageResult]:
    """Every stage in every way; the ways with eight-bit weights change the model."""
    images = model.config.layout.images
    side = model.config.vision.image_size
    dtype = model.decoder.embed_tokens.weight.dtype
    pixels = torch.rand(images, 3, side, side, device=device.torch, dtype=dtype) * 2 - 1
    with torch.no_grad():
        features = model.image_features(pixels).flatten(0, 1)[None]
    # Work is counted before the weights change.
    work = {stage.name: stage_work(model, stage) for stage in stages(model.config, sizes, device.torch)}
    small = {name: stage_work(model, s, weight_bytes=1) for name, s in _named(model, sizes, device).items()}
    seeing = vision_work(model)
    plain: dict[str, Tensor] = {}
    eight_bit_head: fp8.Fp8Linear | None = None
    for way in ways:
        try:
            if way.fp8 and eight_bit_head is None:
                fp8.require(device.capability)
                eight_bit_head = fp8.quantise_decoder(model)
        except Unavailable as error:
            for name, stage in _named(model, sizes, device).items():
                yield _missing(way, name, stage.rows, small[name], ceilings, str(error))
            continue
        attention = hybrid_attention if way.kernel else None
        decoder = CachedDecoder(model, 1, sizes.cache, attention)
        calls: dict[str, tuple[Callable[[], Tensor], int, StageCost]] = {
            VISION: (lambda: model.image_features(pixels), images * model.config.vision.tokens, seeing)
        }
        for name, stage in _named(model, sizes, device).items():
            one = _Pass(decoder, stage, features, eight_bit_head if way.fp8 else None)
            calls[name] = (one, stage.rows, small[name] if way.fp8 else work[name])
        for name, (call, rows, needs) in calls.items():
            yield _time(device, way, name, call, rows, needs, ceilings, plain)


def _named(model: DeepThinkVLA, sizes: Sizes, device: TimedDevice) -> dict[str, ModelStage]:
    return {stage.name: stage for stage in stages(model.config, sizes, device.torch)}


class _Pass:
    """One decoder pass on fixed tensors, as a call without arguments that returns its logits."""

    def __init__(
        self, decoder: CachedDecoder, stage: ModelStage, features: Tensor, head: fp8.Fp8Linear | None
    ) -> None:
        self._decoder, self._stage, self._head = decoder, stage, head
        self._bounds = torch.tensor([stage.bounds], device=stage.ids.device)
        self._features = features if stage.images else None

    def __call__(self) -> Tensor:
        model, stage = self._decoder.model, self._stage
        hidden = self._decoder.run(stage.ids, self._bounds, self._features)
        said, acted = (hidden[0, first:last] for first, last in (stage.think_rows, stage.act_rows))
        parts = []
        if len(said):
            parts.append((self._head(said) if self._head else model.logits(said)).flatten())
        if len(acted):
            parts.append(model.action_logits(acted).flatten())
        return torch.cat(parts)


def _time(
    device: TimedDevice,
    way: Implementation,
    name: str,
    call: Callable[[], Tensor],
    rows: int,
    work: StageCost,
    ceilings: Ceilings,
    plain: dict[str, Tensor],
) -> StageResult:
    """Times a call; `plain` holds the logits of the first way, which the others are compared with."""
    try:
        if way.compiled:
            torch.compiler.reset()  # every stage is one more graph of the same code, and those are limited
            call = _compiled(call)
        with torch.no_grad():
            out = call().float()
            expected = plain.setdefault(name, out)
            difference = float((out - expected).abs().max() / expected.std())
            ms = device.milliseconds(device.graph(call) if way.graph else call)
    except Exception as error:  # a compiler, a capture or memory: the other rows of the table still count
        return _missing(way, name, rows, work, ceilings, first_line(error))
    return StageResult(
        way.name,
        name,
        rows,
        ms,
        ceilings.floor_ms(work.moved, work.flops),
        work.moved / 1e9,
        work.flops / 1e9,
        difference,
    )


def _compiled(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The call through torch.compile, which wants a function."""

    def body() -> Tensor:
        return call()

    return torch.compile(body, dynamic=False)


def _missing(
    way: Implementation, name: str, rows: int, work: StageCost, ceilings: Ceilings, why: str
) -> StageResult:
    floor = ceilings.floor_ms(work.moved, work.flops)
    note = f"not available: {why}"
    return StageResult(way.name, name, rows, None, floor, work.moved / 1e9, work.flops / 1e9, note=note)


@dataclass(frozen=True)
class DecisionLatency:
    """Sums of stage medians for one way, in milliseconds; None where a stage could not run."""

    way: str
    no_thought_ms: float | None
    thought_ms: float | None
    verified_ms: float | None


def decisions(results: Sequence[StageResult], sizes: Sizes) -> list[DecisionLatency]:
    """What whole decisions take: without a thought, thought token by token, and with a draft verified."""
    found = []
    for way in dict.fromkeys(result.way for result in results):
        ms = {result.stage: result.ms for result in results if result.way == way}

        def total(weights: dict[str, int], ms: dict[str, float | None] = ms) -> float | None:
            times = [(ms.get(stage), count) for stage, count in weights.items()]
            return None if any(t is None for t, _ in times) else sum(t * n for t, n in times if t is not None)

        start = {VISION: 1, "prefill": 1, "action": 1}
        # The prefill gives the first token; `<action>`, the last, is computed in the action block.
        tokens = sizes.thought - 1
        found.append(
            DecisionLatency(
                way, total(start), total({**start, "think": tokens}), total({VISION: 1, "verify": 1})
            )
        )
    return found


def describe(model: DeepThinkVLA, sizes: Sizes) -> dict[str, object]:
    """What was measured, for the report."""
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": str(model.decoder.embed_tokens.weight.dtype).removeprefix("torch."),
        "prompt": prompt_length(model.config, sizes),
        **asdict(sizes),
        "weights": "random",
    }
