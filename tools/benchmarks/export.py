"""Our decision on a CPU against the same model in torch, decided the reference's way.

    make bench            # or: python -m tools.benchmarks.export

The reference generates the thought with a cache, token by token, then runs the whole sequence again for its
actions (its image features are not computed again here, which favours it). Ours is the policy bundle under
ONNX Runtime, in fp32 and int8, thinking plainly and with drafts. All ways get the same number of threads,
look at the same pictures in turn, and write the same words: thoughts that the shipped policy said in closed
loop, dictated, since the weights are random. Results, with their shares of the machine's memory bandwidth,
go to a table and to JSON.
"""

from __future__ import annotations

import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from dtvla.bringup.demo import fresh_folder
from dtvla.policy.backends.onnxruntime import OnnxRuntimeBackend
from dtvla.policy.bundle.loading import Bundle
from dtvla.policy.options import DecisionOptions
from dtvla.policy.policy import Policy
from dtvla.policy.stopwatch import Stopwatch
from dtvla.policy.token_layout import NEVER, Bounds
from dtvla.resources import default_bundle
from model_export.quantise.calibration import calibrate
from model_export.quantise.quantise_bundle import quantise_bundle
from model_export.sample import random_model
from tools.benchmarks.midsize import midsize_model, random_weights_bundle
from tools.benchmarks.thinking import DictatedSampler, RecordedObservation, enlarged, percentiles, record
from training.model.config import TextConfig
from training.model.deepthinkvla import DeepThinkVLA, hybrid_mask
from training.model.kv_cache_decoder import TorchBackend
from training.sft.models import small_config

REFERENCE = "torch, the reference's way"
CALIBRATION_LOOKS = 4  # the weights are random: any range will do
STREAM_BYTES = 400_000_000  # far beyond any cache
STEPS = 30
GOALS = {"fp32": 2.0, "int8": 3.0}  # how many times faster than the reference's way, at the middle size


@dataclass(frozen=True)
class ExportBench:
    """What to measure."""

    looks: int = 40  # recorded looks of the shipped policy; whole episodes are recorded
    small: bool = True  # the shipped policy's size as well
    output: Path = Path("runs/bench-export")  # where export.json goes (a folder per run is made in it)


@dataclass
class TimedVariant:
    """One way to decide. Latencies are [p50, p99] in ms."""

    name: str
    precision: str
    latency_ms: tuple[float, float]
    ratio: float  # how many times faster than the reference's way, by medians
    step_ms: float  # one thinking step of one row
    step_mb: float  # what it has to read: weights, heads, keys and values
    share: float  # of the memory bandwidth measured in this run


@dataclass
class TimedSize:
    """All ways with one model."""

    name: str
    parameters: int
    thought_tokens: float
    ways: list[TimedVariant] = field(default_factory=list)


def reference_decision(
    model: DeepThinkVLA,
    backend: TorchBackend,
    prompt: NDArray[np.int64],
    pixels: NDArray[np.float32],
    thought: NDArray[np.int64],
) -> torch.Tensor:
    """Action logits [slots, bins], the way the published code gets them.

    Args:
        model: in torch.
        backend: the same model with a cache, for the thought.
        prompt: its ids.
        pixels: normalised images.
        thought: dictated ids; each costs the step that would have chosen it.
    """
    layout, n = model.config.layout, len(prompt)
    features = backend.encode(pixels)
    backend.decode(prompt, Bounds(n, NEVER, n, 0), features=features, think_rows=(n - 1,))
    for t in range(len(thought) - 1):
        backend.decode(thought[t : t + 1], Bounds(n, NEVER, n + t + 1, n + t), think_rows=(0,))
    ids = torch.from_numpy(np.concatenate([prompt, thought, layout.action_block()[1:]]))[None]
    start, size = n + len(thought) - 1, ids.shape[1]
    mask = hybrid_mask(torch.tensor([n]), torch.tensor([start]), torch.tensor([size]), size)
    with torch.no_grad():
        embeds = model.embed(ids, torch.from_numpy(features)[None])
        hidden = model.hidden(embeds, torch.arange(1, size + 1)[None], mask)[0]
        return model.action_logits(hidden[start : start + layout.slots])


def measure(
    name: str, model: DeepThinkVLA, looks: list[RecordedObservation], scratch: Path, threads: int
) -> TimedSize:
    """Decides on every look in every way, one after the other."""
    small = Bundle.load(default_bundle())
    fp32 = random_weights_bundle(model, scratch / f"{name}-fp32", small)
    size = model.config.vision.image_size
    shown = [enlarged(observation, size) for observation in looks]
    ranges = calibrate(
        fp32, [(observation.images, observation.instruction) for observation in shown[:CALIBRATION_LOOKS]]
    )
    quantise_bundle(fp32, scratch / f"{name}-int8", ranges, "int8")
    bundles = {"fp32": fp32, "int8": scratch / f"{name}-int8"}
    policies: dict[tuple[str, str], tuple[Policy, DictatedSampler]] = {}
    for precision, path in bundles.items():
        bundle = Bundle.load(path)
        backend = OnnxRuntimeBackend(path, bundle.spec, threads)
        for way in ("plain", "drafts"):
            sampler = DictatedSampler(bundle.spec.layout)
            options = DecisionOptions(drafts=way == "drafts")
            policies[way, precision] = Policy(bundle, backend.sibling(), options, sampler), sampler
    torch_backend = TorchBackend(model, Bundle.load(fp32).spec.cache_length)
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in policies}
    reference: list[float] = []
    for observation in track(shown, f"{name} size"):
        for key, (policy, sampler) in policies.items():
            if observation.first:
                policy.reset()
            sampler.dictate(observation.thought.tolist())
            seconds[key].append(policy.decide(observation.images, observation.instruction).timings["total"])
        started = time.perf_counter()
        prompt, pixels = policies["plain", "fp32"][0].prepare(
            observation.images, observation.instruction, Stopwatch()
        )
        reference_decision(model, torch_backend, prompt, pixels, observation.thought)
        reference.append(time.perf_counter() - started)
    bandwidth = stream_bytes_per_s()
    result = TimedSize(
        name=name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        thought_tokens=round(float(np.mean([len(observation.thought) for observation in looks])), 1),
    )
    base = float(np.median(reference))
    n = model.config.layout.images * model.config.layout.image_tokens + 40

    def figures(
        name: str, precision: str, values: list[float], step: Callable[[Bounds], object]
    ) -> TimedVariant:
        step_s = _median_step(step, n)
        read = step_bytes(model.config.text, model.config.layout.bins, n, 1 if precision == "int8" else 4)
        return TimedVariant(
            name=name,
            precision=precision,
            latency_ms=percentiles([1e3 * value for value in values]),
            ratio=round(base / float(np.median(values)), 2),
            step_ms=round(1e3 * step_s, 3),
            step_mb=round(read / 1e6, 1),
            share=round(read / step_s / bandwidth, 3),
        )

    word = np.array([40], np.int64)
    result.ways.append(
        figures(REFERENCE, "fp32", reference, partial(torch_backend.decode, word, think_rows=(0,)))
    )
    for (kind, precision), values in seconds.items():
        step = partial(policies[kind, precision][0].backend.decode, word, think_rows=(0,))
        result.ways.append(figures(kind, precision, values, step))
    return result


def step_bytes(text: TextConfig, bins: int, visible: int, weight_bytes: int) -> int:
    """What one thinking step has to read: every weight once, the word head, all visible keys and values."""
    attention = text.hidden_size * text.head_dim * 2 * (text.heads + text.kv_heads)
    mlp = 3 * text.hidden_size * text.intermediate_size
    head = (text.vocab_size - bins) * text.hidden_size
    cache = 2 * text.layers * text.kv_heads * text.head_dim * visible * 4
    return (text.layers * (attention + mlp) + head) * weight_bytes + cache


def stream_bytes_per_s(repeats: int = 7) -> float:
    """Bytes per second that all threads of torch read from memory together, the best of several times."""
    block = torch.ones(STREAM_BYTES // 4)
    return max(STREAM_BYTES / seconds for seconds in _times(lambda: float(block.sum()), repeats))


def _times(run: Callable[[], object], repeats: int) -> Iterator[float]:
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        yield time.perf_counter() - started


def _median_step(step: Callable[[Bounds], object], n: int) -> float:
    bounds = Bounds(n, NEVER, n + 1, n)
    return float(np.median(list(_times(lambda: step(bounds), STEPS))))


def tables(sizes: list[TimedSize]) -> Iterator[Table]:
    """The figures for people."""
    for size in sizes:
        view = Table(
            box=box.SIMPLE_HEAD,
            padding=(0, 0, 0, 1),
            title=f"{size.name} size: {size.parameters / 1e6:.1f} M parameters, thoughts of "
            f"{size.thought_tokens:.0f} tokens",
            caption="Times: as fast as the first way. A step writes one word and reads the weights once; "
            "bandwidth: the share of what torch reads.",
        )
        for head in ("way", "precision", "p50", "p99", "times", "a step", "reads", "bandwidth"):
            view.add_column(head, justify="left" if head in ("way", "precision") else "right")
        for way in size.ways:
            view.add_row(
                way.name,
                way.precision,
                f"{way.latency_ms[0]:.0f} ms",
                f"{way.latency_ms[1]:.0f} ms",
                f"{way.ratio:.2f}",
                f"{way.step_ms:.2f} ms",
                f"{way.step_mb:.1f} MB",
                f"{way.share:.0%}",
            )
        yield view


def main(config: ExportBench) -> None:
    """Records looks, measures, prints and writes."""
    console = Console()
    threads = torch.get_num_threads()
    looks = record(default_bundle(), "embedded", config.looks, lambda words: console.print(f"  {words}"))
    looks = looks[: config.looks]
    sizes = []
    with tempfile.TemporaryDirectory() as scratch:
        shipped = Bundle.load(default_bundle())
        models = {"middle": midsize_model(shipped)}
        if config.small:
            layout = shipped.spec.layout
            raw = {**small_config(layout.action_begin), "prompt_end_token_id": list(layout.prompt_end)}
            models = {"shipped": random_model(raw, 0, scale=0.02), **models}
        for name, model in models.items():
            sizes.append(measure(name, model, looks, Path(scratch), threads))
    for table in tables(sizes):
        console.print(table)
    middle = sizes[-1].ways
    best = {
        p: max(way.ratio for way in middle if way.precision == p and way.name != REFERENCE) for p in GOALS
    }
    for precision, goal in GOALS.items():
        mark = "met" if best[precision] >= goal else "missed"
        console.print(
            f"{precision}: {best[precision]:.2f} times as fast, goal {goal:g}: {mark}", highlight=False
        )
    report = {
        "machine": f"{platform.platform()}, torch {torch.__version__}, {threads} threads for every way",
        "bandwidth_gb_s": round(stream_bytes_per_s() / 1e9, 1),
        "looks": len(looks),
        "sizes": [asdict(size) for size in sizes],
        "goals": {p: {"goal": GOALS[p], "reached": best[p]} for p in GOALS},
    }
    path = fresh_folder(config.output) / "export.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    console.print(f"Written to {path}")


if __name__ == "__main__":
    main(tyro.cli(ExportBench, description=__doc__))
