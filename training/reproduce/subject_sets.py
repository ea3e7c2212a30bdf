"""The image sets of one in-distribution set's experiments, each read once, when it is first asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from model_store.networks import outlined
from model_store.score_specs import ScoreName
from training.datasets import ImageSet, load_set
from training.errors import DataError
from training.evaluate import Say, TestSets
from training.fit_scores import require_fittable
from training.overlap import digests
from training.reproduce.benchmark import Benchmark, SourcesSpec, find, require, ways_to_get
from training.reproduce.networks import Setting
from training.reproduce.results import RECORD, SETS, TEST, InDistributionRecord, SetRecord
from training.run_folder import open_stage, write_json
from training.set_roles import require_classes, require_one_encoding, require_same_classes
from training.splits import split_calibration

LEAST_VALIDATION_IMAGES = 2
"""Validation outliers are made of pairs, too."""


@dataclass(frozen=True)
class SubjectSets:
    """What the benchmark's sets are, below a data folder."""

    setting: Setting
    benchmark: Benchmark
    data_dir: Path
    say: Say

    def check(self) -> None:
        """Read every set and see whether each can play its role, before hours go into training.

        Raises:
            DataError: a set is missing or unfit, sets differ in encoding, or too few images are held out.
        """
        sets = [self.train, self.outliers, self.tests.test, *self.tests.ood.values()]
        require_one_encoding(sets)
        for labelled in (self.train, self.tests.test):
            require_classes(labelled, self.setting.spec.classes)
        require_same_classes(self.tests.test, self.train)
        if not self.tests.far_ood:
            first = self.setting.spec.far_ood[0]
            require(self.benchmark.ood[first].sources, self.data_dir)
        self._require_validation()
        fit_images = min(self.setting.size.fit_images, len(self.split[0]))
        network = self.setting.size.network.spec(self.setting.spec.classes)
        width = outlined(network).get_parameter("head.weight").shape[1]
        for score in get_args(ScoreName):
            require_fittable(self.setting.score_spec(score), fit_images, width)

    def _require_validation(self) -> None:
        share, images, held_out = self.setting.size.validation.share, len(self.train), len(self.split[1])
        if held_out < LEAST_VALIDATION_IMAGES:
            raise DataError(
                f"validation.share is {share:g}, which holds {held_out} of the {images:,} images of {self.train.name} "
                f"out; choices need at least {LEAST_VALIDATION_IMAGES}: take a larger share"
            )

    def record(self, out: Path) -> None:
        """Write down which sets there are, in what they differ from the paper's, and which hold training images.

        Raises:
            ResumeError: the folder's results are of other images.
        """
        spec, tests, ood = self.setting.spec, self.tests, self.benchmark.ood
        own = SourcesSpec(sources=spec.train, paper=spec.title, differs="")
        folder = out / SETS / self.setting.name
        open_stage(folder, self.fingerprints)
        labelled = digests(self.train)
        trained_on = np.concatenate([labelled, digests(self.outliers)])

        def describe(image_set: ImageSet, sources: SourcesSpec, others: NDArray[np.uint64] = trained_on) -> SetRecord:
            found = int(np.isin(digests(image_set), others).sum())
            of = f"of the {len(image_set):,} images of {image_set.name}"
            if found:
                also = "training images" if others is labelled else "training images or outliers"
                self.say(f"{found} {of} are {also} too")
            if image_set.fitted:
                self.say(f"{image_set.fitted:,} {of} had another size and were fitted")
            return _record(image_set, sources, found)

        record = InDistributionRecord(
            title=spec.title,
            train=_record(self.trained_on, own, 0),
            test=describe(tests.test, own),
            outliers=describe(self.outliers, self.benchmark.outliers, labelled),
            far_ood={name: describe(image_set, ood[name]) for name, image_set in tests.far_ood.items()},
            near_ood={name: describe(image_set, ood[name]) for name, image_set in tests.near_ood.items()},
            missing=self._missing,
        )
        write_json(folder / RECORD, record.model_dump())

    @cached_property
    def split(self) -> tuple[ImageSet, ImageSet]:
        """The training images as (what a validation network is trained on, what is held out of them)."""
        validation = self.setting.size.validation
        return split_calibration(self.train, round(validation.share * len(self.train)), validation.seed)

    @property
    def trained_on(self) -> ImageSet:
        """What the networks that figures are of are trained on."""
        return self.train if self.setting.size.validation.own_network else self.split[0]

    @cached_property
    def train(self) -> ImageSet:
        """All training images."""
        return self._load(self.setting.spec.train)

    @cached_property
    def outliers(self) -> ImageSet:
        """The outliers of fine-tunings."""
        return self._load(self.benchmark.outliers.sources)

    @cached_property
    def tests(self) -> TestSets:
        """The test images and the OOD sets that are there."""
        spec = self.setting.spec
        return TestSets(self._load(spec.test), self._found(spec.far_ood), self._found(spec.near_ood))

    def _found(self, names: Sequence[str]) -> dict[str, ImageSet]:
        ood = self.benchmark.ood
        return {name: self._load(ood[name].sources) for name in names if name not in self._missing}

    @cached_property
    def _missing(self) -> dict[str, str]:
        """OOD sets that are not there, and how to get them."""
        spec, data_dir = self.setting.spec, self.data_dir
        sources = {name: self.benchmark.ood[name].sources for name in (*spec.far_ood, *spec.near_ood)}
        missing = {
            name: ways_to_get(given, data_dir) for name, given in sources.items() if find(given, data_dir) is None
        }
        for name, way in missing.items():
            self.say(f"{name} is left out: it is not there. {way}")
        return missing

    @cached_property
    def measured(self) -> dict[str, ImageSet]:
        """All that every method scores, by name."""
        return {TEST: self.tests.test} | self.tests.ood

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """What results are of."""
        sets = {"train": self.train, "outliers": self.outliers} | self.measured
        return {name: image_set.fingerprint for name, image_set in sets.items()}

    def _load(self, sources: tuple[str, ...]) -> ImageSet:
        source = require(sources, self.data_dir)
        self.say(f"reading {source}")
        return load_set(source, self.data_dir, self.setting.preprocess, None)


def _record(image_set: ImageSet, sources: SourcesSpec, in_training: int) -> SetRecord:
    return SetRecord(
        source=image_set.name,
        images=len(image_set),
        encoding=image_set.encoding,
        sha256=image_set.fingerprint,
        paper=sources.paper,
        published=sources.published,
        differs=sources.differs,
        fitted=image_set.fitted,
        in_training=in_training,
    )
