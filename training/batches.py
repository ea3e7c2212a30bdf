"""Augmented batches from sets that stand on the device, or on the host when they do not fit there."""

import math
from collections.abc import Iterator

import torch
from torch import Generator

from training.augment import augment
from training.config import AugmentSpec
from training.datasets import ImageSet, PlacedImages
from training.synthetic_outliers import synthetic_outliers
from training.trainer import Batch


class LabelledBatches:
    """Every image of a set once an epoch, in a new order; the last batch holds what is left."""

    def __init__(self, train: ImageSet, batch_size: int, spec: AugmentSpec, device: torch.device) -> None:
        self.images = PlacedImages(train, device)
        self.labels = torch.from_numpy(train.labels).to(device)
        self.batch_size = batch_size
        self.spec = spec
        self.device = device

    def __len__(self) -> int:
        return math.ceil(len(self.images) / self.batch_size)

    def __call__(self, generator: Generator) -> Iterator[Batch]:
        """Yield one epoch of batches."""
        for batch in self.as_stored(generator):
            yield Batch(augment(batch.images, self.spec, generator), batch.labels)

    def as_stored(self, generator: Generator) -> Iterator[Batch]:
        """Yield one epoch of batches that are not augmented yet."""
        order = torch.randperm(len(self.images), generator=generator, device=self.device)
        for index in torch.split(order, self.batch_size):
            yield Batch(self.images.take(index), self.labels[index])


class OutlierBatches:
    """Batches of labelled images, each followed by outliers: one forward pass, shared batch-norm statistics.

    Outliers are read in one fixed shuffled order from an offset drawn each epoch, round and round.
    """

    def __init__(self, labelled: LabelledBatches, outliers: ImageSet, batch_size: int, seed: int) -> None:
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
        start = torch.randint(n, (), generator=generator, device=device)
        reach = torch.arange(self.batch_size, device=device)
        for step, batch in enumerate(self.labelled(generator)):
            index = self.order[(start + step * self.batch_size + reach) % n]
            outliers = augment(self.images.take(index), self.labelled.spec, generator)
            yield Batch(torch.cat([batch.images, outliers]), batch.labels)


class SyntheticOutlierBatches:
    """Batches of labelled images, each followed by outliers made of those very images as they are stored.

    Both roles are augmented after that, alike: made of augmented images, outliers would be noisy and JPEG twice over.
    """

    def __init__(self, labelled: LabelledBatches, batch_size: int) -> None:
        self.labelled = labelled
        self.batch_size = batch_size

    def __len__(self) -> int:
        return len(self.labelled)

    def __call__(self, generator: Generator) -> Iterator[Batch]:
        """Yield one epoch of batches, as many as the labelled images fill."""
        for batch in self.labelled.as_stored(generator):
            outliers = synthetic_outliers(batch.images, self.batch_size, generator)
            images = [augment(role, self.labelled.spec, generator) for role in (batch.images, outliers)]
            yield Batch(torch.cat(images), batch.labels)
