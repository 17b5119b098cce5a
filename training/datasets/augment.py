"""Changes of training pictures: the small policy's own, and the reference's."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Augmentation = Literal["none", "shift", "reference"]

SHIFT_PX = 4
GAIN, OFFSET = 0.15, 15.0
# Reference: sft/dataset.py:__getitem__ (crop of 0.9 of the area at 0.95 of the size, +-5 degrees, colours).
CROP_AREA, ROTATION_DEG = 0.9, 5.0
BRIGHTNESS, CONTRAST, SATURATION = 0.2, 0.4, 0.5


def augment(images: NDArray[np.uint8], kind: Augmentation, rng: np.random.Generator) -> NDArray[np.float32]:
    """Pictures of one look, changed as `rng` says.

    Args:
        images: [cameras, W, W, 3] RGB, the first one the view from outside.
        kind: "shift": each picture by up to 4 pixels (edges repeated), brightness and contrast of all alike;
            "reference": the first picture only, cropped, turned and coloured as in the published training.
        rng: one look's own.

    Returns:
        [cameras, W, W, 3] in 0 to 255.
    """
    if kind == "none":
        return images.astype(np.float32)
    if kind == "shift":
        return _shift(images, rng)
    changed = images.astype(np.float32)
    changed[0] = _reference(images[0], rng)
    return changed


def _shift(images: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.float32]:
    size = images.shape[1]
    steps = rng.integers(-SHIFT_PX, SHIFT_PX + 1, (len(images), 2))
    gain, offset = rng.uniform(1 - GAIN, 1 + GAIN), rng.uniform(-OFFSET, OFFSET)
    rows = np.arange(size)
    out = np.empty(images.shape, np.float32)
    for image, (dy, dx), target in zip(images, steps, out, strict=True):
        y, x = np.clip(rows + dy, 0, size - 1), np.clip(rows + dx, 0, size - 1)
        target[:] = image[y[:, None], x[None]]
    out -= 128
    out *= np.float32(gain)
    out += np.float32(128 + offset)
    return np.clip(out, 0, 255, out=out)


def _reference(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.float32]:
    size = image.shape[0]
    side = size * CROP_AREA**0.5
    left, top = rng.uniform(0, size - side, 2)
    angle = rng.uniform(-ROTATION_DEG, ROTATION_DEG)
    # One resampling for crop and rotation together, about the middle of the crop.
    turn = cv2.getRotationMatrix2D((left + side / 2 - 0.5, top + side / 2 - 0.5), angle, size / side)
    turn[:, 2] += size / 2 - 0.5 - np.array([left, top]) - side / 2 + 0.5
    out = cv2.warpAffine(image, turn, (size, size), flags=cv2.INTER_LINEAR).astype(np.float32)
    order = rng.permutation(3)
    factors = [rng.uniform(1 - most, 1 + most) for most in (BRIGHTNESS, CONTRAST, SATURATION)]
    for which in order:
        if which == 0:
            out *= factors[0]
        else:
            grey = out @ np.array([0.299, 0.587, 0.114], np.float32)
            anchor = grey.mean() if which == 1 else grey[..., None]
            out = anchor + (out - anchor) * np.float32(factors[which])
        out = np.clip(out, 0, 255)
    return np.asarray(out, np.float32)
