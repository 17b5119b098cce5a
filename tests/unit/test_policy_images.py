"""Images at the door and on their way to the vision tower."""

import numpy as np
import pytest
from PIL import Image

from dtvla.errors import PolicyInputError
from dtvla.policy.images import Camera, ImageSpec, preprocess

CAMERAS = (Camera("agentview"), Camera("wrist", 180))
SPEC = ImageSpec(28)


def pictures(size: int = 56) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.integers(0, 256, (size, size, 3), np.uint8) for name in ("agentview", "wrist")}


def test_pixels_come_out_in_camera_order_between_minus_one_and_one():
    images = pictures(28)
    out = preprocess(images, CAMERAS, SPEC)
    assert out.shape == (2, 3, 28, 28)
    assert out.dtype == np.float32
    expected = (images["agentview"].astype(np.float64) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(out[0], expected.transpose(2, 0, 1), atol=1e-6)


def test_a_camera_mounted_upside_down_is_turned():
    images = pictures(28)
    out = preprocess(images, CAMERAS, SPEC)
    expected = (images["wrist"][::-1, ::-1].astype(np.float64) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(out[1], expected.transpose(2, 0, 1), atol=1e-6)


def test_shrinking_averages_instead_of_dropping_pixels():
    """Without antialias a one-pixel checkerboard turns into plain black or white."""
    board = np.indices((56, 56)).sum(0) % 2 * 255
    image = np.repeat(board[..., None], 3, -1).astype(np.uint8)
    out = preprocess({"agentview": image, "wrist": image}, CAMERAS, SPEC)
    assert np.abs(out).max() < 0.2


def test_the_resize_is_the_one_of_training():
    image = pictures(100)["agentview"]
    small = np.asarray(Image.fromarray(image).resize((28, 28), Image.Resampling.BILINEAR))
    out = preprocess({"agentview": image, "wrist": image}, CAMERAS, SPEC)
    np.testing.assert_allclose(out[0], (small.transpose(2, 0, 1) / 255 - 0.5) / 0.5, atol=1e-6)


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (np.zeros((56, 56, 3), np.float32), "type float32"),
        (None, "type NoneType"),
        (np.zeros((56, 56), np.uint8), r"shape \[56, 56\]"),
        (np.zeros((56, 56, 4), np.uint8), r"shape \[56, 56, 4\]"),
        (np.zeros((48, 64, 3), np.uint8), "64x48 pixels.*square"),
        (np.zeros((0, 0, 3), np.uint8), "smaller than"),
        (np.zeros((20, 20, 3), np.uint8), "smaller than the 28x28"),
    ],
)
def test_an_unfit_image_is_refused_with_the_camera_named(image, sentence):
    with pytest.raises(PolicyInputError, match=f"wrist image.*{sentence}"):
        preprocess({**pictures(), "wrist": image}, CAMERAS, SPEC)


def test_a_missing_camera_is_refused_by_name():
    images = pictures()
    del images["wrist"]
    with pytest.raises(PolicyInputError, match="No image from camera 'wrist'"):
        preprocess(images, CAMERAS, SPEC)


def test_a_camera_that_nobody_reads_is_a_wiring_mistake():
    with pytest.raises(PolicyInputError, match="Unknown camera 'rear'"):
        preprocess({**pictures(), "rear": pictures()["wrist"]}, CAMERAS, SPEC)
