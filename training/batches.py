"""Augmented batches from sets that stand on the device, or on the host when they do not fit there."""

import math
from collections.abc import Iterator

import torch
from torch import Generator

from training.augment import augment
from training.augment_spec import AugmentSpec
from training.datasets import ImageSet, PlacedImages
from training.distributed import ALONE, Processes
from training.synthetic_outliers import synthetic_outliers
from training.trainer import Batch


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
        for batch in self.as_stored(generator):
            yield Batch(augment(batch.images, self.spec, own), batch.labels)

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
        processes, spec = self.labelled.processes, self.labelled.spec
        own = processes.own_generator(generator)
        start = torch.randint(n, (), generator=generator, device=device)
        reach = torch.arange(self.batch_size, device=device)[processes.share(self.batch_size)]
        for step, batch in enumerate(self.labelled.as_stored(generator)):
            index = self.order[(start + step * self.batch_size + reach) % n]
            images = [augment(role, spec, own) for role in (batch.images, self.images.take(index))]
            yield Batch(torch.cat(images), batch.labels)


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
        for batch in self.labelled.as_stored(generator):
            outliers = synthetic_outliers(batch.images, count, own)
            images = [augment(role, self.labelled.spec, own) for role in (batch.images, outliers)]
            yield Batch(torch.cat(images), batch.labels)


def mixed_batches(
    labelled: LabelledBatches, outliers: ImageSet | None, batch_size: int, seed: int
) -> OutlierBatches | SyntheticOutlierBatches:
    """Return batches of labelled images, each followed by `batch_size` outliers; None makes these of the former."""
    if outliers is None:
        return SyntheticOutlierBatches(labelled, batch_size)
    return OutlierBatches(labelled, outliers, batch_size, seed)
