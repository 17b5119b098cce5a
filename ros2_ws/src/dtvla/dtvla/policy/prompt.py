"""The instruction as the model reads it: image ids, bos, thinking prefix, `Task: ...;`, newline.

The prompt is closed by the ids of ";" and newline; everything behind them is thought. An instruction
comes from outside and is checked here.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from dtvla.errors import InputError, PolicyInputError, plain
from dtvla.policy.token_layout import TokenLayout

THINKING_PREFIX = (
    "First output the thinking process in <think></think> tags "
    "and then output the final action in <action></action>."
)
MAX_INSTRUCTION_CHARACTERS = 500


def clean_instruction(instruction: str) -> str:
    """Lower case, stripped, underscores as spaces: what the training data went through.

    Raises:
        PolicyInputError: empty, too long, or holding control characters.
    """
    if not isinstance(instruction, str) or not instruction.replace("_", " ").strip():
        raise PolicyInputError("The instruction is empty; say what to do, for example 'pick up the can'.")
    if len(instruction) > MAX_INSTRUCTION_CHARACTERS:
        raise PolicyInputError(
            f"The instruction has {len(instruction)} characters; the limit is {MAX_INSTRUCTION_CHARACTERS}. "
            "Give one task in one sentence."
        )
    cleaned = instruction.lower().strip().replace("_", " ")
    if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in cleaned):
        raise PolicyInputError("The instruction holds control characters or line breaks; use plain text.")
    return cleaned


def prompt_ids(
    tokenizer: Tokenizer, layout: TokenLayout, instruction: str, prefix: str = THINKING_PREFIX
) -> NDArray[np.int64]:
    """Prompt ids [n]; the image ids stand first, `layout.images * layout.image_tokens` of them.

    Raises:
        PolicyInputError: an instruction that `clean_instruction` refuses or that contains a tag.
    """
    cleaned = clean_instruction(instruction)
    inside = tokenizer.encode(cleaned, add_special_tokens=False).ids
    actions = range(layout.action_begin, layout.action_end + 1)
    reserved = set(layout.special_ids().values())
    if any(i in reserved or i in actions for i in inside):
        raise PolicyInputError(
            "The instruction contains a token reserved for the model, like <think>; use words."
        )
    text = tokenizer.encode(f"{prefix}Task: {cleaned};\n", add_special_tokens=False).ids
    images = [layout.image] * (layout.images * layout.image_tokens)
    return np.array([*images, layout.bos, *text], np.int64)


def thought_ids(tokenizer: Tokenizer, layout: TokenLayout, words: str) -> tuple[int, ...]:
    """Ids of a whole thought, tags included, whose words are given.

    Raises:
        InputError: the words hold an id that is not for words.
    """
    inside = tokenizer.encode(words, add_special_tokens=False).ids
    reserved = {*layout.special_ids().values(), *layout.banned().tolist()}
    if not reserved.isdisjoint(inside):
        raise InputError(f"{plain(words)} holds a token reserved for the model, such as <think>")
    return (layout.think, *inside, *layout.closing)


def load_tokenizer(path: Path, layout: TokenLayout) -> Tokenizer:
    """Reads a tokenizer file and compares its ids with the layout's.

    Raises:
        InputError: it is no tokenizer file, or an id differs; the sentence names the file.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise InputError(f"{path} is not a tokenizer file ({plain(error)}). Copy the bundle again.") from None
    try:
        check_tokenizer(tokenizer, layout)
    except ValueError as error:
        raise InputError(f"{path}: {error}. Take both from the same checkpoint.") from None
    return tokenizer


def check_tokenizer(tokenizer: Tokenizer, layout: TokenLayout) -> None:
    """Compares the tokenizer's ids with the layout's.

    Raises:
        InputError: an id differs; the sentence names it.
    """
    for token, want in layout.special_ids().items():
        found = tokenizer.token_to_id(token)
        if found != want:
            raise InputError(f"the tokenizer gives {token} the id {found}, the model was trained with {want}")
    ending = tuple(tokenizer.encode("Task: a;\n", add_special_tokens=False).ids[-2:])
    if ending != tuple(layout.prompt_end):
        raise InputError(
            f"the tokenizer closes a prompt with the ids {list(ending)}, the model was trained with "
            f"{list(layout.prompt_end)}"
        )
