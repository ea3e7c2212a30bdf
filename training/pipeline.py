"""A run of a recipe, and the only file that knows the order of its stages."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from model_store.bundle import Bundle
from model_store.manifest import Evaluation
from model_store.networks import build_network
from model_store.predictor import Predictor, Scorer
from model_store.runtimes import TorchRuntime
from model_store.store import Store
from training import report
from training.calibrate import Calibrated, calibrate
from training.config import Recipe
from training.datasets import ImageSet, load_set, require_classes, require_one_encoding, split_calibration
from training.errors import DataError, RecipeError, ResumeError
from training.evaluate import Say, TestSets, evaluate, score_sets
from training.finetune import finetune
from training.pretrain import pretrain
from training.publish import draft_bundle, provenance, publish
from training.run_folder import read_weights
from training.trainer import Progress

PRETRAIN, FINETUNE, CALIBRATE, EVALUATE = "pretrain", "finetune", "calibrate", "evaluate"


@dataclass(frozen=True)
class Run:
    """One recipe, the data it reads, the folder it fills (a sub-folder a stage) and the device it uses.

    Every stage may be called alone once those before it are done; finished work is loaded, never repeated.
    """

    recipe: Recipe
    data_dir: Path
    folder: Path
    device: torch.device
    progress: Progress
    say: Say

    def all(self, store: Store) -> Path | None:
        """Run every stage; return the published bundle, or None for a recipe that holds out no calibration images."""
        self.pretrain()
        self.finetune()
        self.evaluate()
        return self.publish(store) if self.recipe.data.calibration_images else None

    def pretrain(self) -> nn.Module:
        """Train the classifier."""
        return pretrain(self.recipe, self._train_set, self.folder / PRETRAIN, self.device, self.progress)

    def finetune(self) -> nn.Module:
        """Drive the energies of in-distribution images and of outliers apart."""
        return finetune(
            self.recipe,
            self._train_set,
            self._outliers,
            self.folder / PRETRAIN,
            self.folder / FINETUNE,
            self.device,
            self.progress,
        )

    def calibrate(self) -> Calibrated:
        """Set the threshold of the fine-tuned network on the held-out images.

        Raises:
            RecipeError: the recipe holds out none.
        """
        if not self.recipe.data.calibration_images:
            raise RecipeError(
                f"recipe {self.recipe.name} holds out no calibration images, so it has no threshold and no bundle; "
                "set data.calibration_images, 5000 say"
            )
        self.say("calibrating")
        return calibrate(self.recipe.calibrate, self._scorer(FINETUNE), self._split[1], self.folder / CALIBRATE)

    def evaluate(self) -> Evaluation:
        """Measure the fine-tuned network beside the classifier it came from; write figures, tables and plot."""
        sets = self.test_sets
        scores = {stage: score_sets(self._scorer(stage), sets, self.say) for stage in (PRETRAIN, FINETUNE)}
        result = evaluate(
            sets,
            scores[FINETUNE],
            scores[PRETRAIN],
            self._predictor if self.recipe.data.calibration_images else None,
            draws=self.recipe.evaluate.draws,
            seed=self.recipe.seed,
            say=self.say,
        )
        report.write(self.folder / EVALUATE, result, scores[FINETUNE], scores[PRETRAIN])
        return result

    def publish(self, store: Store) -> Path:
        """Put weights, threshold, figures and golden images into a bundle of `store`; return its folder.

        Raises:
            ResumeError: the run has not been evaluated.
        """
        path = self.folder / EVALUATE / "evaluation.json"
        if not path.exists():
            raise ResumeError(f"{path} is not there: run the stage evaluate first")
        evaluation = Evaluation.model_validate_json(path.read_text())
        created = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
        draft = draft_bundle(
            self.recipe,
            self._network(FINETUNE),
            self._predictor,
            self._calibrated,
            self._split[1],
            evaluation,
            provenance(self.recipe, self._sets_by_role(), self.device, self._stage_seconds(), created),
        )
        return publish(store, draft)

    @cached_property
    def _split(self) -> tuple[ImageSet, ImageSet]:
        train = self._load(self.recipe.data.train)
        require_classes(train, self.recipe.network.num_classes)
        return split_calibration(train, self.recipe.data.calibration_images, self.recipe.seed)

    @property
    def _train_set(self) -> ImageSet:
        return self._split[0]

    @cached_property
    def test_sets(self) -> TestSets:
        """The recipe's test images and OOD sets.

        Raises:
            DataError: a set is missing, or the classes are not those that are trained on.
        """
        data = self.recipe.data
        test = self._load(data.test)
        require_classes(test, self.recipe.network.num_classes)
        if test.classes != self._train_set.classes:
            raise DataError(f"{data.test} has classes {test.classes}; {data.train} has {self._train_set.classes}")
        return TestSets(
            test=test,
            far_ood={name: self._load(source) for name, source in data.far_ood.items()},
            near_ood={name: self._load(source) for name, source in data.near_ood.items()},
        )

    @cached_property
    def _outliers(self) -> ImageSet:
        outliers = self._load(self.recipe.data.outliers)
        require_one_encoding([self._train_set, outliers])
        return outliers

    @cached_property
    def _calibrated(self) -> Calibrated:
        return self.calibrate()

    @property
    def _predictor(self) -> Predictor:
        return self._calibrated.predictor(self._scorer(FINETUNE))

    def _load(self, source: str) -> ImageSet:
        self.say(f"reading {source}")
        return load_set(source, self.data_dir, self.recipe.preprocess, self.recipe.data.reencode_jpeg_quality)

    def _network(self, stage: str) -> nn.Module:
        network = build_network(self.recipe.network)
        read_weights(self.folder / stage, network)
        return network

    def _scorer(self, stage: str) -> Scorer:
        runtime = TorchRuntime(self._network(stage), self.recipe.preprocess, device=self.device)
        return Scorer(runtime, self.recipe.preprocess, self.recipe.calibrate.temperature)

    def _sets_by_role(self) -> dict[str, ImageSet]:
        train, held_out = self._split
        sets = self.test_sets
        ood = {f"ood {name}": image_set for name, image_set in sets.ood.items()}
        return {"train": train, "calibration": held_out, "outliers": self._outliers, "test": sets.test} | ood

    def _stage_seconds(self) -> dict[str, float]:
        histories = {stage: self.folder / stage / "history.json" for stage in (PRETRAIN, FINETUNE)}
        return {
            stage: sum(epoch["seconds"] for epoch in json.loads(path.read_text())) for stage, path in histories.items()
        }


def evaluate_bundle(bundle: Bundle, run: Run) -> Evaluation:
    """Measure a published bundle on a run's test sets, through the bundle's own predictor; write into the run's folder.

    Raises:
        DataError: the test images are not of the bundle's classes.
    """
    predictor, sets = bundle.predictor, run.test_sets
    if sets.test.classes != bundle.manifest.classes:
        raise DataError(f"{sets.test.name} has classes {sets.test.classes}; the bundle has {bundle.manifest.classes}")
    scores = score_sets(predictor.scorer, sets, run.say)
    result = evaluate(sets, scores, None, predictor, draws=run.recipe.evaluate.draws, seed=run.recipe.seed, say=run.say)
    report.write(run.folder / f"{EVALUATE}-{bundle.manifest.name}@{bundle.manifest.version}", result, scores, None)
    return result
