"""Batches in torch: no sample depends on its neighbours, and the cache changes nothing."""

import numpy as np
import pytest
import torch

from dtvla.policy import decoding
from dtvla.policy.decoding import Sampler
from dtvla.policy.draft_lookup import Drafts
from dtvla.policy.speculative_decoding import ThoughtLimits, ThoughtWriter
from dtvla.policy.token_layout import SLOT
from model_export.sample import byte_tokenizer, random_config, random_model
from training.model import sequence_forward
from training.model.kv_cache_decoder import TorchBackend, decide_batch

CAP = 6


@pytest.fixture(scope="module")
def model():
    return random_model(random_config(byte_tokenizer()), seed=1)


def prompts(model):
    layout, rng = model.config.layout, np.random.default_rng(0)
    images = [layout.image] * (layout.images * layout.image_tokens)
    return [
        np.array([*images, layout.bos, *rng.integers(20, 200, n), *layout.prompt_end]) for n in (3, 17, 9)
    ]


def pixels(count):
    return torch.randn(2 * count, 3, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("close", [True, False])
def test_batched_decisions_equal_single_ones(model, close):
    rows, images = prompts(model), pixels(3)
    thoughts, logits = decide_batch(model, rows, images, CAP, close=close)
    for b, row in enumerate(rows):
        backend = TorchBackend(model, 200)
        layout, features = model.config.layout, backend.encode(images[2 * b : 2 * b + 2].numpy())
        writer = ThoughtWriter(layout, Sampler(layout), ThoughtLimits(CAP), Drafts(), 1.0, row, features)
        alone = np.array(writer.write(backend))
        np.testing.assert_array_equal(thoughts[b], alone)
        single = decoding.act(backend, model.config.layout, len(row), alone, close=close)
        np.testing.assert_allclose(logits[b].numpy(), single, atol=1e-4)


def test_one_pass_over_a_padded_batch_equals_each_sample_alone(model):
    layout = model.config.layout
    rows = [np.append(row, [layout.think, 50, layout.end_think, layout.action]) for row in prompts(model)]
    size = max(len(row) for row in rows)
    batch = torch.tensor([[layout.pad] * (size - len(row)) + row.tolist() for row in rows])
    images = pixels(3)
    sequences = sequence_forward.with_action_block(batch, layout)
    with torch.no_grad():
        together = sequence_forward.action_logits(
            model, sequence_forward.hidden_states(model, sequences, images), sequences
        )
        contaminated = sequence_forward.action_logits(
            model, sequence_forward.hidden_states(model, sequences, images, reference_pads=True), sequences
        )
        for b, row in enumerate(rows):
            alone = sequence_forward.with_action_block(torch.from_numpy(row)[None], layout)
            hidden = sequence_forward.hidden_states(model, alone, images[2 * b : 2 * b + 2])
            torch.testing.assert_close(
                together[b], sequence_forward.action_logits(model, hidden, alone)[0], atol=1e-4, rtol=0
            )
    assert (contaminated - together).abs().max() > 0.05  # what reference_pads costs


def test_a_sequence_without_prompt_end_is_refused(model):
    with pytest.raises(ValueError, match="no prompt end"):
        sequence_forward.with_action_block(torch.arange(20, 30)[None], model.config.layout)


def test_an_image_id_that_was_thought_is_ordinary_text(model):
    layout, backend = model.config.layout, TorchBackend(model, 200)
    row = prompts(model)[0]
    decoding.prefill(backend, row, backend.encode(pixels(1).numpy()))
    thought = np.array([layout.think, layout.image, layout.end_think, layout.action])
    logits = decoding.act(backend, layout, len(row), thought, cached=0)
    assert np.isfinite(logits).all()


def test_with_one_layer_all_action_slots_give_one_answer():
    """Slots have zero embeddings: only rotary positions, from the second layer on, tell them apart."""
    raw = random_config(byte_tokenizer())
    raw["text_config"]["num_hidden_layers"] = 1
    model = random_model(raw, seed=1)
    layout = model.config.layout
    ids = torch.from_numpy(np.append(prompts(model)[0], [layout.think, layout.end_think, layout.action]))
    sequences = sequence_forward.with_action_block(ids[None], layout)
    with torch.no_grad():
        logits = sequence_forward.action_logits(
            model, sequence_forward.hidden_states(model, sequences, pixels(1)), sequences
        )[0]
    assert (sequences.ids == SLOT).sum() == layout.slots
    torch.testing.assert_close(logits[1:], logits[1:2].expand_as(logits[1:]))
    assert (logits[0] - logits[1]).abs().max() > 1e-3
