"""Validation outliers: what margins, scores and hyperparameters are chosen by, so that no test set has to be."""

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator

from training.synthetic_outliers import Kind, make_outliers

VALIDATION_KINDS: tuple[Kind, ...] = (
    "uniform_noise",
    "arithmetic_mean",
    "geometric_mean",
    "jigsaw",
    "speckle",
    "pixelation",
    "rgb_ghost",
    "inversion",
)
"""Those of Liu et al. 2020, after Hendrycks et al. 2019."""


def validation_outliers(images: NDArray[np.uint8], seed: int) -> dict[str, NDArray[np.uint8]]:
    """Return the validation outliers of held-out in-distribution images: for each kind one of each image.

    Pairs that are mixed are of the images given, where the paper mixes images of the other CIFAR: a user has no such
    set. The same images and seed give the same outliers, each kind whatever the others are.

    Args:
        images: uint8 (N, H, W, 3), N >= 2.
        seed: 0 or above.

    Raises:
        ValueError: other images, or fewer than two.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) < 2:
        raise ValueError(f"images are {images.dtype} {images.shape}; expected uint8 (N, H, W, 3), N >= 2")
    pixels = torch.from_numpy(np.array(images))  # a copy: torch takes no read-only memory
    made = {}
    for kind in VALIDATION_KINDS:
        generator = _generator(kind, seed)
        order = torch.randperm(len(pixels), generator=generator)
        others = torch.empty_like(order).scatter_(0, order, order.roll(1))
        made[str(kind)] = make_outliers(kind, pixels, pixels[others], generator).numpy()
    return made


def _generator(kind: str, seed: int) -> Generator:
    digest = hashlib.sha256(f"{seed}/{kind}".encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
