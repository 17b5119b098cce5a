"""Camera images to the vision tower's input, with checks at the door."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from PIL import Image

from dtvla.errors import PolicyInputError
from dtvla.structured import Finite, Positive

ROTATIONS = (0, 90, 180, 270)


@dataclass(frozen=True)
class Camera:
    """One input of a policy, by name, and how its upright image must be turned.

    Attributes:
        name: of the camera, and the first part of its topic.
        rotation_deg: 0, 90, 180 or 270, anticlockwise.
    """

    name: str
    rotation_deg: int = 0


@dataclass(frozen=True)
class ImageSpec:
    """The size of a picture and its normalisation, (value / 255 - mean) / std.

    Attributes:
        size: side of the square that the policy sees (px).
        mean: of the normalisation.
        std: of the normalisation.
    """

    size: Annotated[int, Meta(ge=8, le=4096)]
    mean: Finite = 0.5
    std: Positive = 0.5


def check_image(name: str, image: object, size: int) -> NDArray[np.uint8]:
    """Returns the image as it is if it is a square RGB uint8 array [H, W, 3] of at least `size` pixels.

    Raises:
        PolicyInputError: it is not; the sentence names the camera.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise PolicyInputError(f"The {name} image is of type {kind}; the policy reads 8-bit RGB (uint8).")
    if image.ndim != 3 or image.shape[2] != 3:
        raise PolicyInputError(
            f"The {name} image has shape {list(image.shape)}; the policy reads [height, width, 3] RGB."
        )
    height, width = image.shape[:2]
    if height != width:
        raise PolicyInputError(
            f"The {name} image is {width}x{height} pixels; the policy was trained on square images. "
            "Crop it to a square in the camera driver."
        )
    if height < size:
        raise PolicyInputError(
            f"The {name} image is {width}x{height} pixels, smaller than the {size}x{size} the policy sees. "
            "Raise the camera's resolution."
        )
    return image


def resize(picture: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """RGB uint8 [H, W, 3] at `size` x `size`, bilinear with antialias (for training as well)."""
    if picture.shape[:2] == (size, size):
        return picture
    image = Image.fromarray(np.ascontiguousarray(picture))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def preprocess(
    images: Mapping[str, NDArray[np.uint8]], cameras: tuple[Camera, ...], spec: ImageSpec
) -> NDArray[np.float32]:
    """Turns, resizes (bilinear with antialias) and normalises: float32 [cameras, 3, size, size].

    Raises:
        PolicyInputError: as `pictures`.
    """
    return normalise(pictures(images, cameras, spec), spec)


def normalise(pictures: NDArray[np.uint8], spec: ImageSpec) -> NDArray[np.float32]:
    """Pictures [N, size, size, 3] as the vision tower takes them: float32 [N, 3, size, size]."""
    out = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)).astype(np.float32)
    out /= 255.0
    out -= spec.mean
    out /= spec.std
    return out


def pictures(
    images: Mapping[str, NDArray[np.uint8]], cameras: tuple[Camera, ...], spec: ImageSpec
) -> NDArray[np.uint8]:
    """Turns and resizes: uint8 [cameras, size, size, 3], what a policy sees before it is normalised.

    Raises:
        PolicyInputError: a camera is missing or its image unfit; extra images are refused too, since a
            camera that nobody reads is a wiring mistake.
    """
    names = [camera.name for camera in cameras]
    missing = [name for name in names if name not in images]
    if missing:
        raise PolicyInputError(f"No image from camera {missing[0]!r}; this policy needs {', '.join(names)}.")
    extra = sorted(set(images) - set(names))
    if extra:
        raise PolicyInputError(f"Unknown camera {extra[0]!r}; this policy reads {', '.join(names)} only.")
    out = np.empty((len(cameras), spec.size, spec.size, 3), np.uint8)
    for row, camera in zip(out, cameras, strict=True):
        pixels = check_image(camera.name, images[camera.name], spec.size)
        turned = np.rot90(pixels, camera.rotation_deg // 90)
        row[:] = resize(turned, spec.size)
    return out
