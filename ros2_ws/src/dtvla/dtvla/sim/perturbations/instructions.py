"""The same task in other words: fixed sentences for the embedded suites, rules for LIBERO's."""

from __future__ import annotations

import re

import numpy as np

from dtvla.sim.suites.embedded import SUITES, TRAY, EmbeddedTask

LEVELS = 3

# One tuple per level: other verbs, another build of the sentence, other names for the object as well. None of
# them is trained on (training/datasets/paraphrases.py has others). `_about` puts the tray in
# the basket's place.
_EMBEDDED = (
    (
        "Grab the {noun} and put it in the basket",
        "Take the {noun} and set it in the basket",
        "Lift the {noun} and drop it in the basket",
        "Get the {noun} and place it into the basket",
    ),
    (
        "Put the {noun} into the basket",
        "The {noun} goes in the basket",
        "Into the basket with the {noun}",
        "Could you move the {noun} over to the basket, please?",
    ),
    (
        "There are three things on the table; the {other} should end up inside the basket",
        "Please tidy up a little: find the {other} and put it away into the container",
        "I need the {other} out of the way, so leave it in the basket",
        "Never mind the rest, just bring the {other} to the basket",
    ),
)
_OTHER_NAMES = {
    "green block": ("green cube", "small green box", "green brick"),
    "blue cylinder": ("blue tube", "round blue piece", "blue roll"),
    "can": ("soda can", "tin", "drink"),
    "red block": ("red brick", "small red box", "red piece"),
    "yellow cylinder": ("yellow tube", "round yellow piece", "yellow roll"),
    "white box": ("white brick", "small white block", "pale box"),
}
_ON_A_TRAY = (
    ("basket", "tray"),
    ("container", "tray"),
    ("Into", "Onto"),
    ("into", "onto"),
    ("inside", "on"),
    (" in the tray", " on the tray"),
)
_VERBS = (
    (r"\bpick up\b", ("grab", "take", "lift")),
    (r"\bplace\b", ("put", "set", "lay")),
    (r"\bput\b", ("place", "set", "lay")),
    (r"\bturn on\b", ("switch on", "start")),
    (r"\bturn off\b", ("switch off", "shut off")),
    (r"\bopen\b", ("pull open", "slide open")),
    (r"\bclose\b", ("shut", "push shut")),
    (r"\bpush\b", ("slide", "shove")),
    (r"\bstack\b", ("pile", "put")),
)
_FRAMES = (
    "please {words}",
    "could you {words}?",
    "your task is to {words}",
    "I would like you to {words}",
)
_ASIDES = (
    "there is more on the table than you need, but {words} and leave the rest as it is",
    "take your time and be careful: {words}",
    "we are tidying up here, so {words} before you do anything else",
)


def paraphrase(language: str, level: int, seed: int) -> str:
    """An instruction in other words, the same for the same seed.

    Args:
        language: the benchmark's instruction.
        level: 1 (other verbs), 2 (another build as well) or 3 (a longer sentence; in the embedded suites
            another name for the object, too).
        seed: chooses among the sentences.
    """
    rng = np.random.default_rng((seed, level))
    for task in (task for suite in SUITES.values() for task in suite.tasks):
        if task.language == language:
            sentence = _about(str(rng.choice(_EMBEDDED[level - 1])), task)
            return sentence.format(noun=task.noun, other=rng.choice(_OTHER_NAMES[task.noun]))
    words = language
    for pattern, others in _VERBS:
        # Only words of the sentence as it was: a verb put in must not be replaced again.
        if re.search(pattern, language):
            words = re.sub(pattern, str(rng.choice(others)), words, count=1)
    if level == 1:
        return words if words != language else f"please {language}"
    frame = str(rng.choice(_FRAMES if level == 2 else _ASIDES))
    return frame.format(words=words)


def _about(sentence: str, task: EmbeddedTask) -> str:
    """A sentence about the basket, said of the task's own receptacle."""
    if task.into == TRAY:
        for words, instead in _ON_A_TRAY:
            sentence = sentence.replace(words, instead)
    return sentence
