"""Images held out of a training set, of each class its share."""

import numpy as np
from numpy.typing import NDArray

from training.datasets import ImageSet
from training.errors import DataError


def class_shares(counts: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    """Share out `rows` among classes of so many images, each its part; what rounding leaves, to who lost most by it."""
    exact = counts * (rows / counts.sum())
    shares: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    shares[np.argsort(shares - exact, kind="stable")[: rows - shares.sum()]] += 1
    return shares


def split_calibration(train: ImageSet, calibration_images: int, seed: int) -> tuple[ImageSet, ImageSet]:
    """Split a training set, seeded, into (what is trained on, what calibrates): of each class its share.

    A threshold's guarantee is for images of the classes' shares that calibrate: so many of each are held out.

    Raises:
        DataError: a class would have no image left to train on.
    """
    return _hold_out(train, calibration_images, np.random.default_rng(seed), "calibration_images")


def split_validation(train: ImageSet, validation_images: int, seed: int) -> tuple[ImageSet, ImageSet]:
    """Split what is trained on once more, alike, into (what a trial is trained on, what it is judged by).

    Raises:
        DataError: a class would have no image left to train on.
    """
    return _hold_out(train, validation_images, np.random.default_rng([seed, 1]), "validation_images")


def _hold_out(train: ImageSet, images: int, generator: np.random.Generator, key: str) -> tuple[ImageSet, ImageSet]:
    chosen = []
    for label, share in enumerate(class_shares(np.bincount(train.labels, minlength=len(train.classes)), images)):
        members = np.flatnonzero(train.labels == label)
        if share >= len(members):
            raise DataError(
                f"{train.name} has {len(members)} images of class {train.classes[label]}; holding out {share} of them "
                f"({key} = {images}) leaves none to train on"
            )
        chosen.append(generator.choice(members, share, replace=False))
    held_out = np.sort(np.concatenate(chosen))
    return train.subset(np.setdiff1d(np.arange(len(train)), held_out)), train.subset(held_out)
