"""The model against a peer: transformers' own SigLIP, PaliGemma and Gemma, with the same random weights."""

import json

import pytest
import torch

from model_export.sample import byte_tokenizer, random_config, random_model
from training.model.deepthinkvla import hybrid_mask
from training.model.hf_checkpoint import load_model, read_config, save_model

transformers = pytest.importorskip("transformers", reason="transformers needs Python 3.11 or newer")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint of ours, as saved."""
    raw = random_config(byte_tokenizer())
    raw["architectures"] = ["PaliGemmaForConditionalGeneration"]
    raw["hidden_size"] = raw["text_config"]["hidden_size"]
    raw["projection_dim"] = raw["text_config"]["hidden_size"]
    raw["text_config"]["model_type"] = "gemma"
    raw["text_config"]["hidden_activation"] = "gelu_pytorch_tanh"
    raw["vision_config"].update(
        model_type="siglip_vision_model",
        hidden_act="gelu_pytorch_tanh",
        vision_use_head=False,
        projection_dim=raw["text_config"]["hidden_size"],
    )
    path = tmp_path_factory.mktemp("checkpoint")
    save_model(random_model(raw, seed=5), path)
    return path


@pytest.fixture(scope="module")
def ours(folder):
    return load_model(folder)


@pytest.fixture(scope="module")
def theirs(folder):
    model = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


def test_transformers_loads_what_we_save(ours, theirs):
    found = theirs.model.language_model.embed_tokens.weight
    assert torch.equal(found, ours.decoder.embed_tokens.weight)


def test_we_load_what_transformers_saves(ours, theirs, folder, tmp_path):
    theirs.save_pretrained(tmp_path, safe_serialization=True)
    saved = json.loads((tmp_path / "config.json").read_text())
    original = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**original, **saved}))
    again = load_model(tmp_path)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in ours.state_dict().items())


def test_a_config_as_transformers_writes_it_needs_no_field_that_it_leaves_out(folder, tmp_path):
    """The published sizes through their classes; what equals a default may be missing in the file."""
    text = {"hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18, "vocab_size": 257216}
    text |= {"num_attention_heads": 8, "num_key_value_heads": 1, "model_type": "gemma"}
    vision = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "patch_size": 14}
    vision |= {"num_attention_heads": 16, "vision_use_head": False, "model_type": "siglip_vision_model"}
    theirs = transformers.PaliGemmaConfig(text_config=text, vision_config=vision)
    ours = json.loads((folder / "config.json").read_text())
    tokens = {key: value for key, value in ours.items() if "_token_" in key}
    raw = {**json.loads(theirs.to_json_string(use_diff=True)), **tokens}
    for section in ("text_config", "vision_config"):
        defaults = type(getattr(theirs, section))().to_dict()
        asked = text if section == "text_config" else vision
        raw[section] = {k: v for k, v in raw[section].items() if k in asked or defaults.get(k) != v}
    assert "image_size" not in raw["vision_config"]
    assert "head_dim" not in raw["text_config"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    config = read_config(tmp_path)
    assert config.vision.image_size == theirs.vision_config.image_size == 224
    assert config.text.head_dim == theirs.text_config.head_dim == 256
    assert config.layout.image_tokens == 256


@torch.no_grad()
def test_vision_tower_and_projector_agree(ours, theirs):
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    tokens = theirs.model.vision_tower(pixels).last_hidden_state
    torch.testing.assert_close(ours.vision_tower(pixels), tokens, atol=1e-5, rtol=1e-5)
    features = theirs.model.multi_modal_projector(tokens) / ours.config.text.hidden_size**0.5
    torch.testing.assert_close(ours.image_features(pixels), features, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("prefix", [1, 6])
def test_decoder_layers_agree_under_the_hybrid_mask(ours, theirs, prefix):
    size, start = 12, 9
    ids = torch.arange(20, 20 + size)[None]
    positions = torch.arange(1, size + 1)[None]
    mask = hybrid_mask(torch.tensor([prefix]), torch.tensor([start]), torch.tensor([size]), size)
    hidden = ours.hidden(ours.embed(ids, None), positions, mask)
    layers = theirs.model.language_model
    x = ours.embed(ids, None) * ours.config.text.hidden_size**0.5
    additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    rotary = layers.rotary_emb(x, position_ids=positions)
    for layer in layers.layers:
        out = layer(x, attention_mask=additive, position_ids=positions, position_embeddings=rotary)
        x = out[0] if isinstance(out, tuple) else out
    torch.testing.assert_close(hidden, layers.norm(x), atol=1e-4, rtol=1e-4)
