import numpy as np
import pytest
import torch

from training.datasets import ImageSet
from training.synthetic_outliers import (
    KINDS,
    Kind,
    inversion,
    jigsaw,
    make_outliers,
    pixelation,
    rgb_ghost,
    speckle,
    synthetic_outliers,
    uniform_noise,
    warp,
)
from training.validation_outliers import VALIDATION_KINDS, validation_outliers


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def images(train_set: ImageSet) -> torch.Tensor:
    return torch.from_numpy(train_set.images[:90])


def _flat(level: int, n: int = 1, size: int = 32) -> torch.Tensor:
    return torch.full((n, size, size, 3), level, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("arithmetic_mean", [50, 104, 128]), ("geometric_mean", [0, 30, 127])],  # halves go to even: 50.5, 104.5, 127.5
)
def test_pairs_are_mixed_value_by_value(kind: Kind, expected: list[int]) -> None:
    first = torch.tensor([[[[0, 200, 255]]]], dtype=torch.uint8)
    second = torch.tensor([[[[101, 9, 0]]]], dtype=torch.uint8)
    if kind == "geometric_mean":
        first, second = (torch.tensor([[[row]]], dtype=torch.uint8) for row in ([0, 100, 255], [101, 9, 63]))
    assert make_outliers(kind, first, second, _generator()).flatten().tolist() == expected


def test_jigsaw_moves_every_quarter_and_each_image_its_own_way() -> None:
    quarter = torch.arange(256, dtype=torch.uint8).view(16, 16, 1)
    image = torch.cat([torch.cat([quarter, quarter], 1), torch.cat([quarter, quarter], 1)])
    index = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8).repeat_interleave(16, 0).repeat_interleave(16, 1)
    image = torch.cat([image, index[..., None], image], dim=2)
    found = jigsaw(image.expand(300, 32, 32, 3), _generator())
    assert torch.equal(found[..., 0], image[..., 0].expand(300, 32, 32))  # within a quarter nothing moves
    orders = found[:, ::16, ::16, 1].flatten(1)
    assert all(sorted(order) == [1, 2, 3, 4] for order in orders.tolist())
    assert not (orders == torch.tensor([1, 2, 3, 4])).any()
    assert len({tuple(order) for order in orders.tolist()}) == 9  # all derangements of four


def test_jigsaw_of_odd_sides_leaves_the_middle() -> None:
    image = torch.arange(7 * 5 * 3, dtype=torch.uint8).view(1, 7, 5, 3)
    found = jigsaw(image, _generator())
    assert torch.equal(found[:, 3], image[:, 3])
    assert torch.equal(found[:, :, 2], image[:, :, 2])
    assert torch.equal(found.flatten().sort().values, image.flatten().sort().values)


def test_uniform_noise_spans_a_standard_deviation_around_the_mean_of_each_channel() -> None:
    """Channels of 0 and 100, of 40 throughout, and of 190 and 255: means 50, 40, 222.5; deviations 50, 0, 32.5."""
    halves = torch.arange(64 * 64 * 4).view(4, 64, 64, 1) % 2
    images = torch.cat([100 * halves, 40 + 0 * halves, 190 + 65 * halves], dim=3).to(torch.uint8)
    found = uniform_noise(images, _generator()).flatten(0, 2).double()
    assert found.amin(dim=0).tolist() == [0, 40, 190]
    assert found.amax(dim=0).tolist() == [100, 40, 255]
    torch.testing.assert_close(found.mean(dim=0), torch.tensor([50, 40, 222.5]).double(), atol=0.9, rtol=0)  # 4 sigma
    deciles = torch.quantile(found[:, 0], torch.linspace(0.1, 0.9, 9).double())
    torch.testing.assert_close(deciles, torch.linspace(10, 90, 9).double(), atol=2, rtol=0)


def test_speckle_is_as_strong_as_the_image_is_bright() -> None:
    assert not speckle(_flat(0), _generator()).any()
    found = speckle(_flat(40, n=20), _generator()).double()
    shown = found[(found > 0) & (found < 255)]  # cut off at black one sigma below and never at white
    assert (found == 0).double().mean().item() == pytest.approx(0.1606, abs=0.01)  # P(e < -79/80) = 0.1617 - rounding
    assert torch.quantile(shown[:100000], 1.0).item() > 160  # three sigma above
    assert found.flatten()[:100001].median().item() == pytest.approx(40, abs=0.6)


def test_pixelation_averages_blocks_of_five() -> None:
    """Of 30 pixels a fifth is 6: blocks of 5 x 5."""
    image = torch.randint(256, (3, 30, 30, 3), generator=_generator(), dtype=torch.uint8)
    blocks = image.double().view(3, 6, 5, 6, 5, 3).mean(dim=(2, 4)).round()
    expected = blocks.repeat_interleave(5, 1).repeat_interleave(5, 2)
    assert (pixelation(image).double() - expected).abs().max() <= 1  # halves may go either way
    assert torch.equal(pixelation(_flat(7, size=3)), _flat(7, size=3))


def test_ghost_and_inversion_by_hand() -> None:
    image = torch.tensor([[[[1, 2, 3], [4, 5, 6]]]], dtype=torch.uint8)
    assert rgb_ghost(image).tolist() == [[[[5, 3, 1], [2, 6, 4]]]]
    assert inversion(image).tolist() == [[[[1, 253, 252], [4, 250, 249]]]]


def test_warp_moves_pixels_and_invents_none(images: torch.Tensor) -> None:
    assert torch.equal(warp(_flat(93, n=3), _generator()), _flat(93, n=3))
    columns = torch.arange(32, dtype=torch.uint8).mul(8).view(1, 1, 32, 1).expand(50, 32, 32, 3)
    found = warp(columns, _generator()).double() / 8
    moved = (found[..., 0] - torch.arange(32.0)).abs()
    assert moved.mean() > 3  # pixels, of a field with a deviation of 6.4, less what reflection takes
    assert (found[:, :, 1:] - found[:, :, :-1]).abs().max() < 16  # smooth
    changed = (warp(images, _generator()).double() - images).abs().mean(dim=(1, 2, 3))
    assert changed.min() > 2


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_keeps_shape_and_follows_its_generator(kind: Kind, images: torch.Tensor) -> None:
    kept = images.clone()
    first, again = (make_outliers(kind, images, images.roll(1, 0), _generator()) for _ in range(2))
    assert (first.dtype, first.shape) == (torch.uint8, images.shape)
    assert torch.equal(first, again)
    assert torch.equal(images, kept)
    assert (first != images).flatten(1).any(dim=1).all()


def test_a_batch_gives_equally_many_of_every_kind_and_of_every_image(images: torch.Tensor) -> None:
    """Images of one level each, far apart: constant images stay so but for noise, and say what they are made of."""
    levels = torch.arange(1, 31, dtype=torch.uint8)
    flat = levels.view(30, 1, 1, 1).expand(30, 32, 32, 3)
    found = synthetic_outliers(flat, 90, _generator())
    assert found.shape == (90, 32, 32, 3)
    by_kind = dict(zip(KINDS, found.split(10), strict=True))
    puzzles = by_kind["jigsaw"][:, 0, 0, 0]
    assert len(set(puzzles.tolist())) == 10  # each image at most once among 10 of 30
    assert torch.equal(by_kind["inversion"][..., 1], 255 - by_kind["inversion"][..., 0])
    assert (by_kind["uniform_noise"].flatten(1).double().std(dim=1) > 0).all()
    unmixed = [by_kind[kind][:, 0, 0, 0] for kind in ("jigsaw", "pixelation", "rgb_ghost", "inversion", "warp")]
    used = torch.bincount(torch.cat(unmixed).long(), minlength=31)[1:]
    assert used.max() <= 3  # 90 outliers of 30 images: three of each in all


POWERS = 2 ** torch.arange(2, 8)


def test_mixed_pairs_are_of_different_images() -> None:
    """Twice the mean of two levels is their sum: a power of two if they are equal."""
    flat = POWERS.to(torch.uint8).view(6, 1, 1, 1).expand(6, 4, 4, 3)
    for seed in range(20):
        mixed = dict(zip(KINDS, synthetic_outliers(flat, 54, _generator(seed)).split(6), strict=True))
        sums = 2 * mixed["arithmetic_mean"][:, 0, 0, 0].int()
        assert not torch.isin(sums, 2 * POWERS).any()


def test_one_image_alone_is_not_mixed() -> None:
    image = torch.randint(256, (1, 32, 32, 3), generator=_generator(), dtype=torch.uint8)
    found = synthetic_outliers(image, 14, _generator())
    assert found.shape == (14, 32, 32, 3)
    assert (found != image).flatten(1).any(dim=1).all()


def test_synthetic_outliers_follow_their_generator(images: torch.Tensor) -> None:
    first, again, other = (synthetic_outliers(images, 50, _generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_validation_outliers_are_the_papers_kinds_one_of_each_image(train_set: ImageSet) -> None:
    images = train_set.images[:40]
    found = validation_outliers(images, seed=3)
    assert tuple(found) == VALIDATION_KINDS == tuple(kind for kind in KINDS if kind != "warp")
    assert all((made.dtype, made.shape) == (np.uint8, images.shape) for made in found.values())
    again, other = validation_outliers(images, seed=3), validation_outliers(images, seed=4)
    assert all(np.array_equal(found[kind], again[kind]) for kind in found)
    drawn = {kind for kind in found if not np.array_equal(found[kind], other[kind])}
    assert drawn == {"uniform_noise", "arithmetic_mean", "geometric_mean", "jigsaw", "speckle"}
    np.testing.assert_array_equal(found["rgb_ghost"][7][..., 2], images[7][..., 0])
    np.testing.assert_array_equal(found["inversion"][7][..., 1], 255 - images[7][..., 1])


def test_validation_pairs_are_of_different_images() -> None:
    levels = POWERS.numpy()
    flat = np.broadcast_to(levels.astype(np.uint8)[:, None, None, None], (6, 4, 4, 3))
    for seed in range(20):
        partners = 2 * validation_outliers(flat, seed)["arithmetic_mean"][:, 0, 0, 0].astype(int) - levels
        assert sorted(partners) == list(levels)  # each image is another's partner once
        assert not (partners == levels).any()


@pytest.mark.parametrize(
    "images", [np.zeros((1, 4, 4, 3), np.uint8), np.zeros((2, 4, 4, 1), np.uint8), np.zeros((2, 4, 4, 3), np.float32)]
)
def test_what_is_no_set_of_images_is_refused(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \(N, H, W, 3\), N >= 2"):
        validation_outliers(images, seed=0)
