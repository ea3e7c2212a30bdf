import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model_store.manifest import PreprocessSpec
from training.datasets import ImageSet, load_set
from training.errors import DataError
from training.set_roles import require_classes, require_one_encoding, require_same_classes

Write = Callable[..., Path]


def test_empty_class_is_refused(image_sets: Path, tmp_path: Path, preprocess: PreprocessSpec) -> None:
    shutil.copytree(image_sets / "cifar10" / "train", tmp_path / "train")
    (tmp_path / "train" / "zebra").mkdir()
    with pytest.raises(DataError, match="no images of class zebra"):
        require_classes(load_set("train", tmp_path, preprocess, None), 11)


def test_one_class_is_refused(outliers: ImageSet) -> None:
    with pytest.raises(DataError, match="has 1 classes"):
        require_classes(outliers, 1)


def test_two_classes_of_one_name_are_refused(labelled_npz: Write, preprocess: PreprocessSpec) -> None:
    folder = labelled_npz([0, 1, 2, 3], ["airplane", "bird", "airplane", "cat"])
    with pytest.raises(DataError, match="set has more than one class named airplane; give each"):
        require_classes(load_set("set", folder, preprocess, None), 4)


def test_another_number_of_classes_is_refused(train_set: ImageSet) -> None:
    with pytest.raises(DataError, match=r"has 10 classes.*network has 100"):
        require_classes(train_set, 100)


def test_roles_of_different_encodings_are_refused(
    tmp_path: Path, jpeg_folder: Write, train_set: ImageSet, preprocess: PreprocessSpec
) -> None:
    jpeg_folder(tmp_path / "outliers", train_set)
    as_jpeg = load_set("outliers", tmp_path, preprocess, None)
    with pytest.raises(DataError, match=r"cifar10/train: lossless, outliers: jpeg.*reencode_jpeg_quality"):
        require_one_encoding([train_set, as_jpeg])
    require_one_encoding([train_set, train_set])


def test_roles_that_are_re_encoded_alike_are_allowed(
    tmp_path: Path, image_sets: Path, jpeg_folder: Write, train_set: ImageSet, preprocess: PreprocessSpec
) -> None:
    jpeg_folder(tmp_path / "outliers", train_set)
    roles = [load_set("outliers", tmp_path, preprocess, 80), load_set("cifar10/train", image_sets, preprocess, 80)]
    require_one_encoding(roles)
    assert not np.array_equal(roles[1].images, train_set.images)


def test_a_set_of_mixed_encodings_is_refused(
    tmp_path: Path, jpeg_folder: Write, train_set: ImageSet, preprocess: PreprocessSpec
) -> None:
    jpeg_folder(tmp_path / "mixed", train_set)
    Image.fromarray(train_set.images[9]).save(tmp_path / "mixed" / "9.png")
    with pytest.raises(DataError, match=r"jpeg\+lossless"):
        require_one_encoding([load_set("mixed", tmp_path, preprocess, None)])


def test_test_images_of_other_classes_or_in_another_order_are_refused(train_set: ImageSet) -> None:
    require_same_classes(train_set, train_set)
    others = replace(train_set, name="test", classes=train_set.classes[::-1])
    with pytest.raises(DataError, match=r"test has classes \('truck', .*; cifar10/train has \('airplane', "):
        require_same_classes(others, train_set)
