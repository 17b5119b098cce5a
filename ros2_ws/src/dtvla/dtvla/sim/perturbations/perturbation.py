"""What may differ from the world a policy was trained in, by name and strength.

The same name, strength and seed give the same episode; strength 0 is the world as it is, in every bit. The
kinds are those of LIBERO-Plus (arXiv:2510.13626), but the layout; the figures are this project's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dtvla.errors import InputError
from dtvla.sim.perturbations import pictures, scene
from dtvla.sim.perturbations.instructions import LEVELS, paraphrase

if TYPE_CHECKING:
    from dtvla.sim.perturbations.scene import PerturbedScene

STRONGEST = 3.0
USUAL = 2.0  # what a name without a strength means
INSTRUCTION = "instruction"
NAMES: Mapping[str, str] = {  # what strength 1 does; it grows with the strength
    "camera": "the front camera up to 6° aside, 3° higher or lower, 6 % nearer or farther",
    "fov": "both cameras see up to 10 % more or less",
    "light": "up to 40 % brighter or 30 % darker, channels tinted by up to 15 %, direction by up to 10°",
    "background": "table, floor, walls tinted by up to 25 %; from strength 2 on with other surfaces as well",
    "noise": "noise of 8 of 255 in every pixel",
    "blur": "blurred with a radius of 0.5 % of the picture's width",
    "jpeg": "compressed as JPEG of quality 43 (19 at strength 2, 9 at 3)",
    "occlusion": "a grey patch of 10 % of the width hides a part of each picture",
    "instruction": "other verbs (2: another sentence; 3: a longer one, with another name for the object)",
    "robot": "the arm starts with each joint off by up to 0.05 rad",
}


@dataclass(frozen=True)
class Variation:
    """One way in which the world differs.

    Attributes:
        name: one of `NAMES`.
        strength: 0 (not at all) to 3.
    """

    name: str
    strength: float

    @classmethod
    def parse(cls, words: str) -> Variation | None:
        """`camera:2` as a variation; nothing as None.

        Raises:
            ValueError: no such name, or an impossible strength.
        """
        if not words:
            return None
        name, _, number = words.partition(":")
        if name not in NAMES:
            raise InputError(f"There is no variation '{name}'; there are {', '.join(NAMES)}.")
        try:
            strength = float(number) if number else USUAL
        except ValueError:
            strength = math.nan
        if not 0 <= strength <= STRONGEST:
            raise InputError(
                f"'{words}' has no strength that is possible: give 0 to {STRONGEST:g}, such as {name}:2."
            )
        return cls(name, strength)

    def __str__(self) -> str:
        return f"{self.name}:{self.strength:g}"


def parse_all(words: str) -> list[Variation]:
    """`camera:1,light:3` as variations; `all` or `all:3` as every one at that strength.

    Raises:
        InputError: see `Variation.parse`.
    """
    found: list[Variation] = []
    for part in filter(None, words.replace(" ", "").split(",")):
        name, _, number = part.partition(":")
        names = NAMES if name == "all" else (name,)
        parsed = (Variation.parse(f"{each}:{number}" if number else each) for each in names)
        found += [variation for variation in parsed if variation is not None]
    return list(dict.fromkeys(found))


class PerturbedWorld:
    """Applies a variation to the episodes of one environment.

    Args:
        variation: what differs; None: nothing.
    """

    _variation: Variation | None

    def __init__(self, variation: Variation | None) -> None:
        self._scene: PerturbedScene | None = None
        self._seed = 0
        self.become(variation)

    def become(self, variation: Variation | None) -> None:
        """From the next episode on this is what differs, and what differed before does no more."""
        self._variation = variation if variation is not None and variation.strength > 0 else None
        if self._scene is not None:
            self._scene.restore()

    def begin(self, env: Any, seed: int) -> None:
        """An episode begins: changes the scene, before its objects settle.

        Args:
            env: robosuite's environment; its model stays the same object over all episodes.
            seed: decides on what is left to chance.
        """
        self._seed = seed
        if self._variation is None or self._variation.name not in scene.CHANGES:
            return
        if self._scene is None:
            self._scene = scene.PerturbedScene(env)
        self._scene.restore()
        scene.CHANGES[self._variation.name](self._scene, self._variation.strength, self._rng())

    def picture(self, image: NDArray[np.uint8], camera: int, step: int) -> NDArray[np.uint8]:
        """What becomes of a picture: RGB uint8 [H, W, 3].

        Args:
            image: as rendered, upright.
            camera: its number.
            step: of the episode.
        """
        if self._variation is None or self._variation.name not in pictures.CHANGES:
            return image
        change = pictures.CHANGES[self._variation.name]
        return change(image, self._variation.strength, self._rng(camera), self._rng(camera, step))

    def instruction(self, language: str) -> str:
        """What the policy is told."""
        if self._variation is None or self._variation.name != INSTRUCTION:
            return language
        return paraphrase(language, min(LEVELS, math.ceil(self._variation.strength)), self._seed)

    def _rng(self, *more: int) -> np.random.Generator:
        assert self._variation is not None
        return np.random.default_rng((self._seed, list(NAMES).index(self._variation.name), *more))
