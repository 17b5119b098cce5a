"""The small policy's own tokenizer, trained on what it will ever read and write."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from dtvla.policy.token_layout import SPECIAL_TOKENS
from dtvla.sim.expert.scripted_expert import Phase
from dtvla.sim.suites.embedded import RECEPTACLES, SUITES
from dtvla.sim.thoughts import describe_next, describe_order

MAX_CENTIMETRES = 60


def corpus(thinking_prefix: str) -> Iterator[str]:
    """Every kind of sentence of the suites with every number: each word and number becomes one token."""
    directions = (("left", "right"), ("forward", "back"), ("above", "below"))
    tasks = [(task, suite) for suite in SUITES.values() for task in suite.tasks]
    for number, phase, (task, suite) in itertools.product(range(MAX_CENTIMETRES), Phase, tasks):
        place = RECEPTACLES[task.into]
        y, x, z = (pair[number % 2] for pair in directions)
        offset = f"{number} cm {y}, {number} cm {x}, {number} cm {z}"
        following = describe_next(phase, place)
        yield f"The {task.noun} is {offset}. Next: {following}."
        yield f"The {task.noun} is in the gripper. The {place} is {offset}. Next: {following}."
        yield f"The {task.noun} is over the {place}."
        yield describe_order(thing.noun for thing in suite.things)
        yield describe_order(RECEPTACLES[category] for category, _ in suite.receptacles)
        yield f"{thinking_prefix}Task: {task.language.lower()};\n"


def train_tokenizer(thinking_prefix: str, vocab_size: int = 800) -> Tokenizer:
    """A byte-level BPE tokenizer: any text encodes, the suite's words are single tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(thinking_prefix), trainer)
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS.values()]
    tokenizer.add_special_tokens(special)
    return tokenizer
