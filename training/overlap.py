"""Images that are in two sets at once: what a network was trained on measures nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from model_store.manifest import ImageSetRecord
from training.datasets import ImageSet

TRAINED_ON = ("train", "calibration", "outliers")
"""Roles whose images nothing else should hold: the threshold is set on the second."""


@dataclass(frozen=True)
class Overlap:
    """Images of one role whose pixels, as the network sees them, are those of training images or of outliers.

    `shared` counts them; `example` says where the first of them came from, and `twin` where the image did that it
    equals.
    """

    role: str
    name: str
    images: int
    shared: int
    example: str
    twin: str

    def __str__(self) -> str:
        """Say it in a line."""
        are = "is a training image" if self.shared == 1 else "are training images"
        too = "" if self.role in TRAINED_ON else " or outlier" if self.shared == 1 else " or outliers"
        return (
            f"{self.role}: {self.shared:,} of {self.images:,} images of {self.name} {are}{too}, pixel for pixel; "
            f"{self.example} is {self.twin}"
        )


def digests(image_set: ImageSet) -> NDArray[np.uint64]:
    """Return a 64-bit BLAKE2b digest of each image's pixels, uint64 (N,), reading one image at a time.

    Among a million images against a million, two that differ share one with a chance of 5e-8.
    """
    hashed = b"".join(
        blake2b(np.ascontiguousarray(image_set.pixels[row]).data, digest_size=8).digest() for row in image_set.rows
    )
    return np.frombuffer(hashed, np.uint64)


def overlaps(sets: Mapping[str, ImageSet]) -> dict[str, Overlap]:
    """Return, by role, which sets share images with what the network is trained on.

    sets: by role, `train` (what is trained on) and `calibration` (what was held out of it) among them, `outliers` where
    there are any. Each is looked for among those before it in this order, all others among these three.
    """
    known: dict[str, NDArray[np.uint64]] = {}
    found = {}
    for role in (*TRAINED_ON, *(role for role in sets if role not in TRAINED_ON)):
        if role not in sets:
            continue
        own = digests(sets[role])
        found[role] = _overlap(role, sets, own, known) if known else None
        if role in TRAINED_ON:
            known[role] = own
    return {role: overlap for role, overlap in found.items() if overlap is not None}


def records(sets: Mapping[str, ImageSet], found: Mapping[str, Overlap]) -> tuple[ImageSetRecord, ...]:
    """Return what a manifest says of the sets and of the images found in them that are trained on, by role."""
    return tuple(
        ImageSetRecord(
            role=role,
            name=image_set.name,
            images=len(image_set),
            encoding=image_set.encoding,
            sha256=image_set.fingerprint,
            fitted=image_set.fitted,
            in_training=found[role].shared if role in found else 0,
            uneven_classes=image_set.uneven_classes if role == "train" else None,
        )
        for role, image_set in sets.items()
        if len(image_set)  # a recipe may hold out nothing to calibrate on
    )


def _overlap(
    role: str, sets: Mapping[str, ImageSet], own: NDArray[np.uint64], known: Mapping[str, NDArray[np.uint64]]
) -> Overlap | None:
    shared = np.flatnonzero(np.isin(own, np.concatenate(list(known.values()))))
    if len(shared) == 0:
        return None
    first = int(shared[0])
    part, at = next((part, int(at)) for part, values in known.items() for at in np.flatnonzero(values == own[first]))
    twin = sets[part]
    of_class = f" ({twin.classes[twin.labels[at]]})" if part != "outliers" else ""
    return Overlap(
        role=role,
        name=sets[role].name,
        images=len(own),
        shared=len(shared),
        example=sets[role].where(first),
        twin=f"{twin.where(at)}{of_class}",
    )
