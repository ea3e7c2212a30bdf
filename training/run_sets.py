"""The image sets of a run by the roles that its recipe gives them, each read once, when it is first asked for."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from model_store.manifest import ImageSetRecord
from training.config import Recipe
from training.datasets import ImageSet, load_set
from training.distributed import Processes
from training.evaluate import Say, TestSets
from training.overlap import Overlap, overlaps, records
from training.set_roles import require_classes, require_one_encoding, require_same_classes
from training.splits import split_calibration

SYNTHETIC_OUTLIERS = "synthetic outliers"
"""The role of the training images that outliers are made of."""


@dataclass(frozen=True)
class RunSets:
    """What a recipe's sets are, below a data folder; training images and outliers are read in every process."""

    recipe: Recipe
    data_dir: Path
    say: Say
    processes: Processes

    @property
    def train(self) -> ImageSet:
        """The training images, without those held out."""
        return self._split[0]

    @property
    def held_out(self) -> ImageSet:
        """The calibration images."""
        return self._split[1]

    @cached_property
    def outliers(self) -> ImageSet | None:
        """The outliers, or None if there are none, or they are made of the training images."""
        source = self.recipe.data.outliers
        if source is None or self.recipe.data.outliers_are_synthetic:
            return None
        outliers = self._load_in_each(source)
        require_one_encoding([self.train, outliers])
        return outliers

    @cached_property
    def tests(self) -> TestSets:
        """The test images and OOD sets.

        Raises:
            DataError: a set is missing, or the test images are not of the network's classes.
        """
        data = self.recipe.data
        test = self._load(data.test)
        require_classes(test, self.recipe.network.num_classes)
        return TestSets(
            test=test,
            far_ood={name: self._load(source) for name, source in data.far_ood.items()},
            near_ood={name: self._load(source) for name, source in data.near_ood.items()},
        )

    def by_role(self) -> dict[str, ImageSet]:
        """Return all of them.

        Raises:
            DataError: a set is missing, or the test images are not of the training images' classes.
        """
        train, tests = self.train, self.tests
        require_same_classes(tests.test, train)
        ood = {f"ood {name}": image_set for name, image_set in tests.ood.items()}
        return {"train": train, "calibration": self.held_out} | self._outliers_by_role | {"test": tests.test} | ood

    @property
    def _outliers_by_role(self) -> dict[str, ImageSet]:
        if self.recipe.data.outliers_are_synthetic:
            return {SYNTHETIC_OUTLIERS: self.train}  # recorded by what they are made of
        return {} if self.outliers is None else {"outliers": self.outliers}

    @cached_property
    def overlaps(self) -> dict[str, Overlap]:
        """Which of the sets hold training images; of synthetic outliers, made of them, that says nothing."""
        return overlaps({role: held for role, held in self.by_role().items() if role != SYNTHETIC_OUTLIERS})

    @property
    def records(self) -> tuple[ImageSetRecord, ...]:
        """What a manifest says of them."""
        return records(self.by_role(), self.overlaps)

    def fingerprints(self) -> dict[str, str]:
        """Return each set's fingerprint by its role."""
        return {role: image_set.fingerprint for role, image_set in self.by_role().items()}

    @cached_property
    def _split(self) -> tuple[ImageSet, ImageSet]:
        train = self._load_in_each(self.recipe.data.train)
        require_classes(train, self.recipe.network.num_classes)
        return split_calibration(train, self.recipe.data.calibration_images, self.recipe.seed)

    def _load(self, source: str) -> ImageSet:
        self.say(f"reading {source}")
        preprocess = self.recipe.preprocess
        image_set = load_set(source, self.data_dir, preprocess, self.recipe.data.reencode_jpeg_quality)
        if image_set.fitted:
            size = f"{preprocess.height}x{preprocess.width}"
            self.say(f"{source}: {image_set.fitted:,} of {len(image_set):,} images had another size, fitted to {size}")
        return image_set

    def _load_in_each(self, source: str) -> ImageSet:
        image_set = self.processes.each_does(lambda: self._load(source))
        self.processes.require_same(f"the fingerprint of {source}", image_set.fingerprint)
        return image_set
