"""What compares and shows trainings: the bench beside transformers' Trainer, the ablation, curves."""

import json

import numpy as np
import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from dtvla.policy.action_tokenizer import ActionTokenizer, Normaliser
from training.ablation import AblationRow as AblationRow
from training.ablation import _named, draw, table
from training.curves import draw as draw_curves
from training.curves import read
from training.datasets.batches import Collator
from training.datasets.recorded_frames import RecordedRow
from training.model.hf_checkpoint import load_model, read_config, read_tokenizer
from training.sft.bench import Theirs, add_figures, write_checkpoint
from training.sft.losses import compute_losses
from training.sft.models import SMALL_PREFIX

pytest.importorskip("transformers", reason="transformers needs Python 3.11 or newer")
THOUGHT = "The can is 1 cm left, 2 cm forward, 3 cm below. Next: move above it."
TASK = "Pick up the can and place it in the basket"


def test_their_model_has_our_loss_and_our_gradient(tmp_path):
    write_checkpoint(tmp_path)
    layout = read_config(tmp_path).layout
    codec = ActionTokenizer(layout.bins, layout.action_begin, 1)
    normaliser = Normaliser(np.full(7, -1.0), np.full(7, 1.0), np.arange(7) < 6)
    collator = Collator(read_tokenizer(tmp_path, layout), layout, codec, normaliser, SMALL_PREFIX)
    rng = np.random.default_rng(0)
    rows = [
        RecordedRow(
            rng.integers(0, 255, (2, 96, 96, 3), np.uint8), rng.uniform(-1, 1, (10, 7)), thought, TASK
        )
        for thought in (THOUGHT, "Next: lift it.")
    ]
    batch = collator.batch(rows)
    theirs, ours = Theirs(tmp_path, collator), load_model(tmp_path)
    said = theirs(**vars(batch))["loss"]
    meant = compute_losses(ours, batch, thought_weight=1.0).loss
    assert float(said.detach()) == pytest.approx(float(meant.detach()), rel=1e-6)
    said.backward()
    meant.backward()
    gradient = theirs.model.model.language_model.layers[0].self_attn.q_proj.weight.grad
    expected = ours.decoder.layers[0].self_attn.q_proj.weight.grad
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)


def test_figures_stand_beside_those_that_were_there(tmp_path):
    path = tmp_path / "figures.json"
    add_figures(path, "a", {"x": 1})
    add_figures(path, "b", {"y": 2})
    add_figures(path, "a", {"x": 3})
    assert json.loads(path.read_text()) == {"a": {"x": 3}, "b": {"y": 2}}


def test_the_ablation_writes_a_table_and_a_picture(tmp_path):
    rows = [
        AblationRow("hybrid", "hybrid", 3, 4, (0.30, 0.95), {"embedded": "3 of 4"}, {}),
        AblationRow("no thought", "none", 0, 4, (0.0, 0.49), {"embedded": "0 of 4"}, {}),
    ]
    lines = table(rows, ("embedded",)).splitlines()
    assert lines[2] == "| hybrid | its own thought | 3 of 4 (75 %) | 30 to 95 % | 3 of 4 |"
    draw(tmp_path / "picture.png", rows, "solved")
    assert (tmp_path / "picture.png").stat().st_size > 5_000


def test_curves_are_read_from_a_run_and_a_folder_without_any_is_named(tmp_path):
    with SummaryWriter(str(tmp_path / "run")) as writer:
        for step in (1, 2):
            writer.add_scalar("rl/success", step / 4, step)
            writer.add_scalar("train/thought", 1 / step, step)
    found = read(tmp_path / "run")
    assert found["rl/success"] == ([1, 2], [0.25, 0.5])
    draw_curves({"one": found, "other": found}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5_000
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no scalars"):
        read(tmp_path / "empty")


def test_another_policy_of_the_ablation_needs_a_name():
    assert _named("rl=runs/best") == ("rl", "runs/best")
    with pytest.raises(ValueError, match="NAME=CHECKPOINT"):
        _named("runs/best")
