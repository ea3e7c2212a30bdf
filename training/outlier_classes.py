"""Which classes a network takes outliers for, counted before it is fine-tuned: what balanced energy weighs by."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, nn

from model_store.manifest import PreprocessSpec
from model_store.predictor import Scorer
from model_store.runtimes import TorchRuntime
from training.datasets import ImageSet
from training.run_folder import write_json
from training.synthetic_outliers import KINDS, synthetic_outliers

COUNTS = "outlier_classes.json"
PIECE = 4096
"""Images at a time: a set may be larger than memory."""


def remembered_classes(
    folder: Path,
    network: nn.Module,
    preprocess: PreprocessSpec,
    pieces: Iterable[NDArray[np.uint8]],
    device: torch.device,
) -> NDArray[np.int64]:
    """Return how many outliers the network takes for each class, int64 (K,).

    Counted once and kept in the stage's `folder`: a run that is resumed, on another device say, weighs as it began.

    Raises:
        FloatingPointError: the network's logits are not finite.
    """
    path = folder / COUNTS
    if not path.exists():
        scorer = Scorer(TorchRuntime(network, preprocess, device=device), preprocess, temperature=1.0)
        write_json(path, count_classes(scorer, pieces).tolist())
    return np.array(json.loads(path.read_text()), np.int64)


def count_classes(scorer: Scorer, pieces: Iterable[NDArray[np.uint8]]) -> NDArray[np.int64]:
    """Return how many of all images uint8 (N, H, W, 3) are predicted to be of each class, int64 (K,)."""
    scored = (scorer.score(images) for images in pieces)
    counts: NDArray[np.int64] = sum(np.bincount(each.class_id, minlength=each.logits.shape[1]) for each in scored)  # type: ignore[assignment]
    return counts


def outlier_pieces(outliers: ImageSet | None, train_set: ImageSet, seed: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the outliers uint8 (M, H, W, 3), a few thousand at a time; if there are none, one made of each image."""
    if outliers is not None:
        yield from _pieces(outliers)
        return
    generator = Generator().manual_seed(seed)
    for images in _pieces(train_set):
        yield synthetic_outliers(torch.from_numpy(images), max(len(images), len(KINDS)), generator).numpy()


def _pieces(image_set: ImageSet) -> Iterator[NDArray[np.uint8]]:
    for rows in np.array_split(image_set.rows, -(-len(image_set) // PIECE)):
        yield np.asarray(image_set.pixels[rows])
