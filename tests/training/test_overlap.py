"""Images that sets share, found and told."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model_store.manifest import PreprocessSpec
from training.config import Recipe
from training.datasets import ImageSet, load_set
from training.overlap import Overlap, digests, overlaps, records
from training.pipeline import Run
from training.progress import silent

CPU = torch.device("cpu")


def _set(name: str, pixels: np.ndarray, fitted: int = 0) -> ImageSet:
    n = len(pixels)
    return ImageSet(name, pixels, np.arange(n), np.arange(n) % 2, ("cat", "dog"), "lossless", "0" * 64, fitted)


@pytest.fixture
def pixels() -> np.ndarray:
    """Twenty images, 3 and 8 the same, 4 another than 5 in one bit."""
    drawn = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3), dtype=np.uint8)
    drawn[8] = drawn[3]
    drawn[5] = drawn[4]
    drawn[5, 3, 3, 2] ^= 1
    return drawn


@pytest.fixture
def sets(pixels: np.ndarray) -> dict[str, ImageSet]:
    """Trained on the first eight, calibrated on the next four; 12 to 19 are in neither."""
    train = _set("mine/train", pixels[:12])
    return {"train": train.subset(np.arange(8)), "calibration": train.subset(np.arange(8, 12))}


def test_shared_images_are_counted_by_role(sets: dict[str, ImageSet], pixels: np.ndarray) -> None:
    sets["outliers"] = _set("outliers", pixels[[12, 6, 13, 6, 10]])  # 6 twice; 10 is held out, and known all the same
    sets["test"] = _set("test", pixels[14:])
    sets["ood far"] = _set("far", pixels[[15, 16, 0]])
    sets["ood near"] = _set("near", pixels[[15, 13, 12]])  # two outliers, which are trained on as well
    assert overlaps(sets) == {
        "calibration": Overlap("calibration", "mine/train", 4, 1, "mine/train[8]", "mine/train[3] (dog)"),
        "outliers": Overlap("outliers", "outliers", 5, 3, "outliers[1]", "mine/train[6] (cat)"),
        "ood far": Overlap("ood far", "far", 3, 1, "far[2]", "mine/train[0] (cat)"),
        "ood near": Overlap("ood near", "near", 3, 2, "near[1]", "outliers[2]"),
    }


def test_images_that_differ_in_one_bit_are_two(sets: dict[str, ImageSet], pixels: np.ndarray) -> None:
    sets["train"] = sets["train"].subset(np.array([0, 4]))
    sets["test"] = _set("test", pixels[[5, 14]])
    assert "test" not in overlaps(sets)
    sets["test"] = _set("test", pixels[[4, 14]])
    assert overlaps(sets)["test"].shared == 1


def test_overlap_is_told_in_a_line() -> None:
    one = Overlap("ood cifar100", "cifar100/test", 10000, 1, "cifar100/test[1934]", "cifar10/train[10885] (dog)")
    assert str(one) == (
        "ood cifar100: 1 of 10,000 images of cifar100/test is a training image or outlier, pixel for pixel; "
        "cifar100/test[1934] is cifar10/train[10885] (dog)"
    )
    assert "cifar100/test are training images or outliers, pixel" in str(replace(one, shared=2000))
    assert "images of cifar100/test are training images, pixel" in str(replace(one, shared=2000, role="outliers"))


def test_digests_are_of_the_rows_of_a_memory_map(pixels: np.ndarray, tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "pixels", np.uint8, mode="w+", shape=pixels.shape)
    mapped[:] = pixels
    rows = np.array([8, 2, 3])
    expected = digests(_set("in memory", pixels[rows]))
    np.testing.assert_array_equal(digests(_set("mapped", mapped).subset(rows)), expected)
    assert expected[0] == expected[2] != expected[1]


def test_records_hold_the_counts(sets: dict[str, ImageSet], pixels: np.ndarray) -> None:
    sets["test"] = _set("test", pixels[:3], fitted=2)
    found = {record.role: record for record in records(sets, overlaps(sets))}
    assert (found["test"].images, found["test"].in_training, found["test"].fitted) == (3, 3, 2)
    assert (found["calibration"].in_training, found["train"].in_training) == (1, 0)
    assert found["train"].uneven_classes is None
    sets["train"] = sets["train"].subset(np.arange(5))
    assert records(sets, {})[0].uneven_classes == (3, 2)


def test_run_warns_of_shared_and_counts_fitted_images_before_it_trains(
    tiny: Recipe, image_sets: Path, preprocess: PreprocessSpec, tmp_path: Path
) -> None:
    """The same picture as a file of other bytes, and one of another size."""
    for path in image_sets.iterdir():
        (tmp_path / path.name).symlink_to(path)
    train = load_set("cifar10/train", image_sets, preprocess, None)
    (tmp_path / "far").mkdir()
    for row, pixels in enumerate(train.images[[5, 150]]):
        Image.fromarray(pixels).save(tmp_path / f"far/{row}.bmp")
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / "far/2.png")
    data = tiny.data.model_copy(update={"far_ood": {"far": "far"}})
    said: list[str] = []
    run = Run(tiny.model_copy(update={"data": data}), tmp_path, tmp_path / "run", CPU, silent, said.append)
    run.check()
    assert "far: 1 of 3 images had another size, fitted to 32x32" in said
    (warning,) = [line for line in said if line.startswith("warning")]
    assert (
        f"ood far: 2 of 3 images of far are training images or outliers, pixel for pixel; {tmp_path / 'far/0.bmp'} is"
        in warning
    )
    assert f"{tmp_path / 'cifar10/train'}/airplane/" in warning
    assert warning.endswith("(airplane)")
    recorded = {record.role: record for record in run.sets.records}
    assert (recorded["ood far"].in_training, recorded["ood far"].fitted) == (2, 1)


def test_sets_of_the_tests_share_nothing(tiny: Recipe, image_sets: Path, tmp_path: Path) -> None:
    said: list[str] = []
    Run(tiny, image_sets, tmp_path, CPU, silent, said.append).check()
    assert {line.partition(" ")[0] for line in said} == {"reading"}
