"""A run of the experiments, and the only file that knows their order."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import model_store
from model_store.networks import NetworkOutput
from model_store.score_specs import NegativeEnergySpec, ScoreSpec
from training.datasets import ImageSet
from training.evaluate import Say
from training.hardware import hardware
from training.objective_spec import Margins
from training.perturbed_scores import odin, perturbed_mahalanobis
from training.publish import commit
from training.reproduce.benchmark import Benchmark, find, require, ways_to_get
from training.reproduce.choices import OdinSpec, PerturbedMahalanobisSpec, Validation, fitted_mahalanobis
from training.reproduce.methods import CLASSIFIER, Method, Only, methods
from training.reproduce.networks import FinetunePlan, Lab, Setting, TrainedNetwork, kept_outputs
from training.reproduce.results import (
    CHOICES,
    NETWORKS,
    ROWS,
    TEST,
    MethodResult,
    MethodScores,
    Origin,
    Results,
    Row,
    method_folder,
    rows,
    write_results,
    write_rows,
    write_scores,
    write_text,
)
from training.reproduce.size import FineTuning, Size
from training.reproduce.subject_sets import SubjectSets
from training.run_folder import open_stage
from training.trainer import Progress

GITIGNORE = "/networks/\n/scores/\n/choices/\n/sets/\n/inputs.json\n/.lock\n/.gitignore\n"
"""What is too large for a repository, or of no use there: report, figures and results.json are left."""
VALIDATION = "validation"

MeasuredScore = ScoreSpec | OdinSpec | PerturbedMahalanobisSpec


@dataclass(frozen=True)
class Reproduction:
    """What is asked for, the data it reads, the folder it fills and the device it uses.

    Run again it goes on where it was stopped: finished epochs and finished methods are not repeated.
    """

    benchmark: Benchmark
    size: Size
    only: Only
    data_dir: Path
    out: Path
    command: str
    device: torch.device
    progress: Progress
    say: Say

    def all(self) -> Results:
        """Run every experiment that is asked for; write each result as it is made, and return all there are.

        Raises:
            DataError: no in-distribution set is there, or one that was asked for is not; nothing is trained then.
            ResumeError: `out` holds results of another size, other data or another recipe.
        """
        subjects = list(self._subjects())
        for subject in subjects:
            subject.sets.check()
        open_stage(self.out, {"size": self.size.name})
        write_text(self.out / ".gitignore", GITIGNORE)
        for subject in subjects:
            subject.sets.record(self.out)
            for _ in subject.run(self.only):
                self._write()
        return self._write()

    def signed(self, measured: tuple[Row, ...], seconds: float) -> MethodResult:
        """Return rows with the code and the hardware that made them."""
        return MethodResult(
            commit=self._commit, hardware=hardware(self.device), seconds=round(seconds, 1), rows=measured
        )

    @cached_property
    def _commit(self) -> str:
        return commit() or model_store.__version__

    def _write(self) -> Results:
        return write_results(self.out, self.size, self.command)

    def _subjects(self) -> "Iterator[Subject]":
        asked = self.only.in_distribution
        there = [name for name in self.benchmark.in_distribution if self._is_there(name, asked)]
        if not there:
            first = next(iter(self.benchmark.in_distribution.values()))
            require(first.train, self.data_dir)
        for name in there:
            spec = self.benchmark.in_distribution[name]
            augment = self.size.augment or self.benchmark.augment
            setting = Setting(name, spec, self.size, self.benchmark.preprocess, augment)
            yield Subject(self, setting, SubjectSets(setting, self.benchmark, self.data_dir, self.say))

    def _is_there(self, name: str, asked: frozenset[str] | None) -> bool:
        spec = self.benchmark.in_distribution[name]
        if asked is not None:
            return name in asked
        missing = [sources for sources in (spec.train, spec.test) if find(sources, self.data_dir) is None]
        for sources in missing[:1]:
            self.say(f"{spec.title} is left out: {sources[0]} is not there. {ways_to_get(sources, self.data_dir)}")
        return not missing


@dataclass(frozen=True)
class Subject:
    """One in-distribution set: its images, its seeds, and the network that choices are made on."""

    reproduction: Reproduction
    setting: Setting
    sets: SubjectSets

    def run(self, only: Only) -> Iterator[None]:
        """Run the methods that are asked for, network by network, for every seed; yield after each that was measured.

        Those of Fig. 4b come last: their networks are of the validation split, and most runs have made them by then.
        """
        wanted = [method for method in methods(self.setting.size) if only.wants(method)]
        for seed in self.setting.size.seeds:
            yield from self._run_lab(self._lab(self.sets.trained_on, seed, _folder(seed)), wanted, on_validation=False)
        yield from self._run_lab(self._validation.lab, wanted, on_validation=True)

    def _run_lab(self, lab: Lab, wanted: Sequence[Method], *, on_validation: bool) -> Iterator[None]:
        here = [method for method in wanted if (method.margins is not None) == on_validation]
        for name, group in groupby(here, key=lambda method: method.network):
            of_network = list(group)
            plan = self._plan(of_network[0])
            network = lab.classifier() if plan is None else lab.fine_tuned(name, plan)
            for method in of_network:
                if self._measure(lab, method, network):
                    yield

    def _measure(self, lab: Lab, method: Method, network: TrainedNetwork) -> bool:
        """Measure a method; return whether that was still to be done."""
        score = self._resolved(method)
        origin = self._origin(lab, method)
        folder = method_folder(self.reproduction.out, self.setting.name, lab.folder.name, method.name)
        inputs = {
            "weights": network.sha256,
            "score": score.model_dump(),
            "fit_images": self.setting.size.fit_images,
            "sets": self.sets.fingerprints,
        }
        open_stage(folder, {"origin": origin.model_dump(), **inputs})
        if (folder / ROWS).exists():
            return False
        self.reproduction.say(f"{self.setting.name}, {lab.folder.name}: measuring {method.name}")
        start = time.perf_counter()
        outputs = self._outputs(lab, method, network)
        by_set = self._scores(score, lab, network, outputs)
        correct = outputs[TEST].logits.argmax(dim=1).numpy() == self.sets.tests.test.labels
        kept = MethodScores(by_set[TEST], correct, {name: by_set[name] for name in self.sets.tests.ood})
        write_scores(folder, kept)
        measured = tuple(rows(origin, kept))
        write_rows(folder, self.reproduction.signed(measured, time.perf_counter() - start))
        return True

    def _outputs(self, lab: Lab, method: Method, network: TrainedNetwork) -> dict[str, NetworkOutput]:
        folder = method_folder(self.reproduction.out, self.setting.name, lab.folder.name, method.network)
        return kept_outputs(network, self.sets.measured, folder.with_name(f"{folder.name}-outputs"))

    def _scores(
        self, score: MeasuredScore, lab: Lab, network: TrainedNetwork, outputs: dict[str, NetworkOutput]
    ) -> dict[str, NDArray[np.float32]]:
        match score:
            case OdinSpec(temperature=temperature, epsilon=epsilon):
                return {
                    name: odin(network.normalised, images.images, temperature=temperature, epsilons=(epsilon,))[0]
                    for name, images in self.sets.measured.items()
                }
            case PerturbedMahalanobisSpec(epsilon=epsilon):
                fitted = fitted_mahalanobis(lab, network)
                return {
                    name: perturbed_mahalanobis(network.normalised, images.images, fitted, epsilons=(epsilon,))[0]
                    for name, images in self.sets.measured.items()
                }
            case one_pass:
                scorer = network.fitted(one_pass)
                return {name: scorer(output).numpy() for name, output in outputs.items()}

    def _resolved(self, method: Method) -> MeasuredScore:
        """Return the method's score with its hyperparameters, chosen on validation outliers where they are chosen."""
        match method.score:
            case "odin":
                return self._validation.odin()
            case "perturbed_mahalanobis":
                return self._validation.mahalanobis()
            case "chosen":
                chosen = self._validation.score(method.network, self._plan(method))
                return self.setting.score_spec(chosen)
            case NegativeEnergySpec() as spec:
                return spec
            case name:
                return self.setting.score_spec(name)

    def _plan(self, method: Method) -> FinetunePlan | None:
        """Return how the method's network is fine-tuned; None for the classifier."""
        size = self.setting.size
        if method.margins is not None:
            return FinetunePlan(size.margin_trial(method.margins))
        if method.network == CLASSIFIER:
            return None
        fine_tuning = size.finetunings[method.network]
        spec = size.finetune_spec(fine_tuning, self._margins(fine_tuning))
        return FinetunePlan(spec, synthetic=fine_tuning.outliers == "synthetic")

    def _margins(self, fine_tuning: FineTuning) -> Margins | None:
        if fine_tuning.margins is None:
            return None
        published = self.setting.spec.published_margins if fine_tuning.margins == "published" else None
        return published or self._validation.margins()

    def _origin(self, lab: Lab, method: Method) -> Origin:
        size = self.setting.size
        return Origin(
            in_distribution=self.setting.name,
            network=size.network.label,
            method=method.name,
            seed=lab.seed,
            draws=size.draws,
            resamples=size.resamples,
        )

    def _lab(self, train: ImageSet, seed: int, run: str) -> Lab:
        reproduction = self.reproduction
        folder = reproduction.out / NETWORKS / self.setting.name / run
        return Lab(
            self.setting,
            seed,
            train,
            self.sets.outliers,
            folder,
            reproduction.device,
            reproduction.progress,
            reproduction.say,
        )

    @cached_property
    def _validation(self) -> Validation:
        train, held_out = self.sets.split
        size = self.setting.size.validation
        lab = self._lab(train, size.seed, VALIDATION if size.own_network else _folder(size.seed))
        return Validation(lab, held_out, self.reproduction.out / CHOICES / self.setting.name)


def _folder(seed: int) -> str:
    return f"seed-{seed}"
