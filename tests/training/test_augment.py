import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from training.augment import _flip_and_crop, _jpeg_share, augment, jpeg
from training.augment_spec import AugmentSpec, JpegShare
from training.batches import LabelledBatches, OutlierBatches
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


def test_cutout_greys_one_square_around_a_pixel_of_each_image() -> None:
    images = torch.full((4000, 32, 32, 3), 7, dtype=torch.uint8)
    found = augment(images, AugmentSpec(flip=False, crop_padding=0, cutout=16), _generator())
    grey = found == 128
    assert torch.equal(grey, found != 7)
    assert torch.equal(grey.all(dim=-1), grey.any(dim=-1))  # of all channels or none
    tall, wide = (grey.any(dim=-1).any(dim=dim).sum(dim=1) for dim in (2, 1))
    assert torch.equal(grey.sum(dim=(1, 2, 3)), 3 * tall * wide)  # a rectangle, since it has as many as its sides say
    for side in (tall, wide):
        assert int(side.min()) == 8  # half of it outside
        assert int(side.max()) == 16  # all inside
        # Centres 8 to 24 leave it whole; 0 to 7 leave 8 to 15 pixels, 25 to 31 leave 15 to 9.
        assert side.float().mean() == pytest.approx((17 * 16 + sum(range(8, 16)) + sum(range(9, 16))) / 32, abs=0.2)


def test_cutout_comes_before_noise() -> None:
    spec = AugmentSpec(flip=False, crop_padding=0, cutout=64, noise_sd_max=32)  # more than covers the image
    found = augment(torch.zeros(10, 32, 32, 3, dtype=torch.uint8), spec, _generator()).float()
    assert found.std(dim=(1, 2, 3)).max() > 5
    assert found.mean() == pytest.approx(128, abs=1)


def test_augmentation_follows_its_generator(images: torch.Tensor) -> None:
    spec = AugmentSpec(jpeg=JpegShare(share=0.5, quality_min=50, quality_max=100))
    first, again, other = (augment(images, spec, _generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


NOISY = AugmentSpec(flip=False, crop_padding=0, noise_sd_max=32)


def _grey(n: int, level: int = 128) -> torch.Tensor:
    return torch.full((n, 32, 32, 3), level, dtype=torch.uint8)


def test_every_image_draws_its_noises_sd_uniformly() -> None:
    found = augment(_grey(2000), NOISY, _generator())
    assert (found.dtype, found.shape) == (torch.uint8, (2000, 32, 32, 3))
    noise = found.double() - 128
    deciles = np.quantile(noise.std(dim=(1, 2, 3)).numpy(), np.linspace(0.1, 0.9, 9))
    np.testing.assert_allclose(deciles, np.linspace(3.2, 28.8, 9), atol=1.5)  # 4 sigma of the median: 1.43
    assert abs(noise.mean().item()) < 0.03  # 32 / sqrt(3) over 2,000 images of 3,072 values: sigma is 0.0075
    neighbours = torch.corrcoef(noise.reshape(2000, -1)[:, :2].T)[0, 1]
    assert abs(neighbours.item()) < 0.13  # every value draws its own; 4 sigma, the tails being heavier: 0.12


def test_noise_ends_at_black_and_white() -> None:
    black, white = (augment(_grey(100, level), NOISY, _generator()) for level in (0, 255))
    assert black.min() == 0
    assert white.max() == 255
    assert black.max() < 200  # not around the corner: 6 sigma of 32
    assert white.min() > 55


def test_noise_follows_its_generator(images: torch.Tensor) -> None:
    first, again, other = (augment(images, NOISY, _generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_no_noise_draws_nothing(images: torch.Tensor) -> None:
    """Recipes without noise train on the very images they had before there was any."""
    spec = AugmentSpec(noise_sd_max=0, jpeg=JpegShare(share=0.5, quality_min=50, quality_max=100))
    generator, other = _generator(), _generator()
    expected = _jpeg_share(_flip_and_crop(images, spec, other), spec.jpeg, other)
    assert torch.equal(augment(images, spec, generator), expected)
    assert torch.equal(generator.get_state(), other.get_state())


def test_noise_goes_before_jpeg(images: torch.Tensor) -> None:
    spec = NOISY.model_copy(update={"jpeg": JpegShare(share=1, quality_min=30, quality_max=30)})
    noisy = augment(images, NOISY, _generator())
    assert torch.equal(augment(images, spec, _generator()), jpeg(noisy, torch.full((100,), 30)))


def test_outliers_get_the_noise_that_in_distribution_images_get(train_set: ImageSet, outliers: ImageSet) -> None:
    grey, grey_outliers = (replace(s, pixels=np.full_like(s.pixels, 128)) for s in (train_set, outliers))
    labelled = LabelledBatches(grey, 50, NOISY, torch.device("cpu"))
    batches = list(OutlierBatches(labelled, grey_outliers, 50, seed=0)(_generator()))
    for role in (slice(50), slice(50, None)):
        sd = torch.cat([batch.images[role] for batch in batches]).double().std(dim=(1, 2, 3))
        assert len(sd) == 200
        assert sd.mean().item() == pytest.approx(16, abs=2.7)  # 4 sigma of 200 draws
        assert sd.std().item() == pytest.approx(32 / 12**0.5, abs=1.5)


def test_jpeg_changes_its_share_of_the_batch(images: torch.Tensor) -> None:
    spec = NOTHING.model_copy(update={"jpeg": JpegShare(share=0.3, quality_min=50, quality_max=60)})
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
