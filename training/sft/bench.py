"""Samples per second of supervised training beside transformers' Trainer: same weights, rows and losses.

    python -m training.sft.bench --data data/embedded

Trainer trains transformers' own PaliGemma, with the hybrid mask and every row before the whole head, as the
reference does; here it is `training.sft`. Both take the small policy without its convolutions (SigLIP
has none), the same rows in the same order, AdamW, float32, and both processor cores: as two threads of
one process, and as two processes (the first step of two processes under Trainer averages the means of both,
so its losses are compared in one).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from dtvla.evaluation.results import machine
from dtvla.policy.token_layout import SLOT
from training.common.commands import torchrun
from training.datasets.batches import Collator, TrainingRow
from training.datasets.tokenizer import train_tokenizer
from training.model.config import ModelConfig
from training.model.deepthinkvla import DeepThinkVLA, hybrid_mask
from training.model.hf_checkpoint import save_model
from training.sft.models import SMALL_PREFIX, initialise, small_config
from training.sft.settings import DataSettings, ModelSettings, OptimiserSettings, Sft
from training.sft.trainer import Trainer

Way = Literal["ours", "trainer"]
CHILD = "--child"  # how this measurement starts its own processes
FOUND = "found.json"  # what they leave
WARM_UP = 2  # steps that are not timed


@dataclass(frozen=True)
class SftBench:
    """What to measure."""

    data: Path = Path("data/embedded")  # of `python -m training.collect`
    steps: int = 8  # timed, of each way
    rounds: int = 2  # the ways take turns; the median of all steps counts
    batch: int = 32
    output: Path | None = None  # JSON of the figures


def settings(bench: SftBench, scratch: Path, processes: int) -> Sft:
    """The run that both make."""
    return Sft(
        out=scratch / "run",
        steps=1000,
        batch=bench.batch,
        thought_weight=1.0,
        threads=(os.cpu_count() or 1) // processes,
        model=ModelSettings(init=str(scratch / "checkpoint"), onednn=True),
        data=DataSettings(bench.data, augmentation="none", hold_out=0),
        optimiser=OptimiserSettings("adamw", 3e-4, weight_decay=0.0, warmup=0, final_share=1.0),
    )


def write_checkpoint(folder: Path) -> None:
    """The small policy without its convolutions, with fresh weights, in a form that both load."""
    tokenizer = train_tokenizer(SMALL_PREFIX)
    raw = small_config(tokenizer.get_vocab_size())
    raw["prompt_end_token_id"] = tokenizer.encode(";\n", add_special_tokens=False).ids
    width = raw["text_config"]["hidden_size"]
    raw |= {"architectures": ["PaliGemmaForConditionalGeneration"], "hidden_size": width}
    raw["projection_dim"] = width
    raw["text_config"]["hidden_activation"] = "gelu_pytorch_tanh"
    del raw["vision_config"]["stem_channels"]
    raw["vision_config"] |= {"hidden_act": "gelu_pytorch_tanh", "vision_use_head": False}
    raw["vision_config"]["projection_dim"] = width
    torch.manual_seed(0)
    model = DeepThinkVLA(ModelConfig.from_hf(raw))
    initialise(model, 0)
    save_model(model, folder)
    tokenizer.save(str(folder / "tokenizer.json"))


class Theirs(nn.Module):
    """transformers' PaliGemma as the reference trains it: hybrid mask, empty slots."""

    def __init__(self, folder: Path, collator: Collator) -> None:
        super().__init__()
        from transformers import PaliGemmaForConditionalGeneration

        self.model = PaliGemmaForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa"
        )
        self.layout = collator.layout
        self.losses: list[float] = []
        self.ends: list[float] = []

    def forward(
        self, pixels: Tensor, ids: Tensor, targets: Tensor, prefix_len: Tensor, action_start: Tensor,
        length: Tensor,
    ) -> dict[str, Tensor]:  # fmt: skip
        """The mean loss over supervised tokens."""
        self.ends.append(time.perf_counter())
        model = self.model.model
        table = model.language_model.embed_tokens.weight
        width = table.shape[1]
        features = model.multi_modal_projector(model.vision_tower(pixels).last_hidden_state)
        features = features.reshape(len(ids), -1, width) / width**0.5
        x = torch.nn.functional.embedding(ids.clamp_min(0), table)
        x = x * (ids != SLOT).unsqueeze(-1)
        x = x.masked_scatter((ids == self.layout.image).unsqueeze(-1), features)
        size = ids.shape[1]
        mask = hybrid_mask(prefix_len, action_start, length, size)
        additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        hidden = model.language_model(
            inputs_embeds=x * width**0.5,
            attention_mask=additive,
            position_ids=torch.arange(1, size + 1)[None],
            use_cache=False,
        ).last_hidden_state
        logits = self.model.lm_head(hidden).float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        self.losses.append(float(loss.detach()))
        return {"loss": loss}


class Rows(torch.utils.data.IterableDataset[Any]):
    """The rows of our run in its order."""

    def __init__(self, trainer: Trainer, steps: int) -> None:
        self._trainer, self._steps = trainer, steps

    def __iter__(self) -> Iterator[TrainingRow]:
        for step in range(self._steps):
            yield from self._trainer.source.take(step, self._trainer.config.batch)[0]


def ours(config: Sft, steps: int) -> tuple[list[float], list[float]]:
    """Losses of all steps and seconds of the timed ones, in this process."""
    trainer = Trainer(config)
    losses, seconds = [], []
    for _ in range(steps + WARM_UP):
        began = time.perf_counter()
        losses.append(trainer.advance().loss)
        seconds.append(time.perf_counter() - began)
    return losses, seconds[WARM_UP:]


def theirs(config: Sft, steps: int) -> tuple[list[float], list[float]]:
    """The same of transformers' Trainer; a step lasts from one forward pass to the next."""
    import transformers

    world = int(os.environ.get("WORLD_SIZE", "1"))
    source = Trainer(config)  # for its rows and its collator only
    model = Theirs(Path(config.model.init), source.collator)
    count = steps + WARM_UP + 1
    arguments = transformers.TrainingArguments(
        output_dir=str(config.out / "theirs"),
        per_device_train_batch_size=config.batch // world,
        max_steps=count,
        learning_rate=config.optimiser.lr,
        lr_scheduler_type="constant",
        adam_beta1=config.optimiser.betas[0],
        adam_beta2=config.optimiser.betas[1],
        adam_epsilon=config.optimiser.eps,
        max_grad_norm=config.optimiser.clip,
        weight_decay=0.0,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        remove_unused_columns=False,
        accelerator_config={"dispatch_batches": False, "split_batches": False},
    )
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=Rows(source, count * world),
        data_collator=lambda rows: vars(source.collator.batch(rows)),
    )
    trainer.train()
    return model.losses[: steps + WARM_UP], np.diff(model.ends)[WARM_UP:].tolist()


def child(way: Way, scratch: Path, bench: SftBench) -> None:
    """One way in this process, or in this process of several; the first one writes what it found."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    torch.set_num_threads((os.cpu_count() or 1) // world)
    found = (ours if way == "ours" else theirs)(settings(bench, scratch, world), bench.steps)
    if os.environ.get("RANK", "0") == "0":
        (scratch / FOUND).write_text(json.dumps(found))


def _measure(bench: SftBench, scratch: Path, way: Way, processes: int) -> tuple[list[float], list[float]]:
    command = ["-m", "training.sft.bench", CHILD, way, str(scratch), str(bench.data)]
    command += [str(bench.steps), str(bench.batch)]
    if processes > 1:
        command = [*torchrun(processes), *command]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{way} failed: {done.stderr[-2000:]}")
    losses, seconds = json.loads((scratch / FOUND).read_text())
    return losses, seconds


def measure(bench: SftBench, console: Console) -> dict[str, Any]:
    """All ways in turn: samples per second of each, and how far the losses are apart."""
    ways: list[tuple[Way, int]] = [("trainer", 1), ("ours", 1), ("trainer", 2), ("ours", 2)]
    seconds: dict[tuple[Way, int], list[float]] = {way: [] for way in ways}
    losses: dict[tuple[Way, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, console.status("measuring") as status:
        write_checkpoint(Path(folder) / "checkpoint")
        for turn in range(bench.rounds):
            for way in ways:
                status.update(f"round {turn + 1} of {bench.rounds}: {way[0]}, {way[1]} process(es)")
                losses[way], took = _measure(bench, Path(folder), *way)
                seconds[way] += took
    speed = {way: bench.batch / float(np.median(took)) for way, took in seconds.items()}
    apart = [abs(a / b - 1) for a, b in zip(losses["ours", 1], losses["trainer", 1], strict=True)]
    return {
        "machine": machine(),
        "samples_per_s": {f"{name}, {n} process(es)": speed[name, n] for name, n in ways},
        "times_as_fast": max(speed["ours", n] for n in (1, 2)) / max(speed["trainer", n] for n in (1, 2)),
        "first_loss": losses["ours", 1][0],
        "first_losses_apart": apart[0],
        "losses_apart": max(apart),
    }


def main(bench: SftBench) -> int:
    """Measures and prints; returns the exit code."""
    console = Console(highlight=False)
    found = measure(bench, console)
    table = Table("training the small policy, float32", "samples/s")
    for name, speed in found["samples_per_s"].items():
        table.add_row(name, f"{speed:.1f}")
    console.print(table)
    console.print(
        f"{found['times_as_fast']:.2f} times as fast as transformers' Trainer, each at its best; losses of "
        f"the same steps are {found['first_losses_apart']:.0e} (first) to {found['losses_apart']:.0e} apart."
    )
    if bench.output is not None:
        add_figures(bench.output, "sft", found)
    return 0


def add_figures(path: Path, name: str, figures: dict[str, Any]) -> None:
    """Puts figures into a JSON file, under a name, beside those that are there."""
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | {name: figures}, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        way, scratch, data, steps, batch = sys.argv[2:]
        bench = SftBench(Path(data), int(steps), batch=int(batch))
        child("ours" if way == "ours" else "trainer", Path(scratch), bench)
        sys.exit()
    sys.exit(main(tyro.cli(SftBench, description=__doc__)))
