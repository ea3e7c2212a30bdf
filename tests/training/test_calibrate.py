"""The held-out images as they are sent: which are JPEG, and the threshold that follows."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from training.augment_spec import JpegShare
from training.calibrate import as_sent
from training.datasets import ImageSet


def _reread(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=2)
    return np.asarray(Image.open(buffer))


@pytest.fixture(scope="module")
def images(train_set: ImageSet) -> NDArray[np.uint8]:
    return train_set.images[:60]


def test_share_of_images_is_sent_as_jpeg_of_the_qualities_asked_for(images: NDArray[np.uint8]) -> None:
    sent = as_sent(images, JpegShare(share=0.4, quality_min=70, quality_max=72), seed=0)
    changed = np.flatnonzero((sent != images).any(axis=(1, 2, 3)))
    assert 12 < len(changed) < 36  # 24 of 60 expected, with a standard deviation of 3.8
    qualities = [
        [quality for quality in (70, 71, 72) if np.array_equal(sent[index], _reread(images[index], quality))]
        for index in changed
    ]
    assert all(qualities)
    assert {quality for found in qualities for quality in found} == {70, 71, 72}


def test_form_of_an_image_is_drawn_apart_from_the_others(images: NDArray[np.uint8]) -> None:
    """Binomial, so that calibration images are independent draws: a fixed number would have no variance."""
    spec, few = JpegShare(share=0.5, quality_min=50, quality_max=50), images[:20]
    counts = [int((as_sent(few, spec, seed) != few).any(axis=(1, 2, 3)).sum()) for seed in range(100)]
    assert np.mean(counts) == pytest.approx(10, abs=1.2)
    assert np.var(counts) == pytest.approx(5, rel=0.5)
    assert all((as_sent(few, spec.model_copy(update={"share": 1}), seed=0) != few).any(axis=(1, 2, 3)))


def test_images_are_sent_as_they_are_without_a_share(images: NDArray[np.uint8]) -> None:
    assert as_sent(images, None, seed=0) is images
    np.testing.assert_array_equal(as_sent(images, JpegShare(share=0, quality_min=1, quality_max=2), seed=0), images)


def test_seed_draws_which_are_jpeg(images: NDArray[np.uint8]) -> None:
    spec, before = JpegShare(share=0.5, quality_min=60, quality_max=100), images.copy()
    first, again, other = (as_sent(images, spec, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    np.testing.assert_array_equal(images, before)
