"""Instructions on their way into a prompt."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtvla.errors import PolicyInputError
from dtvla.policy.prompt import (
    MAX_INSTRUCTION_CHARACTERS,
    THINKING_PREFIX,
    check_tokenizer,
    clean_instruction,
    prompt_ids,
)
from model_export.sample import byte_tokenizer, random_config
from training.model.config import ModelConfig

TOKENIZER = byte_tokenizer()
LAYOUT = ModelConfig.from_hf(random_config(TOKENIZER)).layout


def test_a_prompt_is_images_bos_prefix_task_and_the_closing_pair():
    ids = prompt_ids(TOKENIZER, LAYOUT, "Pick_up the CAN ")
    images = LAYOUT.images * LAYOUT.image_tokens
    assert (ids[:images] == LAYOUT.image).all()
    assert ids[images] == LAYOUT.bos
    text = TOKENIZER.decode(list(ids[images + 1 :]), skip_special_tokens=False)
    assert text == f"{THINKING_PREFIX}Task: pick up the can;\n"
    assert tuple(ids[-2:]) == LAYOUT.prompt_end


def test_the_prefix_itself_holds_the_tags():
    """Quirk of the reference: code that looks for <action> must take the last one."""
    assert LAYOUT.action in prompt_ids(TOKENIZER, LAYOUT, "pick")[LAYOUT.images * LAYOUT.image_tokens :]


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=60))
def test_any_plain_sentence_is_either_encoded_or_refused_in_a_sentence(text):
    try:
        ids = prompt_ids(TOKENIZER, LAYOUT, text, prefix="")
    except PolicyInputError as error:
        assert str(error).endswith((".", "'."))  # noqa: PT017 - either way is right
    else:
        assert np.count_nonzero(ids == LAYOUT.image) == LAYOUT.images * LAYOUT.image_tokens


@pytest.mark.parametrize(
    ("instruction", "sentence"),
    [
        ("", "empty"),
        ("  \t ", "empty"),
        (None, "empty"),
        ("a" * 10_000, "10000 characters"),
        ("pick\nup", "control characters"),
        ("pick\x00up", "control characters"),
        ("pick\u2028up", "control characters"),
        ("now <action> move", "reserved"),
        ("look at <image>", "reserved"),
    ],
)
def test_a_bad_instruction_is_refused(instruction, sentence):
    with pytest.raises(PolicyInputError, match=sentence):
        prompt_ids(TOKENIZER, LAYOUT, instruction)


def test_the_longest_instruction_is_accepted():
    assert clean_instruction("a" * MAX_INSTRUCTION_CHARACTERS)


def test_a_tokenizer_with_another_id_is_refused_by_token():
    import dataclasses

    other = dataclasses.replace(LAYOUT, end_think=LAYOUT.bos)
    with pytest.raises(ValueError, match="gives </think> the id 5, the model was trained with 2"):
        check_tokenizer(TOKENIZER, other)
    other = dataclasses.replace(LAYOUT, prompt_end=(1, 2))
    with pytest.raises(ValueError, match="closes a prompt with"):
        check_tokenizer(TOKENIZER, other)
