"""The tiny recipe, small sets, and a progress that says nothing."""

from pathlib import Path

import numpy as np
import pytest

from model_store.manifest import PreprocessSpec
from training.config import Recipe, read_recipe
from training.datasets import ImageSet, load_set


@pytest.fixture(scope="session")
def tiny() -> Recipe:
    return read_recipe(Path("tiny"))


@pytest.fixture(scope="session")
def preprocess(tiny: Recipe) -> PreprocessSpec:
    return tiny.preprocess


@pytest.fixture(scope="session")
def train_set(image_sets: Path, preprocess: PreprocessSpec) -> ImageSet:
    return load_set("cifar10/train", image_sets, preprocess, None)


@pytest.fixture(scope="session")
def outliers(image_sets: Path, preprocess: PreprocessSpec) -> ImageSet:
    return load_set("outliers/train", image_sets, preprocess, None)


@pytest.fixture
def labelled_npz(tmp_path: Path):
    """Write `<tmp_path>/set.npz` of random images with the labels given."""

    def write(labels: list[int], classes: list[str] | None = None, **more: object) -> Path:
        images = np.random.default_rng(0).integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
        named = {} if classes is None else {"classes": np.array(classes)}
        np.savez(tmp_path / "set.npz", **({"images": images, "labels": np.array(labels, np.int64)} | named | more))
        return tmp_path

    return write
