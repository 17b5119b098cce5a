"""Supervised runs: equal however they are split, interrupted or spread over processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict

from dtvla.policy.action_tokenizer import ActionTokenizer, Normaliser
from dtvla.policy.decoding import act_one_by_one, prefill
from dtvla.policy.prompt import prompt_ids
from dtvla.policy.token_layout import NEVER, Bounds
from training.collect import save_episode
from training.common.parallel import layers
from training.common.run_checkpoints import Checkpoints, TrainingError
from training.common.settings import SettingsError, configs, load, parse
from training.datasets.augment import augment
from training.datasets.batches import Changes, Collator
from training.datasets.paraphrases import SENTENCES, in_other_words
from training.datasets.recorded_frames import DatasetError, RecordedRow
from training.model.deepthinkvla import hybrid_mask
from training.model.hf_checkpoint import load_policy
from training.model.kv_cache_decoder import TorchBackend
from training.model.lora import add_adapters, merged_weights
from training.model.onednn import OneDnnLinear
from training.sft.__main__ import run
from training.sft.losses import compute_losses
from training.sft.models import SMALL_PREFIX, make_trainable_model
from training.sft.optimisers import factor, freeze
from training.sft.settings import DataSettings, ModelSettings, OptimiserSettings, Sft

THOUGHT = "The can is 1 cm left, 2 cm forward, 3 cm below. Next: move above it."
TASK = "Pick up the can and place it in the basket"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tiny episodes in the recorder's format; one of them is held out."""
    folder = tmp_path_factory.mktemp("episodes")
    rng = np.random.default_rng(0)
    for seed in (100_000, 100_001, 100_002):
        frames = np.arange(0, 30, 3)
        arrays = {
            "frames": frames.astype(np.int32),
            "images": rng.integers(0, 255, (len(frames), 2, 96, 96, 3), np.uint8),
            "actions": rng.uniform(-1, 1, (30, 7)).astype(np.float32),
            "thoughts": np.array([THOUGHT, "The can is in the gripper."] * 5),
            "instruction": np.array(TASK),
        }
        save_episode(folder / f"can_{seed}.npz", arrays)
    return folder


def settings(data: Path, out: Path, **changes: Any) -> Sft:
    """A run of a few seconds."""
    common = Sft(
        out=out,
        steps=4,
        batch=4,
        threads=1,
        log_every=1,
        save_every=2,
        data=DataSettings(data, hold_out=4),
        optimiser=OptimiserSettings(warmup=2),
    )
    return replace(common, **changes)


def weights(out: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(out / "last" / "model.safetensors")
    return found


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole")
    run(settings(data, out))
    return out


def command(data: Path, out: Path, *more: str) -> list[str]:
    given = ["--out", str(out), "--data.folder", str(data), "--data.hold-out", "4", "--optimiser.warmup", "2"]
    given += ["--batch", "4", "--threads", "1", "--log-every", "1", "--save-every", "2", "--steps", "4"]
    return ["-m", "training.sft", *given, *more]


def test_a_run_cut_in_two_ends_with_the_same_weights(data: Path, whole: Path, tmp_path: Path) -> None:
    run(settings(data, tmp_path, stop_after=2))
    assert run(settings(data, tmp_path)).step == 4
    assert furthest(weights(whole), weights(tmp_path)) < 1e-6


def test_a_killed_run_goes_on_from_its_last_whole_checkpoint(data: Path, whole: Path, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, *command(data, tmp_path)], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "last").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (tmp_path / "step_000099.part").mkdir()  # what a kill in the middle of a checkpoint leaves
    run(settings(data, tmp_path))
    assert furthest(weights(whole), weights(tmp_path)) < 1e-6
    assert not list(tmp_path.glob("*.part"))


def test_micro_batches_add_up_to_the_step(data: Path, whole: Path, tmp_path: Path) -> None:
    run(settings(data, tmp_path, micro_batch=1))
    assert furthest(weights(whole), weights(tmp_path)) < 2e-5


def test_two_processes_take_the_steps_of_one(data: Path, tmp_path: Path) -> None:
    """Replicated, and sharded by FSDP2; one process then goes on with what two have written."""
    # A large eps: else gradients that are 0 but for rounding would make steps of full length.
    adamw = OptimiserSettings("adamw", 1e-3, warmup=2, eps=1e-3)
    alone = settings(data, tmp_path / "one", optimiser=adamw)
    run(alone)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    line = [*launcher, str(Path(__file__).parent / "two_processes.py"), str(data), str(tmp_path)]
    places = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=300, env=places)
    assert done.returncode == 0, done.stderr[-2000:]
    for parallel in ("replicate", "shard"):
        assert furthest(weights(tmp_path / "one"), weights(tmp_path / parallel)) < 1e-5
    assert run(replace(alone, out=tmp_path / "shard", steps=5)).step == 5


def test_a_checkpoint_is_complete_for_the_export(whole: Path) -> None:
    model, spec, tokenizer = load_policy(whole / "last")
    assert spec.prompt_prefix == SMALL_PREFIX
    assert spec.provenance["step"] == 4
    assert tokenizer.get_vocab_size() == model.config.layout.action_begin
    assert (whole / "best").resolve() == (whole / "last").resolve()


def test_a_full_disk_costs_only_the_new_checkpoint(data: Path, whole: Path, tmp_path: Path) -> None:
    run(settings(data, tmp_path, stop_after=2))
    limit = "ulimit -f 2000; exec "  # files of 2 MB at most; the weights need 12
    line = limit + " ".join([sys.executable, *command(data, tmp_path)])
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    said = " ".join(done.stderr.split())
    assert done.returncode == 1, said
    assert "checkpoint of step 4 cannot be written" in said
    assert "step_000002" in said
    assert "Traceback" not in said
    run(settings(data, tmp_path))
    assert furthest(weights(whole), weights(tmp_path)) < 1e-6


def test_a_checkpoint_of_another_model_is_refused(data: Path, whole: Path) -> None:
    other = settings(data, whole, steps=6)
    with pytest.raises(TrainingError, match="does not fit this run"):
        run(replace(other, optimiser=replace(other.optimiser, kind="adamw")))


def test_checkpoints_keep_the_newest_and_the_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3, 4, 5):
        made = checkpoints.save(step, lambda folder: (folder / "file").write_text("whole") and None)
        if step == 2:
            checkpoints.mark_best(made)
    assert [path.name for path in checkpoints.steps()] == ["step_000002", "step_000004", "step_000005"]
    assert checkpoints.best() == (tmp_path / "step_000002").resolve()


def _collator(changes: Changes | None = None, *, one_by_one: bool = False) -> tuple[Collator, Any]:
    learner = make_trainable_model(ModelSettings(), 0)
    layout = learner.model.config.layout
    codec = ActionTokenizer(layout.bins, layout.action_begin, 1)
    normaliser = Normaliser(np.full(7, -1.0), np.full(7, 1.0), np.arange(7) < 6)
    arguments = learner.tokenizer, layout, codec, normaliser, SMALL_PREFIX, changes
    return Collator(*arguments, one_by_one=one_by_one), learner


ROW = RecordedRow(np.zeros((2, 96, 96, 3), np.uint8), np.zeros((10, 7), np.float32), THOUGHT, TASK)


def test_a_dropped_thought_takes_the_thinking_prompt_with_it() -> None:
    collator, learner = _collator(Changes(thought_dropout=1.0))
    layout = learner.model.config.layout
    batch = collator.batch([ROW], [np.random.default_rng(0)])
    n = int(batch.prefix_len[0])
    assert batch.ids[0, :n].tolist() == prompt_ids(learner.tokenizer, layout, TASK, "").tolist()
    assert batch.ids[0, n : n + 3].tolist() == [layout.think, layout.end_think, layout.action]
    assert int(batch.action_start[0]) == n + 2


def test_the_baseline_learns_the_very_rows_that_it_decides_with_one_by_one() -> None:
    collator, learner = _collator(one_by_one=True)
    model, layout = learner.model.eval(), learner.model.config.layout
    batch = collator.batch([ROW])
    prompt, thought = int(batch.prefix_len[0]), int((batch.ids[0] == layout.action).nonzero()[-1]) + 1
    backend = TorchBackend(model, learner.cache_length)
    with torch.no_grad():
        features = model.image_features(batch.pixels).flatten(0, 1).numpy()
        prefill(backend, batch.ids[0, :prompt].numpy(), features)
        said = batch.ids[0, prompt:thought].numpy()
        backend.decode(said[:-1], Bounds(prompt, NEVER, thought - 1, prompt))
        logits = act_one_by_one(backend, layout, prompt, said)
        taught = torch.from_numpy(logits.argmax(-1)) + layout.action_begin
        batch.ids[0, thought : thought + layout.slots] = taught
        rows = torch.zeros_like(batch.ids, dtype=torch.bool)
        rows[0, thought - 1 : thought - 1 + layout.slots] = True
        size = batch.ids.shape[1]
        mask = hybrid_mask(batch.prefix_len, batch.action_start, batch.length, size)
        learned = model(batch.ids, batch.pixels, torch.arange(1, size + 1)[None], mask, rows)
    learned = learned[:, layout.action_begin : layout.action_end + 1].numpy()
    np.testing.assert_allclose(learned, logits, atol=2e-5)


def test_a_run_says_how_its_policy_decides() -> None:
    assert Sft().decoding == "hybrid"
    assert Sft(actions="one_by_one").decoding == "autoregressive"
    assert Sft(data=DataSettings(thought_dropout=1.0)).decoding == "none"
    with pytest.raises(ValueError, match="two baselines"):
        Sft(actions="one_by_one", data=DataSettings(thought_dropout=1.0))


def test_other_words_say_the_same_task_and_leave_other_tasks_alone() -> None:
    rng = np.random.default_rng(0)
    heard = {in_other_words("Pick up the red block and place it on the tray", rng) for _ in range(99)}
    assert len(heard) == len(SENTENCES)
    assert all("red block" in words and "tray" in words.lower() for words in heard)
    assert in_other_words("open the drawer", rng) == "open the drawer"


def test_a_thought_with_a_tag_in_it_is_refused() -> None:
    collator, _ = _collator()
    with pytest.raises(DatasetError, match="tag"):
        collator.batch([replace(ROW, thought="look <think> here")])


@pytest.mark.parametrize("kind", ["none", "shift", "reference"])
def test_augmented_pictures_are_pictures_and_repeat_with_their_seed(kind: Any) -> None:
    images = np.random.default_rng(1).integers(0, 255, (2, 32, 32, 3), np.uint8)
    one, other = (augment(images, kind, np.random.default_rng(5)) for _ in range(2))
    assert (one == other).all()
    assert 0 <= one.min() <= one.max() <= 255
    assert ((one[1] == images[1]).all()) == (kind != "shift"), (
        "the reference leaves the wrist's picture alone"
    )


def test_the_reference_crop_keeps_the_middle_where_it_is() -> None:
    image = np.zeros((2, 64, 64, 3), np.uint8)
    image[:, 28:36, 28:36] = 200
    out = np.mean([augment(image, "reference", np.random.default_rng(i))[0] for i in range(80)], 0).sum(-1)
    rows, columns = np.indices(out.shape)
    middle = np.array([(rows * out).sum(), (columns * out).sum()]) / out.sum()
    assert np.abs(middle - 31.5).max() < 0.7


def test_adapters_begin_at_the_model_and_leave_no_trace(data: Path, tmp_path: Path) -> None:
    lora = settings(
        data, tmp_path, model=ModelSettings(lora_rank=2), optimiser=OptimiserSettings("adamw", 1e-2)
    )
    trainer = run(lora)
    start = make_trainable_model(ModelSettings(), lora.seed).model
    names = {name for name, _ in trainer.model.named_parameters() if "lora_" in name}
    assert len(names) == 2 * 7 * start.config.text.layers
    model = load_policy(tmp_path / "last").model.train()
    batch = _collator()[0].batch([ROW])
    with torch.no_grad():
        acting = compute_losses(trainer.model, batch, 1.0).loss
        merged = compute_losses(model, batch, 1.0).loss
        before = compute_losses(start, batch, 1.0).loss
    assert float(acting) == pytest.approx(float(merged), rel=1e-5)
    assert float(before) != pytest.approx(float(merged), rel=1e-3)
    assert torch.equal(model.decoder.embed_tokens.weight, start.decoder.embed_tokens.weight)
    fresh = make_trainable_model(ModelSettings(), lora.seed).model
    add_adapters(fresh.decoder, 2, 16.0, 1)
    assert furthest(merged_weights(dict(fresh.state_dict()), 8.0), dict(start.state_dict())) == 0


def test_onednn_multiplies_as_torch_does_and_keeps_the_names() -> None:
    found = []
    for flag in (False, True):
        model = make_trainable_model(ModelSettings(onednn=flag), 3).model
        loss = compute_losses(
            model, _collator()[0].batch([ROW, replace(ROW, thought="Next: lift it.")]), 5.0
        ).loss
        loss.backward()
        found.append((float(loss.detach()), {name: p.grad for name, p in model.named_parameters()}))
    (loss, gradients), (other, others) = found
    assert loss == pytest.approx(other, rel=1e-6)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=1e-6)
    assert any(type(module) is OneDnnLinear for module in model.modules())


def test_rows_that_are_not_asked_for_change_nothing_behind_them() -> None:
    collator, learner = _collator()
    model = learner.model.eval()
    batch = collator.batch([ROW, replace(ROW, thought="Next: lift it.", instruction="Pick up the can")])
    size, first = batch.ids.shape[1], int(batch.prefix_len.min()) - 1
    mask = hybrid_mask(batch.prefix_len, batch.action_start, batch.length, size)
    with torch.no_grad():
        features = model.image_features(batch.pixels).reshape(2, -1, model.config.text.hidden_size)
        embeds, positions = model.embed(batch.ids, features), torch.arange(1, size + 1)[None]
        whole = model.hidden(embeds, positions, mask)
        parts = [model.hidden(embeds, positions, mask, rows) for rows in (first, first + 20)]
    torch.testing.assert_close(parts[0], whole[:, first:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts[1], whole[:, first + 20 :], rtol=1e-4, atol=1e-5)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for flag in (False, True):
        model = make_trainable_model(ModelSettings(gradient_checkpointing=flag), 3).model
        compute_losses(model, _collator()[0].batch([ROW]), 5.0).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert furthest(gradients[0], gradients[1]) < 1e-6
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def _note(calls: list[nn.Module], module: nn.Module, *_: object) -> None:
    calls.append(module)


def test_gradient_checkpointing_computes_each_layer_twice_and_leaves_all_names_alone() -> None:
    names = []
    for flag, passes in ((False, 1), (True, 2)):
        model = make_trainable_model(ModelSettings(gradient_checkpointing=flag), 3).model
        calls: list[nn.Module] = []
        for layer in layers(model):
            layer.mlp.register_forward_pre_hook(partial(_note, calls))
        compute_losses(model, _collator()[0].batch([ROW]), 5.0).loss.backward()
        assert {calls.count(layer.mlp) for layer in layers(model)} == {passes}
        names.append(([name for name, _ in model.named_parameters()], list(get_model_state_dict(model))))
    assert names[0] == names[1]


def test_a_part_with_learning_rate_0_stays_as_it_is() -> None:
    model = make_trainable_model(ModelSettings(), 0).model
    freeze(OptimiserSettings("adamw", 1e-3, vision_lr=0.0, projector_lr=1e-4), model)
    assert not any(p.requires_grad for p in model.vision_tower.parameters())
    assert all(p.requires_grad for p in model.multi_modal_projector.parameters())
    with pytest.raises(ValueError, match="nothing would be trained"):
        freeze(OptimiserSettings("adamw", 0.0), model)


def test_the_schedule_is_the_references() -> None:
    """sft/sft_trainer.py: 1/1001 at step 0, 1 at step 1000, the cosine's middle half-way, 0.1 at the end."""
    published = OptimiserSettings("adamw", warmup=1000, final_share=0.1)
    found = [factor(published, step, 150_005) for step in (0, 500, 1000, 75_502, 150_005)]
    assert found == pytest.approx([1 / 1001, 1 / 1001 + (1000 / 1001) / 2, 1.0, 0.55, 0.1], abs=1e-5)


def test_every_configuration_that_ships_can_be_read() -> None:
    known = [name for name in configs() if not name.startswith("rl")]
    assert {"tiny", "base", "deepthinkvla-2.9b"} <= set(known)
    for name in known:
        assert load(Sft, name).steps > 1000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stepz = 3", "unknown key 'stepz'. Did you mean 'steps'?"),
        ("[model]\ninnit = 'tiny'", "unknown key 'model.innit'. Did you mean 'model.init'?"),
        ("steps = 'many'", "steps must be of type int, not 'many'"),
        ("steps = 0", "steps is 0; it must be 1 or more"),
        ("[data]\nthought_dropout = 1.5", "thought_dropout is 1.5; it is a share"),
        ("parallel = 'both'", "choose one of replicate, shard"),
        ("parallel = 'shard'", "muon needs whole ones"),
        ("steps == 3", "is not TOML"),
    ],
)
def test_a_wrong_configuration_is_refused_by_file_and_key(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as error:
        load(Sft, path)
    assert said in str(error.value)
    assert str(path) in str(error.value)


def test_the_command_refuses_an_unknown_configuration_in_a_sentence() -> None:
    with pytest.raises(SystemExit, match="There is no configuration 'huge'"):
        parse(Sft, "", ["--config", "huge"])


def test_options_change_what_the_configuration_says() -> None:
    config = parse(Sft, "", ["--config", "tiny", "--steps", "7", "--data.other-words", "0.5"])
    assert (config.steps, config.data.other_words, config.batch) == (7, 0.5, load(Sft, "tiny").batch)
