"""Checkpoints: every form that is out there loads, everything that is wrong is named."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from model_export.sample import byte_tokenizer, random_config, random_model, random_spec
from training.model.config import ModelConfig
from training.model.deepthinkvla import DeepThinkVLA
from training.model.hf_checkpoint import (
    CheckpointError,
    canonical_name,
    load_model,
    load_policy,
    read_config,
    resolve,
    save_model,
)
from training.release import Release, halved, release

EMBEDDING = "language_model.model.embed_tokens.weight"
STATS = {"q01": [-0.5] * 7, "q99": [0.5] * 7}


@pytest.fixture(scope="module")
def model():
    return random_model(random_config(byte_tokenizer()), seed=3)


@pytest.fixture
def folder(model, tmp_path):
    """A published-style checkpoint: config, weights, tokenizer, norm_stats.json, no policy.json."""
    save_model(model, tmp_path)
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "norm_stats.json").write_text(json.dumps({"action": STATS}))
    return tmp_path


def same(a: DeepThinkVLA, b: DeepThinkVLA) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def rename(folder: Path, change) -> None:
    """Rewrites the weights under other names (and drops those that become None)."""
    tensors = load_file(folder / "model.safetensors")
    save_file({change(k): v for k, v in tensors.items() if change(k)}, folder / "model.safetensors")


def newer(name: str) -> str:
    """Names in the state dict of transformers 4.52 to 4.57."""
    return "model." + name.replace("language_model.model.", "language_model.")


def newest(name: str) -> str:
    """Names in the state dict of transformers 5."""
    return newer(name).replace("vision_tower.vision_model.", "vision_tower.")


def test_what_is_saved_loads_again_bit_for_bit(model, folder):
    assert same(load_model(folder), model)


def test_shards_load_like_one_file(model, tmp_path):
    save_model(model, tmp_path, max_shard_bytes=50_000)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    assert same(load_model(tmp_path), model)


def test_saving_again_leaves_no_stale_shards(model, tmp_path):
    save_model(model, tmp_path, max_shard_bytes=50_000)
    save_model(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("form", [newer, newest])
def test_key_names_of_later_transformers_releases_load(model, folder, form):
    rename(folder, form)
    assert same(load_model(folder), model)


def test_every_known_name_maps_to_itself_and_back(model):
    for name in model.state_dict():
        assert canonical_name(name) == canonical_name(newer(name)) == canonical_name(newest(name)) == name


@pytest.mark.parametrize("head", ["lm_head.weight", "language_model.lm_head.weight"])
def test_a_stored_head_must_be_the_embedding(model, folder, head):
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, head: tensors[EMBEDDING].clone()}, folder / "model.safetensors")
    assert same(load_model(folder), model)
    save_file({**tensors, head: tensors[EMBEDDING] + 1}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"{re.escape(head)} differs"):
        load_model(folder)


def test_half_precision_weights_are_widened_exactly(model, folder):
    tensors = {k: v.bfloat16() for k, v in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    loaded = load_model(folder)
    assert all(torch.equal(v, tensors[k].float()) for k, v in loaded.state_dict().items())


def test_a_released_checkpoint_is_half_as_large_and_otherwise_the_same(folder, tmp_path):
    out = tmp_path / "released"
    release(Release(str(folder), out))
    small, whole = load_policy(out), load_policy(folder)
    weights = whole.model.state_dict()
    assert all(torch.equal(v, weights[k].half().float()) for k, v in small.model.state_dict().items())
    assert json.dumps(small.spec.to_json()) == json.dumps(load_policy(out).spec.to_json())
    assert small.spec.normaliser.to_stats() == whole.spec.normaliser.to_stats()
    assert {v.dtype for v in load_file(out / "model.safetensors").values()} == {torch.float16}


def test_a_released_checkpoint_brings_the_typical_thoughts_of_episodes(folder, tmp_path):
    episodes = tmp_path / "episodes"
    episodes.mkdir()
    np.savez(episodes / "a_1.npz", thoughts=np.array(["go to the can.", "", "lift it."]))
    release(Release(str(folder), tmp_path / "released", episodes))
    assert set(load_policy(tmp_path / "released").spec.typical_thoughts) == {"go to the can.", "lift it."}


def test_weights_that_half_precision_cannot_hold_are_named():
    with pytest.raises(CheckpointError, match=r"a\.weight holds numbers that float16"):
        halved({"a.weight": torch.tensor([1.0, 7e4])})


def test_a_missing_tensor_is_named(folder):
    rename(folder, lambda name: None if name.endswith("layers.1.mlp.up_proj.weight") else name)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight is missing"):
        load_model(folder)


def test_an_extra_tensor_is_named(folder):
    rename(folder, lambda name: name)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "adapter.weight": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"adapter\.weight is not part"):
        load_model(folder)


def test_a_wrongly_shaped_tensor_is_named_with_both_shapes(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["multi_modal_projector.linear.bias"] = torch.zeros(5)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"linear\.bias has the shape \[5\].* asks for \[32\]"):
        load_model(folder)


def test_a_truncated_file_is_named(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        load_model(folder)


def test_a_missing_shard_is_named(model, tmp_path):
    save_model(model, tmp_path, max_shard_bytes=50_000)
    (tmp_path / "model-00002-of-00003.safetensors").unlink(missing_ok=True)
    missing = next(iter(sorted(tmp_path.glob("model-*"))))
    missing.unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=r"model-\d+-of-\d+\.safetensors is missing"):
        load_model(tmp_path)


def edit_config(folder: Path, change) -> None:
    raw = json.loads((folder / "config.json").read_text())
    change(raw)
    (folder / "config.json").write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c.update(model_type="llava"), "model_type 'llava'"),
        (lambda c: c.pop("action_token_begin_idx"), "action_token_begin_idx"),
        (lambda c: c["text_config"].pop("head_dim") and c["text_config"].pop("hidden_size"), "hidden_size"),
        (lambda c: c["text_config"].update(attention_bias=True), "attention_bias is True"),
        (lambda c: c["vision_config"].update(vision_use_head=True), "vision_use_head is True"),
        (lambda c: c["vision_config"].update(hidden_act="relu"), "activation 'relu'"),
        (lambda c: c.update(tie_word_embeddings=False), "tie_word_embeddings is False"),
        (lambda c: c["text_config"].update(model_type="gemma2"), "text_config.model_type is 'gemma2'"),
        (lambda c: c["vision_config"].update(model_type="clip_vision_model"), "vision_config.model_type"),
        (lambda c: c["vision_config"].update(num_channels=4), "num_channels is 4"),
        (lambda c: c["text_config"].update(rope_scaling={"type": "linear", "factor": 2.0}), "rope_scaling"),
        (lambda c: c["text_config"].update(rope_parameters={"rope_type": "yarn"}), "rope_type is 'yarn'"),
        (lambda c: c.update(text_config=None), "text_config must hold a JSON object"),
        (lambda c: c.update(vision_config=[]), "vision_config must hold a JSON object"),
        (lambda c: c["text_config"].update(hidden_size="32"), "text_config.hidden_size must be a whole"),
        (lambda c: c["text_config"].update(num_hidden_layers=0), "num_hidden_layers must be 1 or more"),
        (lambda c: c["text_config"].update(num_key_value_heads=3), "multiple of num_key_value_heads"),
        (lambda c: c["text_config"].update(head_dim=15), "head_dim must be even"),
        (lambda c: c["vision_config"].update(num_attention_heads=3), "multiple of num_attention_heads"),
        (lambda c: c.update(action_token_end_idx=9999), "action_token_end_idx is 9999"),
        (lambda c: c.update(action_token_begin_idx=-5), "action_token_begin_idx is -5"),
        (lambda c: c.update(action_token_begin_idx=None), "lacks the field 'action_token_begin_idx'"),
        (lambda c: c.update(action_token_end_idx=c["action_token_begin_idx"]), "are 1 ids"),
        (lambda c: c.update(prompt_end_token_id=5), "prompt_end_token_id must hold two"),
        (lambda c: c.update(action_horizon=0), "action_horizon must be 1 or more"),
    ],
)
def test_a_config_of_another_family_is_refused_by_field(folder, change, sentence):
    edit_config(folder, change)
    with pytest.raises(CheckpointError, match=sentence):
        load_model(folder)


def test_fields_that_transformers_leaves_out_have_its_defaults(folder):
    """`save_pretrained` omits what equals the default: the published config.json names no image size."""

    def strip(config):
        del config["vision_config"]["image_size"], config["text_config"]["head_dim"]
        config.update(pad_token_id=None, eos_token_id=None, bos_token_id=None)

    edit_config(folder, strip)
    config = read_config(folder)
    assert (config.vision.image_size, config.text.head_dim) == (224, 256)
    assert (config.layout.pad, config.layout.eos, config.layout.bos) == (0, 1, 2)


def test_a_tensor_of_integers_is_named(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["multi_modal_projector.linear.bias"] = torch.zeros(32, dtype=torch.int32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"linear\.bias holds torch\.int32"):
        load_model(folder)


def test_the_rotary_base_is_found_where_transformers_5_puts_it(folder):
    def move(config):
        config["text_config"]["rope_parameters"] = {"rope_theta": 500.0, "rope_type": "default"}

    edit_config(folder, move)
    assert read_config(folder).text.rope_theta == 500.0


def test_a_published_checkpoint_becomes_a_policy_with_the_references_defaults(folder):
    policy = load_policy(folder)
    assert policy.spec.decode_shift == 0
    assert policy.spec.execute_steps == 10
    assert policy.spec.thought_cap == 2048
    assert policy.spec.normaliser.mask.tolist() == [True] * 6 + [False]


def test_our_own_policy_json_is_read_and_must_fit_the_config(model, folder):
    spec = random_spec(model.config.layout, 28)
    (folder / "policy.json").write_text(json.dumps(spec.to_json()))
    assert load_policy(folder).spec.execute_steps == 5
    edit_config(folder, lambda config: config.update(action_horizon=5))
    with pytest.raises(CheckpointError, match="layout differs"):
        load_policy(folder)


@pytest.mark.parametrize(
    ("stats", "sentence"),
    [
        ({}, "the field action is missing"),
        ({"action": {"q01": [0.0] * 7}}, r"action\.q99 is missing"),
        ({"action": {"q99": [0.0] * 7}}, r"action\.q01 is missing"),
        ({"action": {"q01": [0.5] * 7, "q99": [0.5] * 7}}, "q99 is not above q01 in dimension 0"),
        ({"action": {**STATS, "q99": [0.5] * 6 + [-0.5]}}, "q99 is not above q01 in dimension 6"),
        ({"action": {**STATS, "mask": [False] * 7}}, "action.mask is false for every dimension"),
    ],
)
def test_norm_stats_that_cannot_be_used_are_refused(folder, stats, sentence):
    (folder / "norm_stats.json").write_text(json.dumps(stats))
    with pytest.raises(CheckpointError, match=sentence):
        load_policy(folder)


def test_a_checkpoint_without_norm_stats_is_refused(folder):
    (folder / "norm_stats.json").unlink()
    with pytest.raises(CheckpointError, match=r"no norm_stats\.json"):
        load_policy(folder)


def test_a_tokenizer_with_other_special_ids_is_refused_by_token(folder):
    edit_config(folder, lambda config: config.update(think_start_token_index=20))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: .*<think>"):
        load_policy(folder)


def test_a_hub_id_without_network_is_a_sentence(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match=r"owner/never-published cannot|owner/never-published is not"):
        resolve("owner/never-published")


def test_a_path_that_does_not_exist_is_a_sentence(tmp_path):
    with pytest.raises(CheckpointError, match="neither a checkpoint folder nor a hub id"):
        resolve(tmp_path / "a" / "b")


def test_the_published_architecture_has_its_published_number_of_parameters():
    """SigLIP-So400m/14 at 224, projector, Gemma 2B with 257,216 ids: 2.92 billion, as PaliGemma."""
    raw = {
        **random_config(byte_tokenizer()),
        "action_token_begin_idx": 254976,
        "action_token_end_idx": 257023,
        "vision_config": {
            "image_size": 224,
            "patch_size": 14,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
        },
        "text_config": {
            "vocab_size": 257216,
            "hidden_size": 2048,
            "intermediate_size": 16384,
            "num_hidden_layers": 18,
            "num_attention_heads": 8,
            "num_key_value_heads": 1,
            "head_dim": 256,
        },
    }
    with torch.device("meta"):
        model = DeepThinkVLA(ModelConfig.from_hf(raw))
    vision = sum(p.numel() for p in model.vision_tower.parameters())
    text = sum(p.numel() for p in model.language_model.parameters())
    projector = sum(p.numel() for p in model.multi_modal_projector.parameters())
    assert vision == 412_442_352
    assert projector == 1152 * 2048 + 2048
    assert text == 2_508_662_784
    assert vision + text + projector == 2_923_466_480
    assert model.config.layout.image_tokens == 256
