"""Mask, data and optimiser of the training code."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dtvla.policy.action_tokenizer import ActionTokenizer, Normaliser
from dtvla.policy.token_layout import NEVER, SLOT, Bounds, allowed
from training.collect import save_episode
from training.common.muon import orthogonalise
from training.datasets.batches import Collator
from training.datasets.recorded_frames import DatasetError, load_frames
from training.datasets.tokenizer import train_tokenizer
from training.model.config import ModelConfig
from training.model.deepthinkvla import DeepThinkVLA, hybrid_mask
from training.sft.models import SMALL_PREFIX, small_config


@given(
    prefix=st.integers(1, 30),
    thought=st.integers(1, 12),
    tail=st.integers(1, 12),
    pads=st.integers(0, 6),
)
def test_the_training_mask_is_the_runtime_rule_with_pads_hidden(prefix, thought, tail, pads):
    start, length = prefix + thought - 1, prefix + thought + tail
    mask = hybrid_mask(*(torch.tensor([x]) for x in (prefix, start, length)), length + pads)[0, 0].numpy()
    assert (mask == allowed(Bounds(prefix, start, length, 0), length + pads, length + pads)).all()
    assert not mask[:, length:].any()


def test_prefill_is_bidirectional_and_thinking_is_causal():
    prefill = allowed(Bounds(4, NEVER, 4, 0), 4, 8)
    assert prefill[:, :4].all()
    assert not prefill[:, 4:].any()
    step = allowed(Bounds(4, NEVER, 6, 5), 1, 8)
    assert step[0].tolist() == [True] * 6 + [False] * 2


def test_reference_pads_are_visible_to_every_row_only_on_request():
    arguments = [torch.tensor([x]) for x in (3, 5, 8)]
    assert not hybrid_mask(*arguments, 10)[..., 8:].any()
    assert hybrid_mask(*arguments, 10, reference_pads=True)[..., 8:].all()


@settings(deadline=None, max_examples=20)
@given(rows=st.integers(2, 24), columns=st.integers(2, 24), seed=st.integers(0, 99))
def test_muon_turns_any_gradient_into_a_nearly_orthogonal_step(rows, columns, seed):
    gradient = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    values = torch.linalg.svdvals(orthogonalise(gradient))
    assert values.max() < 1.3
    assert values[: max(1, len(values) // 2)].min() > 0.5


def test_words_and_numbers_of_the_suite_are_single_tokens():
    tokenizer = train_tokenizer(SMALL_PREFIX)
    text = "The green block is 12 cm left, 3 cm forward, 20 cm below. Next: move above it."
    encoded = tokenizer.encode(text, add_special_tokens=False)
    assert len(encoded.ids) == 22
    assert tokenizer.decode(encoded.ids) == text
    anything = "Ünïcode & 拾う"
    assert tokenizer.decode(tokenizer.encode(anything, add_special_tokens=False).ids) == anything


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Two tiny episodes in the recorder's format (their content does not matter)."""
    folder = tmp_path_factory.mktemp("episodes")
    rng = np.random.default_rng(0)
    for seed in (100_000, 100_001):
        frames = np.arange(0, 30, 3)
        save_episode(
            folder / f"can_{seed}.npz",
            {
                "frames": frames.astype(np.int32),
                "images": rng.integers(0, 255, (len(frames), 2, 96, 96, 3), np.uint8),
                "actions": rng.uniform(-1, 1, (30, 7)).astype(np.float32),
                "thoughts": np.array(
                    ["The can is 1 cm left, 2 cm forward, 3 cm below. Next: move above it."] * 10
                ),
                "instruction": np.array("Pick up the can and place it in the basket"),
            },
        )
    return folder


def test_a_chunk_at_the_end_of_an_episode_repeats_its_last_action(recorded):
    frames = load_frames(recorded, 96, 10, held_out=False)
    last = frames.actions[-1]  # frame 27 of 30
    assert (last[3:] == last[2]).all()
    assert frames.episodes == 1


def test_a_picture_labelled_for_other_instructions_gives_a_row_for_each(recorded, tmp_path):
    with np.load(next(recorded.glob("*_1*.npz"))) as episode:
        arrays = dict(episode)
    count = len(arrays["frames"])
    arrays["other_instructions"] = np.array(["Pick up the block", "Pick up the cylinder"])
    arrays["other_thoughts"] = np.array([["The block is far.", ""]] * (count - 1) + [["", ""]])
    arrays["other_chunks"] = np.full((count, 2, 10, 7), 0.5, np.float32)
    save_episode(tmp_path / "can_1.npz", arrays)
    frames = load_frames(tmp_path, 96, 10, held_out=False)
    assert len(frames.images) == count
    assert len(frames) == 2 * count - 1, "the empty thoughts are no labels"
    assert frames.picture.tolist() == [*range(count), *range(count - 1)]
    assert frames.instructions[count:] == ["Pick up the block"] * (count - 1)
    assert (frames.actions[count:] == 0.5).all()


def test_a_batch_supervises_thought_and_actions_and_nothing_else(recorded):
    frames = load_frames(recorded, 96, 10, held_out=False)
    tokenizer = train_tokenizer(SMALL_PREFIX)
    raw = small_config(tokenizer.get_vocab_size())
    raw["prompt_end_token_id"] = tokenizer.encode(";\n", add_special_tokens=False).ids
    layout = ModelConfig.from_hf(raw).layout
    codec = ActionTokenizer(layout.bins, layout.action_begin, 1)
    q01, q99 = np.full(7, -1.0), np.full(7, 1.0)
    normaliser = Normaliser(q01, q99, np.arange(7) < 6)
    batch = Collator(tokenizer, layout, codec, normaliser, SMALL_PREFIX).batch([frames.row(0), frames.row(9)])
    n, start = int(batch.prefix_len[0]), int(batch.action_start[0])
    ids, targets = batch.ids[0].numpy(), batch.targets[0].numpy()
    assert tuple(ids[n - 2 : n]) == layout.prompt_end
    assert ids[n] == layout.think
    assert ids[start] == layout.action
    assert (ids[start + 1 : start + 71] == SLOT).all()
    assert (targets[: n - 1] == -100).all()
    assert (targets[n - 1 : start] == ids[n : start + 1]).all(), (
        "every thought token is predicted by the row before"
    )
    decoded = normaliser.unnormalise(codec.decode(targets[start : start + 70]).reshape(10, 7))
    assert np.abs(decoded - frames.actions[0]).max() < 1.01 / layout.bins


def test_broken_episodes_and_empty_folders_are_named(recorded, tmp_path):
    with pytest.raises(DatasetError, match="holds no episodes"):
        load_frames(tmp_path, 96, 10, held_out=False)
    save_episode(tmp_path / "can_1.npz", {"actions": np.full((5, 7), np.nan)})
    with pytest.raises(DatasetError, match=r"can_1\.npz"):
        load_frames(tmp_path, 96, 10, held_out=False)


def test_the_small_model_has_the_published_parameter_names():
    raw = small_config(500)
    raw["vision_config"]["stem_channels"] = []
    with torch.device("meta"):
        names = set(DeepThinkVLA(ModelConfig.from_hf(raw)).state_dict())
    assert "language_model.model.layers.0.self_attn.q_proj.weight" in names
    assert "vision_tower.vision_model.encoder.layers.1.mlp.fc2.bias" in names
    assert not any("lm_head" in name or "stem" in name for name in names)
