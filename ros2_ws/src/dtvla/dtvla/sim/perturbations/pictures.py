"""Faults of a camera, on finished pictures.

Each change takes an image (RGB uint8 [H, W, 3]), a strength above 0, a generator that is the same for all
pictures of a camera in an episode, and one of this picture alone.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Picture = NDArray[np.uint8]
Change = Callable[[Picture, float, np.random.Generator, np.random.Generator], Picture]

NOISE = 8.0  # standard deviation of 255, at strength 1
BLUR = 0.005  # of the width
JPEG = 0.45  # factor of the quality per strength, from 95 downwards
PATCH = 0.10  # side, of the width
GREY = 90


def noise(image: Picture, strength: float, episode: np.random.Generator, own: np.random.Generator) -> Picture:
    """A sensor in the dark: every pixel and channel for itself."""
    noisy = image + own.normal(0.0, NOISE * strength, image.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def blur(image: Picture, strength: float, episode: np.random.Generator, own: np.random.Generator) -> Picture:
    """Out of focus."""
    radius = BLUR * strength * image.shape[1]
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def jpeg(image: Picture, strength: float, episode: np.random.Generator, own: np.random.Generator) -> Picture:
    """Compressed on its way."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=max(1, round(95 * JPEG**strength)))
    return np.asarray(Image.open(file).convert("RGB"))


def occlusion(
    image: Picture, strength: float, episode: np.random.Generator, own: np.random.Generator
) -> Picture:
    """Something sticks to the lens: a grey square, at the same place for the whole episode."""
    height, width, _ = image.shape
    side = max(1, round(PATCH * strength * width))
    top, left = episode.integers(0, height - side + 1), episode.integers(0, width - side + 1)
    hidden: Picture = image.copy()
    hidden[top : top + side, left : left + side] = GREY
    return hidden


CHANGES: Mapping[str, Change] = {"noise": noise, "blur": blur, "jpeg": jpeg, "occlusion": occlusion}
