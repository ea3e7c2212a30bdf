import numpy as np
import pytest
import torch
from PIL import Image

from training.augment import _flip_and_crop, _jpeg_share, _noisy, _resize_share, augment
from training.augment_spec import AugmentSpec, JpegShare, ResizeAugment
from training.batches import LabelledBatches, OutlierBatches
from training.datasets import ImageSet
from training.resampling import KERNELS, rescale

PILLOW = {
    "nearest": Image.Resampling.NEAREST,
    "area": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
NOTHING = AugmentSpec(flip=False, crop_padding=0)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def images(train_set: ImageSet) -> torch.Tensor:
    return torch.from_numpy(train_set.images[:60])


def _through_pillow(image: np.ndarray, scale: float, kernel: str) -> np.ndarray:
    height, width = image.shape[:2]
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(image).resize(small, PILLOW[kernel]).resize((width, height), PILLOW[kernel]))


def _rescaled(images: np.ndarray, scales: torch.Tensor, kernel: str) -> np.ndarray:
    kernels = torch.full((len(images),), KERNELS.index(kernel))
    return rescale(torch.from_numpy(images), scales, kernels).numpy().astype(int)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (3, 100), (1, 1)])
@pytest.mark.parametrize(("kernel", "ties"), [("area", 0.05), ("bilinear", 0), ("bicubic", 0)])
def test_rescaling_is_pillows_within_rounding(size: tuple[int, int], kernel: str, ties: float) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, *size, 3), dtype=np.uint8)
    scales = torch.linspace(0.2, 1.0, 40)
    found = _rescaled(images, scales, kernel)
    expected = [_through_pillow(image, float(scale), kernel) for image, scale in zip(images, scales, strict=True)]
    assert (np.abs(found - np.stack(expected)) > 2).mean() <= ties


def test_nearest_takes_the_pixel_under_the_centre_exactly() -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 33, 47, 3), dtype=np.uint8)
    scales = torch.linspace(0.2, 1.0, 40)
    found = _rescaled(images, scales, "nearest")
    for image, scale, shown in zip(images, scales.tolist(), found, strict=True):
        index = []
        for side in (33, 47):
            small = round(side * scale)
            down = [(2 * i + 1) * side // (2 * small) for i in range(small)]
            index.append([down[(2 * i + 1) * small // (2 * side)] for i in range(side)])
        np.testing.assert_array_equal(shown, image[np.ix_(*index)])


def test_every_image_has_a_scale_and_a_kernel_of_its_own(images: torch.Tensor) -> None:
    scale, kernel = torch.linspace(0.3, 0.9, 60), torch.arange(60) % 4
    together = rescale(images, scale, kernel)
    alone = torch.cat([rescale(images[i : i + 1], scale[i : i + 1], kernel[i : i + 1]) for i in range(0, 60, 7)])
    assert (together[::7].int() - alone.int()).abs().max() <= 1  # sums of floats in another order
    assert torch.equal(rescale(images, torch.ones(60), kernel), images)


RESIZE = ResizeAugment(share=0.5, scale_min=0.3, scale_max=0.6)


def test_augmentation_resizes_its_share_of_the_batch(images: torch.Tensor) -> None:
    found = augment(images, NOTHING.model_copy(update={"resize": RESIZE}), _generator())
    assert int((found != images).flatten(1).any(1).sum()) == 30


def test_every_image_draws_its_scale_and_its_kernel_uniformly(images: torch.Tensor) -> None:
    """Of 32 pixels, shares of 0.3 to 0.6 leave 10 to 19: which size and kernel it was is seen from the result."""
    scales = (torch.arange(10, 20) / 32).repeat(4)
    known = rescale(images[:1].expand(40, 32, 32, 3), scales, torch.arange(40) // 10)
    place = {image.numpy().tobytes(): at for at, image in enumerate(known)}
    assert len(place) == 40
    spec = NOTHING.model_copy(update={"resize": RESIZE.model_copy(update={"share": 1.0})})
    found = augment(images[:1].expand(1000, 32, 32, 3), spec, _generator())
    drawn = np.array([place[image.numpy().tobytes()] for image in found])
    np.testing.assert_allclose(np.bincount(drawn // 10, minlength=4), 250, atol=55)  # 4 sigma
    np.testing.assert_allclose(np.bincount(drawn % 10)[1:9], 1000 / 9.6, atol=39)  # 11 to 18, of 9.6 to 19.2; 4 sigma


def test_absent_resize_draws_nothing(images: torch.Tensor) -> None:
    """Recipes without it train on the very images they had before there was any."""
    jpeg = JpegShare(share=0.5, quality_min=50, quality_max=100)
    spec = AugmentSpec(noise_sd_max=8, jpeg=jpeg)
    generator, other = _generator(), _generator()
    expected = _jpeg_share(_noisy(_flip_and_crop(images, spec, other), 8, other), jpeg, other)
    assert torch.equal(augment(images, spec, generator), expected)
    assert torch.equal(generator.get_state(), other.get_state())


def test_resize_goes_before_all_else(images: torch.Tensor) -> None:
    jpeg = JpegShare(share=1, quality_min=30, quality_max=30)
    spec = AugmentSpec(noise_sd_max=8, jpeg=jpeg, resize=RESIZE)
    other = _generator()
    resized = _resize_share(images, RESIZE, other)
    expected = _jpeg_share(_noisy(_flip_and_crop(resized, spec, other), 8, other), jpeg, other)
    assert torch.equal(augment(images, spec, _generator()), expected)


def test_both_roles_are_resized_alike(train_set: ImageSet, outliers: ImageSet) -> None:
    spec = NOTHING.model_copy(update={"resize": RESIZE.model_copy(update={"share": 0.4})})
    labelled = LabelledBatches(train_set, 50, spec, torch.device("cpu"))
    batch = next(iter(OutlierBatches(labelled, outliers, 50, seed=0)(_generator())))
    originals = {image.tobytes() for image in [*train_set.images, *outliers.images]}
    kept = [image.numpy().tobytes() in originals for image in batch.images]
    assert (sum(kept[:50]), sum(kept[50:])) == (30, 30)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"share": 0.5, "scale_min": 0.0, "scale_max": 1.0}, "scale_min"),
        ({"share": 0.5, "scale_min": 0.5, "scale_max": 1.5}, "scale_max"),
        ({"share": 0.5, "scale_min": 0.9, "scale_max": 0.5}, "scale_min is 0.9, above scale_max 0.5"),
        ({"share": 1.5, "scale_min": 0.5, "scale_max": 0.5}, "share"),
    ],
)
def test_resize_that_cannot_be_is_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResizeAugment(**fields)
