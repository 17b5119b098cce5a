"""The embodied thought in words: where the target is, which phase, what comes next.

Directions are the robot's: forward is away from its base (towards the viewer of the agentview
picture), left is its left (the left of that picture too), distances are whole centimetres from the
gripper's fingertips. Every sentence can be checked against the pictures.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtvla.sim.env import Observation
from dtvla.sim.expert.scripted_expert import BEFORE_LIFT, Expert, Phase
from dtvla.sim.suites.embedded import BASKET, RECEPTACLES, THINGS

NEXT = {
    Phase.REACH: "move above it",
    Phase.LOWER: "go down to it",
    Phase.GRASP: "close the gripper",
    Phase.LIFT: "lift it",
    Phase.CARRY: "carry it to the {place}",
    Phase.PLACE: "lower it into the {place}",
    Phase.RELEASE: "open the gripper",
}
MIDDLE_M = 0.011  # nearer to the middle than this, a whole centimetre says left or right by chance
_SUBJECT = re.compile(r"[Tt]he ([a-z ]+?) is ")
_AXES = (("forward", "back"), ("left", "right"), ("above", "below"))


def describe_next(phase: Phase, place: str = RECEPTACLES[BASKET]) -> str:
    """What comes next, in words; `place` is what the receptacle is called."""
    return NEXT[phase].format(place=place)


_PHASE_OF = {describe_next(phase, place): phase for phase in NEXT for place in RECEPTACLES.values()}


def describe_offset(offset: NDArray[np.floating]) -> str:
    """`offset` [3] in metres, base frame, as words: `12 cm left, 3 cm forward, 20 cm below`."""
    parts = []
    for value, (positive, negative) in zip(
        np.asarray(offset)[[1, 0, 2]], [_AXES[1], _AXES[0], _AXES[2]], strict=True
    ):
        centimetres = round(abs(float(value)) * 100)
        parts.append(f"{centimetres} cm {positive if value >= 0 or centimetres == 0 else negative}")
    return ", ".join(parts)


def describe_order(nouns: Iterable[str]) -> str:
    """The objects (or receptacles) on the table, named in their order from the robot's base to the viewer.

    Naming what stands where comes before saying where the target is: the model finds the target's place in
    its own words. Without it a policy learned to place three objects to the centimetre and took the named
    one in a third of the cases (docs/results/sft.md).
    """
    return f"From back to front: {', '.join(nouns)}."


def thought(expert: Expert, obs: Observation) -> str:
    """The expert's thought for the action it has just chosen on `obs`."""
    noun = expert.task.noun
    place = RECEPTACLES[expert.task.place.removesuffix("_1")]
    if expert.phase in BEFORE_LIFT:
        nouns = {thing.target: thing.noun for thing in THINGS}
        where = f"The {noun} is {describe_offset(expert.grasp_point(obs) - obs.ee_position)}."
    else:
        held = f"over the {place}" if expert.phase is Phase.RELEASE else "in the gripper"
        offset = describe_offset(obs.objects[expert.task.place] - obs.ee_position)
        where = f"The {noun} is {held}. The {place} is {offset}."
        nouns = {f"{category}_1": noun for category, noun in RECEPTACLES.items()}
    there = sorted((name for name in nouns if name in obs.objects), key=lambda name: obs.objects[name][0])
    if len(there) > 1:
        where = f"{describe_order(nouns[name] for name in there)} {where}"
    return f"{where} Next: {describe_next(expert.phase, place)}."


@dataclass(frozen=True)
class ParsedThought:
    """What a thought states: an object, its offset from the gripper (metres, base frame), the phase."""

    noun: str | None
    offset: NDArray[np.float64] | None
    phase: Phase | None


def parse_thought(text: str) -> ParsedThought:
    """Reads a thought back into numbers; what is not stated, or garbled, is None."""
    noun = _SUBJECT.search(text)
    offset = None
    found = re.search(
        r"\b([0-9]{1,4}) cm (left|right), ([0-9]{1,4}) cm (forward|back), ([0-9]{1,4}) cm (above|below)", text
    )
    if found:
        signs = {"left": 1, "right": -1, "forward": 1, "back": -1, "above": 1, "below": -1}
        y, x, z = (signs[found[i + 1]] * int(found[i]) / 100 for i in (1, 3, 5))
        offset = np.array([x, y, z])
    following = re.search(r"Next: ([a-z ]+)\.", text)
    phase = _PHASE_OF.get(following[1]) if following else None
    return ParsedThought(noun[1] if noun else None, offset, phase)


def agreement(text: str, true: str) -> dict[str, bool]:
    """Whether a thought says what is true of the same moment: `target`, `side` and `phase`.

    Args:
        text: the thought.
        true: what the expert thinks there (`thought`).

    Returns: `target`: it speaks of the same object, and of the same receptacle once that matters; `side`: it
        sees it on the same side, left or right (true where it is less than a centimetre off the middle);
        `phase`: the same is to be done next.
    """
    said, meant = parse_thought(text), parse_thought(true)
    side = False
    if said.offset is not None and meant.offset is not None:
        side = abs(meant.offset[1]) < MIDDLE_M or said.offset[1] * meant.offset[1] > 0
    return {
        "target": _SUBJECT.findall(text) == _SUBJECT.findall(true),
        "side": bool(side),
        "phase": said.phase is not None and said.phase is meant.phase,
    }


def check_thought(text: str, obs: Observation) -> float | None:
    """How far the place a thought states is from where its object really is, in metres.

    Compares with the named object (its grasp point) or receptacle. None when the thought states no place, or
    names nothing that is there (LIBERO's suites: thoughts about them have no such form).
    """
    places = {
        thing.noun: obs.objects[thing.target] + [0.0, 0.0, thing.grasp_height_m]
        for thing in THINGS
        if thing.target in obs.objects
    }
    places |= {
        noun: obs.objects[f"{category}_1"]
        for category, noun in RECEPTACLES.items()
        if f"{category}_1" in obs.objects
    }
    for sentence in text.split("."):
        stated = parse_thought(sentence + ".")
        if stated.offset is not None and stated.noun in places:
            truth = places[stated.noun] - obs.ee_position
            return float(np.linalg.norm(truth - stated.offset))
    return None
