import io

import numpy as np
import pytest
import torch
from PIL import Image

from training.augment import augment, jpeg
from training.config import AugmentSpec, JpegAugment
from training.datasets import ImageSet

NOTHING = AugmentSpec(flip=False, crop_padding=0)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def images(train_set: ImageSet) -> torch.Tensor:
    return torch.from_numpy(train_set.images[:100])


def test_no_augmentation_changes_nothing(images: torch.Tensor) -> None:
    assert torch.equal(augment(images, NOTHING, _generator()), images)


def test_every_image_is_flipped_or_not_on_its_own(images: torch.Tensor) -> None:
    found = augment(images, AugmentSpec(flip=True, crop_padding=0), _generator())
    flipped = [torch.equal(a, b.flip(1)) for a, b in zip(found, images, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(found, images, strict=True)]
    assert all(a or b for a, b in zip(flipped, kept, strict=True))
    assert 30 <= sum(flipped) <= 70  # binomial(100, 1/2): 4 sigma


def test_every_image_is_cropped_on_its_own_from_a_zero_padding(images: torch.Tensor) -> None:
    found = augment(images, AugmentSpec(flip=False, crop_padding=4), _generator())
    padded = np.pad(images.numpy(), ((0, 0), (4, 4), (4, 4), (0, 0)))
    offsets = set()
    for crop, source in zip(found.numpy(), padded, strict=True):
        matches = [
            (top, left)
            for top in range(9)
            for left in range(9)
            if np.array_equal(crop, source[top : top + 32, left : left + 32])
        ]
        assert matches
        offsets.add(matches[0])
    assert len(offsets) > 40  # of 81, drawn 100 times: about 57 expected
    assert {top for top, _ in offsets} == {left for _, left in offsets} == set(range(9))


def test_augmentation_follows_its_generator(images: torch.Tensor) -> None:
    spec = AugmentSpec(jpeg=JpegAugment(share=0.5, quality_min=50, quality_max=100))
    first, again, other = (augment(images, spec, _generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_jpeg_changes_its_share_of_the_batch(images: torch.Tensor) -> None:
    spec = NOTHING.model_copy(update={"jpeg": JpegAugment(share=0.3, quality_min=50, quality_max=60)})
    found = augment(images, spec, _generator())
    assert int((found != images).flatten(1).any(1).sum()) == 30


@pytest.mark.parametrize("quality", [100, 95, 90, 75, 50, 30, 10])
def test_jpeg_is_libjpegs_within_rounding(images: torch.Tensor, quality: int) -> None:
    found = jpeg(images, torch.full((len(images),), quality)).numpy().astype(int)
    expected = np.stack([_through_pillow(image, quality) for image in images.numpy()])
    # What JPEG itself takes away at these qualities is 2 to 15 grey levels on average.
    assert np.abs(found - expected).mean() < 0.5
    assert np.abs(images.numpy() - expected).mean() > 4 * np.abs(found - expected).mean()


def test_jpeg_takes_a_quality_for_each_image(images: torch.Tensor) -> None:
    quality = torch.arange(1, 101)
    together = jpeg(images, quality)
    alone = torch.cat([jpeg(images[i : i + 1], quality[i : i + 1]) for i in range(0, 100, 9)])
    assert torch.equal(together[::9], alone)


@pytest.mark.parametrize("size", [(33, 47), (1, 1), (224, 200)])
def test_jpeg_takes_any_size(size: tuple[int, int]) -> None:
    grid = np.linspace(0, 255, size[0] * size[1] * 3).reshape(1, *size, 3).astype(np.uint8)
    found = jpeg(torch.from_numpy(grid), torch.tensor([90])).numpy().astype(int)
    assert np.abs(found - _through_pillow(grid[0], 90)).mean() < 1.5


def _through_pillow(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(buffer)).astype(int)
