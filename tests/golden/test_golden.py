"""Golden data of the reference implementation, in torch and through the exported graphs."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dtvla.policy.action_tokenizer import ActionTokenizer
from model_export.sample import byte_tokenizer, random_config
from training.check_golden import _Guarded, check_folder
from training.conformance.arithmetic import check_codec
from training.conformance.golden_sets import Arrays, GoldenError, find_sets, load_set, visible
from training.conformance.report import GAP, LOGITS, ConformanceReport
from training.conformance.whole_sequences import check_action_batch, check_sft
from training.model.config import ModelConfig

FOLDER = Path(os.environ.get("DTVLA_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))
SETS = find_sets(FOLDER) if FOLDER.is_dir() else []
needs_golden = pytest.mark.skipif(
    not SETS, reason=f"no golden data at {FOLDER}; DTVLA_GOLDEN names another folder"
)


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
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(SETS[0], tmp_path / "broken", copy_function=shutil.copyfile)
    copy.chmod(0o755)
    tensors = load_file(copy / "model.safetensors")
    tensors["language_model.model.layers.1.self_attn.o_proj.weight"][0] += 0.05
    save_file(tensors, copy / "model.safetensors")
    report, golden = ConformanceReport(), load_set(copy)
    check_action_batch(golden, "c1_free_1img", report.of(copy.name, "c1_free_1img"))
    check_sft(golden, "c11_sft_single", report.of(copy.name, "c11_sft_single"))
    failed = {row.what for row in report.failed}
    assert {"action logits", "loss", "loss per token"} <= failed
    assert not {"mask", "positions", "sorted ids"} & failed


@needs_golden
def test_our_training_loss_is_the_references_without_its_pads():
    """`training.sft` with equal weights computes the loss the reference computes for samples alone."""
    from training.datasets.batches import TrainingBatch
    from training.model.sequence_forward import supervised
    from training.sft.losses import compute_losses

    golden = load_set(SETS[0])
    case = golden.case("c10_sft_batch3")
    ids, labels = case.ids("input_ids"), case.ids("labels")
    prompt = ((case.ids("token_type_ids") == 0) & (case.ids("attention_mask") == 1)).sum(1)
    rows = supervised(ids, labels, prompt, golden.layout)
    targets = torch.full_like(labels, -100)
    targets[:, :-1] = labels[:, 1:]
    batch = TrainingBatch(
        golden.pixels("c10_sft_batch3"), rows.ids, targets, rows.prefix_len, rows.action_start, rows.length
    )
    loss = compute_losses(golden.model, batch, thought_weight=1.0).loss
    assert float(loss.detach()) == pytest.approx(float(case["loss_pad_free"]), rel=1e-5)


def test_a_folder_without_sets_is_refused(tmp_path):
    with pytest.raises(GoldenError, match="holds no golden set"):
        check_folder(tmp_path)


def test_the_report_marks_what_is_out_of_tolerance():
    out = ConformanceReport().of("set", "case")
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


@needs_golden
def test_a_case_that_is_missing_or_reshaped_is_noticed_by_the_index(tmp_path):
    """Without the list a set that lost a case would pass with fewer comparisons."""
    copy = shutil.copytree(SETS[0], tmp_path / "short", copy_function=shutil.copyfile)
    copy.chmod(0o755)
    with np.load(copy / "golden.npz") as data:
        arrays = {name: data[name] for name in data.files if not name.startswith("c3_masked")}
    arrays["c4_given__action_start_idx"] = arrays["c4_given__action_start_idx"][None]
    np.savez(copy / "golden.npz", **arrays)
    found = list(load_set(copy).contradictions())
    assert any(line.startswith("c3_masked__action_logits: ") for line in found)
    assert any(line.startswith("c4_given__action_start_idx: ") for line in found)
    assert not list(load_set(SETS[0]).contradictions())


def test_a_set_that_cannot_be_read_is_a_miss_beside_the_others(tmp_path):
    for name in ("a", "deeper/b"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "a" / "codec.npz").write_bytes(b"PK")  # golden.npz is missing
    (tmp_path / "deeper/b" / "golden.npz").write_bytes(b"PK\x03\x04 cut")
    report = check_folder(tmp_path)
    assert [(row.set, row.passed) for row in report.rows] == [("a", False), ("b", False)]
    assert all("golden.npz cannot be read" in row.what for row in report.rows)


def test_an_unforeseen_form_is_a_miss_of_its_case():
    report = ConformanceReport()
    with _Guarded(report.of("set", "case")):
        torch.zeros(2) + torch.zeros(3)
    assert "RuntimeError" in report.failed[0].what


def test_a_mask_value_that_neither_shows_nor_hides_is_refused():
    lowest = np.finfo(np.float32).min
    assert visible(np.array([0, lowest], np.float32)).tolist() == [True, False]
    with pytest.raises(GoldenError, match="neither shows nor hides"):
        visible(np.array([0, -1], np.float32))


def test_narrow_statistics_are_compared_in_the_references_float32():
    """Rounding 0.9 to float32 moves a span of 1e-3 by more than the tolerance."""
    layout = ModelConfig.from_hf(random_config(byte_tokenizer())).layout
    codec = ActionTokenizer(layout.bins, layout.action_begin)
    q01, q99 = np.full(7, 0.9), np.array([0.901] * 5 + [0.9, 1.0])
    mask = np.array([True] * 6 + [False])
    raw = np.linspace(0.8999, 0.9011, 70, dtype=np.float32).reshape(10, 7)
    raw[:3, 5] = 0.9
    low, high = torch.tensor(q01, dtype=torch.float32), torch.tensor(q99, dtype=torch.float32)
    scaled = (2 * (torch.from_numpy(raw) - low) / (high - low + 1e-8) - 1).clamp(-1, 1).numpy()
    scaled[:, 6] = raw[:, 6]
    values = codec.decode(codec.encode(scaled))
    back = 0.5 * (values + 1) * (high.double() - low.double() + 1e-8).numpy() + low.double().numpy()
    back[:, 6] = values[:, 6]
    arrays = {
        "bins_f32": codec.edges, "centers_f64": codec.centres,
        "enc_actions": scaled, "enc_bins": codec.bin_of(scaled), "enc_token_ids": codec.encode(scaled),
        "enc_decoded_f32": values, "q01": q01, "q99": q99, "action_mask": mask, "raw_actions": raw,
        "normalized": scaled, "tokenised": codec.encode(scaled), "model_normalized_f64": values,
        "unnormalized_f64": back, "gripper_binarized": np.sign(back[:, 6]),
    }  # fmt: skip
    report = ConformanceReport()
    check_codec(Arrays(arrays, set()), layout, report.of("set", "codec"))
    assert not report.failed
