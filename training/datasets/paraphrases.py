"""The tasks of the embedded suites in other words, to learn from.

None of these sentences is one that `dtvla eval --vary instruction` asks with
(dtvla/sim/perturbations/instructions.py): what that measures is words that were not heard before.
"""

from __future__ import annotations

import numpy as np

from dtvla.sim.suites.embedded import RECEPTACLES, SUITES, TRAY

SENTENCES = (
    "Move the {noun} {into} the {place}",
    "Place the {noun} {inside} the {place}",
    "Please bring the {noun} to the {place}",
    "Pick the {noun} up and drop it {into} the {place}",
    "Your task: the {noun} has to go {inside} the {place}",
    "Fetch the {noun} and leave it {inside} the {place}",
    "Find the {noun}, lift it and lay it {inside} the {place}",
    "{place}: put the {noun} there",
)


def in_other_words(instruction: str, rng: np.random.Generator) -> str:
    """Another sentence for a task of the embedded suites; any other instruction stays as it is."""
    for task in (task for suite in SUITES.values() for task in suite.tasks):
        if task.language == instruction:
            into, inside = ("onto", "on") if task.into == TRAY else ("into", "in")
            sentence = str(rng.choice(SENTENCES))
            words = sentence.format(noun=task.noun, place=RECEPTACLES[task.into], into=into, inside=inside)
            return words[0].upper() + words[1:]
    return instruction
