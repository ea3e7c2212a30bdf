"""What is captured goes into `ood-train` as it lies: as outliers, or as a further class."""

import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from model_store import images
from service.capture.folder import CaptureFolder
from service.capture.record import Record
from training.config import RECIPES, read_recipe
from training.datasets import load_set
from training.distributed import ALONE
from training.errors import DataError
from training.run_sets import RunSets

Make = Callable[..., Record]


@pytest.fixture
def data(tmp_path: Path, image_sets: Path) -> Path:
    """A data folder with the training images, beside which images are captured."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cifar10").symlink_to(image_sets / "cifar10")
    return tmp_path / "data"


@pytest.fixture
def captured(data: Path, write, encode, record: Make) -> Callable[..., None]:
    """Capture, in `data/captured`, 20 flagged images of one form and 5 others to compare with."""

    def capture(form: str) -> None:
        folder = CaptureFolder(data / "captured", max_bytes=2**30, max_age=timedelta(days=1))
        kinds = ["flagged"] * 20 + ["control"] * 5
        write(folder, [record(at, kind=kind, content=encode(at, form)) for at, kind in enumerate(kinds)], batch=9)

    return capture


def sets(data: Path, tmp_path: Path, **changes: str) -> RunSets:
    """Return what the tiny recipe would train on, with captured images as outliers."""
    text = (RECIPES / "tiny.toml").read_text()
    path = tmp_path / "recipe.toml"
    for key, value in changes.items():
        text = text.replace("[data]", f"[data]\n{key} = {value}")
    path.write_text(text.replace('outliers = "outliers/train"', 'outliers = "captured/cifar10@1/flagged"'))
    recipe = read_recipe(path)
    return RunSets(recipe, data, lambda _: None, ALONE)


def test_flagged_images_are_outliers(data: Path, captured, tmp_path: Path, encode) -> None:
    captured("PNG")
    found = sets(data, tmp_path)
    assert found.outliers is not None
    assert (len(found.outliers), found.outliers.encoding, found.outliers.fitted) == (20, "lossless", 0)
    sent = {images.decode(encode(at)).tobytes() for at in range(20)}
    assert {image.tobytes() for image in found.outliers.images} == sent


def test_jpeg_beside_lossless_training_images_is_refused_with_what_to_do(data: Path, captured, tmp_path: Path) -> None:
    captured("JPEG")
    refusal = r"cifar10/train: lossless, captured/cifar10@1/flagged: jpeg.*data\.reencode_jpeg_quality in the recipe"
    with pytest.raises(DataError, match=refusal):
        _ = sets(data, tmp_path).outliers
    alike = sets(data, tmp_path, reencode_jpeg_quality="90")
    assert alike.outliers is not None
    assert (len(alike.outliers), alike.outliers.encoding, alike.train.encoding) == (20, "jpeg90", "jpeg90")


def test_captures_of_several_encodings_are_refused_as_such(data: Path, captured, tmp_path: Path) -> None:
    captured("PNG")
    captured("WEBP")
    with pytest.raises(DataError, match=r"flagged: lossless\+webp"):
        _ = sets(data, tmp_path).outliers


def test_a_captured_folder_is_a_further_class(data: Path, captured, tmp_path: Path, image_sets: Path) -> None:
    captured("PNG")
    shutil.copytree(image_sets / "cifar10" / "train", data / "mine")
    shutil.copytree(data / "captured" / "cifar10@1" / "flagged", data / "mine" / "zebra")
    found = load_set("mine", data, read_recipe(Path("tiny")).preprocess, None)
    assert found.classes[-2:] == ("truck", "zebra")
    assert (found.labels == 10).sum() == 20
    assert found.encoding == "lossless"
