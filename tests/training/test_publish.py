"""Which golden images a bundle gets, and what they give away."""

from pathlib import Path

import numpy as np
import pytest

from model_store import images
from model_store.bundle import load_bundle
from model_store.predictor import Predictor, Scorer
from model_store.store import SHIPPED
from training.datasets import ImageSet
from training.publish import GOLDEN_IMAGES, LEAST_MARGIN, TOLERANCE, golden_images


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return load_bundle(SHIPPED / "cifar10" / "1").predictor


@pytest.mark.parametrize("temperature", [0.001, 0.8, 1.25, 2.0])
def test_golden_images_give_away_another_temperature(
    predictor: Predictor, train_set: ImageSet, temperature: float
) -> None:
    golden, files = golden_images(predictor, train_set)
    pixels = np.stack([images.load(files[image.file], predictor.scorer.preprocess) for image in golden])
    other = Scorer(predictor.scorer.runtime, predictor.scorer.preprocess, temperature)
    strays = np.abs(other.score(pixels).negative_energy - [image.negative_energy for image in golden])
    assert strays.max() > 2 * TOLERANCE


def test_golden_images_are_the_surest_of_each_class_and_the_least_sure_of_all(
    predictor: Predictor, train_set: ImageSet
) -> None:
    golden, files = golden_images(predictor, train_set)
    assert [Path(image.file).stem for image in golden[-2:]] == ["unsure-0", "unsure-1"]
    assert len(golden) == len(files) == GOLDEN_IMAGES
    scored = predictor.scorer.score(train_set.images)
    leading = np.sort(scored.logits.numpy(), axis=1)
    clear = leading[:, -1] - leading[:, -2] >= LEAST_MARGIN
    lowest = np.sort(scored.confidence[clear])[:2]
    pixels = np.stack([images.load(files[image.file], predictor.scorer.preprocess) for image in golden])
    replayed = predictor.scorer.score(pixels)
    np.testing.assert_allclose(replayed.confidence[-2:], lowest, atol=1e-4)
    assert replayed.confidence[:-2].min() > 0.99


def test_golden_images_are_the_same_each_time(predictor: Predictor, train_set: ImageSet) -> None:
    assert golden_images(predictor, train_set)[1] == golden_images(predictor, train_set)[1]
