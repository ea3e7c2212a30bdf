"""Augmented batches from sets that stand on the device, or on the host when they do not fit there."""

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TypeVar

import torch
from torch import Generator, Tensor

from training.augment import augment
from training.augment_spec import AugmentSpec
from training.datasets import ImageSet
from training.distributed import ALONE, Processes
from training.step import Batch
from training.synthetic_outliers import synthetic_outliers

AT_ONCE = {"cuda": 16}
"""Batches that are augmented together, by the device's type, elsewhere one: telling a GPU what to do with one takes
longer than doing it."""

Item = TypeVar("Item")


class PlacedImages:
    """A set where training reads it: on the device if it takes at most half of the free memory there, else the host."""

    def __init__(self, image_set: ImageSet, device: torch.device) -> None:
        self.device = device
        self.pixels = torch.from_numpy(image_set.pixels)
        if device.type == "cuda" and image_set.pixels.nbytes <= torch.cuda.mem_get_info(device)[0] // 2:
            self.pixels = self.pixels.to(device)
        self.rows = torch.from_numpy(image_set.rows).to(self.pixels.device)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: Tensor) -> Tensor:
        """Gather one batch uint8 (B, H, W, 3) on the device; from the host it travels through pinned memory."""
        batch = self.pixels[self.rows[index.to(self.rows.device)]]
        if batch.device.type == self.device.type:
            return batch
        return batch.pin_memory().to(self.device, non_blocking=True)


class LabelledBatches:
    """Every image of a set once an epoch, in a new order; the last batch holds what is left.

    `batch_size` counts the images of all processes. They draw one order and take their shares of each batch; flips,
    noise and JPEG each draws for its own share, since drawing the whole batch's would cost each what one alone pays.
    """

    def __init__(
        self,
        train: ImageSet,
        batch_size: int,
        spec: AugmentSpec,
        device: torch.device,
        processes: Processes = ALONE,
    ) -> None:
        processes.require_divisible("batch_size", batch_size)
        processes.require_last_share(len(train), batch_size)
        self.images = PlacedImages(train, device)
        self.labels = torch.from_numpy(train.labels).to(device)
        self.batch_size = batch_size
        self.spec = spec
        self.device = device
        self.processes = processes

    def __len__(self) -> int:
        return math.ceil(len(self.images) / self.batch_size)

    def __call__(self, generator: Generator) -> Iterator[Batch]:
        """Yield one epoch of batches."""
        own = self.processes.own_generator(generator)
        for group in _groups(self.as_stored(generator), self.device):
            images = _augmented([batch.images for batch in group], self.spec, own)
            yield from (Batch(*pair) for pair in zip(images, (batch.labels for batch in group), strict=True))

    def as_stored(self, generator: Generator) -> Iterator[Batch]:
        """Yield one epoch of batches that are not augmented yet, in an order that `generator` draws."""
        order = torch.randperm(len(self.images), generator=generator, device=self.device)
        for index in torch.split(order, self.batch_size):
            yield Batch(self.images.take(index[self.processes.share(len(index))]), self.labels[index])


class OutlierBatches:
    """Batches of labelled images, each followed by outliers: one forward pass, shared batch-norm statistics.

    Outliers are read in one fixed shuffled order from an offset drawn each epoch, round and round.
    """

    def __init__(self, labelled: LabelledBatches, outliers: ImageSet, batch_size: int, seed: int) -> None:
        labelled.processes.require_divisible("outlier_batch_size", batch_size)
        self.labelled = labelled
        self.images = PlacedImages(outliers, labelled.device)
        self.batch_size = batch_size
        # Sets stand ordered by class; a run of 256 neighbours would be one class.
        self.order = torch.randperm(len(outliers), generator=Generator().manual_seed(seed)).to(labelled.device)

    def __len__(self) -> int:
        return len(self.labelled)

    def __call__(self, generator: Generator) -> Iterator[Batch]:
        """Yield one epoch of batches, as many as the labelled images fill."""
        device, n = self.labelled.device, len(self.images)
        processes = self.labelled.processes
        own = processes.own_generator(generator)
        start = torch.randint(n, (), generator=generator, device=device)
        reach = torch.arange(self.batch_size, device=device)[processes.share(self.batch_size)]

        def outliers(step: int) -> Tensor:
            return self.images.take(self.order[(start + step * self.batch_size + reach) % n])

        stored = ((batch, outliers(step)) for step, batch in enumerate(self.labelled.as_stored(generator)))
        yield from _mixed(stored, self.labelled, own)


class SyntheticOutlierBatches:
    """Batches of labelled images, each followed by outliers made of those very images as they are stored.

    Both roles are augmented after that, alike: made of augmented images, outliers would be noisy and JPEG twice over.
    Each process makes its share of its own images.
    """

    def __init__(self, labelled: LabelledBatches, batch_size: int) -> None:
        labelled.processes.require_divisible("outlier_batch_size", batch_size)
        self.labelled = labelled
        self.batch_size = batch_size

    def __len__(self) -> int:
        return len(self.labelled)

    def __call__(self, generator: Generator) -> Iterator[Batch]:
        """Yield one epoch of batches, as many as the labelled images fill."""
        processes = self.labelled.processes
        own, count = processes.own_generator(generator), self.batch_size // processes.count
        labelled = self.labelled.as_stored(generator)
        stored = ((batch, synthetic_outliers(batch.images, count, own)) for batch in labelled)
        yield from _mixed(stored, self.labelled, own)


def mixed_batches(
    labelled: LabelledBatches, outliers: ImageSet | None, batch_size: int, seed: int
) -> OutlierBatches | SyntheticOutlierBatches:
    """Return batches of labelled images, each followed by `batch_size` outliers; None makes these of the former."""
    if outliers is None:
        return SyntheticOutlierBatches(labelled, batch_size)
    return OutlierBatches(labelled, outliers, batch_size, seed)


def _mixed(stored: Iterator[tuple[Batch, Tensor]], labelled: LabelledBatches, own: Generator) -> Iterator[Batch]:
    """Augment labelled batches and their outliers, and put each pair together."""
    for group in _groups(stored, labelled.device):
        batches, outliers = zip(*group, strict=True)
        images = _augmented([batch.images for batch in batches], labelled.spec, own)
        others = _augmented(outliers, labelled.spec, own)
        for batch, *roles in zip(batches, images, others, strict=True):
            yield Batch(torch.cat(roles), batch.labels)


def _groups(batches: Iterator[Item], device: torch.device) -> Iterator[list[Item]]:
    """Gather batches that are augmented by one call."""
    size = AT_ONCE.get(device.type, 1)
    while group := list(islice(batches, size)):
        yield group


def _augmented(batches: Sequence[Tensor], spec: AugmentSpec, generator: Generator) -> tuple[Tensor, ...]:
    """Augment several batches by one call."""
    together = augment(torch.cat(list(batches)), spec, generator)
    return torch.split(together, [len(images) for images in batches])
