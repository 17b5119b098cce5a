"""Golden data of the reference implementation, in torch and through the exported graphs."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from training.check_golden import check_folder
from training.golden.report import GAP, LOGITS, Report
from training.golden.sets import GoldenError, find_sets, load_set
from training.golden.whole import check_action_batch, check_sft

FOLDER = Path(os.environ.get("DTVLA_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))
SETS = find_sets(FOLDER) if FOLDER.is_dir() else []
needs_golden = pytest.mark.skipif(not SETS, reason=f"no golden data at {FOLDER} (set DTVLA_GOLDEN)")


@needs_golden
@pytest.mark.timeout(900)  # half a minute on a free core, several on a busy machine
@pytest.mark.parametrize("backend", ["torch", "bundle"])
@pytest.mark.parametrize("path", SETS, ids=lambda path: path.name)
def test_every_case_agrees_with_the_reference(path, backend):
    report = check_folder(path, backend)
    assert not report.failed
    assert len(report.rows) > (150 if backend == "torch" else 30)


@needs_golden
def test_a_wrong_weight_is_noticed(tmp_path):
    """The check must be able to fail: one weight off by a little."""
    import shutil

    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(SETS[0], tmp_path / "broken", copy_function=shutil.copyfile)
    copy.chmod(0o755)
    tensors = load_file(copy / "model.safetensors")
    tensors["language_model.model.layers.1.self_attn.o_proj.weight"][0] += 0.05
    save_file(tensors, copy / "model.safetensors")
    report, golden = Report(), load_set(copy)
    check_action_batch(golden, "c1_free_1img", report.of(copy.name, "c1_free_1img"))
    check_sft(golden, "c11_sft_single", report.of(copy.name, "c11_sft_single"))
    failed = {row.what for row in report.failed}
    assert {"action logits", "loss", "loss per token"} <= failed
    assert not {"mask", "positions", "sorted ids"} & failed


@needs_golden
def test_our_training_loss_is_the_references_without_its_pads():
    """`training.sft` with equal weights computes the loss the reference computes for samples alone."""
    from training.data import Batch
    from training.passes import supervised
    from training.sft import compute_losses

    golden = load_set(SETS[0])
    case = golden.case("c10_sft_batch3")
    ids, labels = case.ids("input_ids"), case.ids("labels")
    prompt = ((case.ids("token_type_ids") == 0) & (case.ids("attention_mask") == 1)).sum(1)
    rows = supervised(ids, labels, prompt, golden.layout)
    targets = torch.full_like(labels, -100)
    targets[:, :-1] = labels[:, 1:]
    batch = Batch(
        golden.pixels("c10_sft_batch3"), rows.ids, targets, rows.prefix_len, rows.action_start, rows.length
    )
    loss = compute_losses(golden.model, batch, thought_weight=1.0).loss
    assert float(loss.detach()) == pytest.approx(float(case["loss_pad_free"]), rel=1e-5)


def test_a_folder_without_sets_is_refused(tmp_path):
    with pytest.raises(GoldenError, match="holds no golden set"):
        check_folder(tmp_path)


def test_the_report_marks_what_is_out_of_tolerance():
    out = Report().of("set", "case")
    out.close("near", [1.0], [1.0 + LOGITS / 2], LOGITS)
    out.close("far", [1.0], [1.1], LOGITS)
    out.close("shape", [1.0, 2.0], [1.0], LOGITS)
    out.close("nan", [np.nan], [1.0], LOGITS)
    out.same_ids("unclear", [1, 2], [1, 3], [1.0, GAP / 2])
    out.same_ids("clear", [1, 2], [1, 3], [1.0, 1.0])
    out.miss("unknown")
    assert [row.what.split(" ")[0].rstrip(":") for row in out.report.failed] == [
        "far", "shape", "nan", "clear", "unknown",
    ]  # fmt: skip
