"""What image sets have to be for their roles, alone and beside each other."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from training.datasets import ImageSet
from training.errors import DataError


def require_one_encoding(sets: Sequence[ImageSet]) -> None:
    """Refuse roles that were stored differently: a network would learn the codec's artefacts as the cue.

    Raises:
        DataError: the encodings differ, or one set mixes several.
    """
    encodings = {image_set.encoding for image_set in sets}
    if len(encodings) > 1 or any("+" in encoding for encoding in encodings):
        listing = ", ".join(f"{image_set.name}: {image_set.encoding}" for image_set in sets)
        raise DataError(
            f"the sets differ in encoding ({listing}), and its artefacts would become the cue; use sets of one "
            "encoding, or set data.reencode_jpeg_quality in the recipe to re-encode all of them alike"
        )


def require_classes(image_set: ImageSet, num_classes: int) -> None:
    """Refuse a labelled set that does not hold every class of the network.

    Raises:
        DataError: fewer than two classes, another number than the network's, two of one name, or a class without
            images.
    """
    if len(image_set.classes) != num_classes or num_classes < 2:
        raise DataError(
            f"{image_set.name} has {len(image_set.classes)} classes ({', '.join(image_set.classes[:12])}); "
            f"the recipe's network has {num_classes}, and a classifier needs at least 2"
        )
    if twice := [name for name, count in Counter(image_set.classes).items() if count > 1]:
        raise DataError(
            f"{image_set.name} has more than one class named {', '.join(twice)}; give each class a name of its own"
        )
    counts = np.bincount(image_set.labels, minlength=num_classes)
    if empty := [name for name, count in zip(image_set.classes, counts, strict=True) if count == 0]:
        raise DataError(f"{image_set.name} has no images of class {', '.join(empty)}")


def require_same_classes(test: ImageSet, train: ImageSet) -> None:
    """Refuse test images whose labels mean other classes than the training images'.

    Raises:
        DataError: classes are others, or stand in another order.
    """
    if test.classes != train.classes:
        raise DataError(f"{test.name} has classes {test.classes}; {train.name} has {train.classes}")
