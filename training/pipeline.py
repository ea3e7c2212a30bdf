"""A run of a recipe, and the only file that knows the order of its stages."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model_store.evaluation import Evaluation
from model_store.networks import build_network
from model_store.predictor import Predictor, Scorer
from model_store.runtimes import TorchRuntime
from model_store.scores import Head
from model_store.store import SHIPPED, Store
from training import report
from training.average import average, average_inputs
from training.calibrate import Calibrated, calibrate, choose_rank
from training.config import Recipe
from training.distributed import ALONE, Processes
from training.errors import RecipeError, ResumeError
from training.evaluate import Say, evaluate, score_sets
from training.finetune import finetune, finetune_inputs
from training.fit_scores import fit_scores
from training.given_weights import given_weights
from training.hardware import hardware, together
from training.preflight import require_batches, require_network, require_runnable
from training.pretrain import pretrain, pretrain_inputs
from training.publish import draft_bundle, provenance, publish
from training.run_folder import (
    INPUTS,
    is_done,
    read_weights,
    require_inputs,
    require_unbegun,
    require_writable,
    weights_sha256,
    write_json,
)
from training.run_sets import RunSets
from training.select_margins import chosen_margins, select_margins
from training.selection import Choice
from training.start import start, untuned_figures
from training.trainer import CHECKPOINT, Progress, Trainer, read_checkpoint

START, PRETRAIN, SELECT, FINETUNE, AVERAGE, CALIBRATE, EVALUATE = (
    "start",
    "pretrain",
    "select",
    "finetune",
    "average",
    "calibrate",
    "evaluate",
)


@dataclass(frozen=True)
class Run:
    """One recipe, the data it reads, the folder it fills (a sub-folder a stage) and the device it uses.

    Every stage may be called alone once those before it are done; finished epochs are never repeated.
    """

    recipe: Recipe
    data_dir: Path
    folder: Path
    device: torch.device
    progress: Progress
    say: Say
    start_stores: tuple[Store, ...] = (Store(SHIPPED),)
    """Where the bundle that a recipe starts from is looked for, in order."""
    processes: Processes = ALONE
    """Those that train together; `check`, `pretrain` and `finetune` are called in each, the rest in the first alone."""

    def __post_init__(self) -> None:
        """Refuse, before anything is read, batches that the processes cannot share evenly, and too small a calibration.

        Raises:
            RecipeError: a batch size of any stage is no multiple of the number of processes, or a process's share of a
                batch has not all kinds of synthetic outliers.
            DataError: fewer calibration images than the method needs.
        """
        require_batches(self.recipe, self.processes)
        if held_out := self.recipe.data.calibration_images:
            choose_rank(self.recipe.calibrate, held_out)

    def all(self, store: Store) -> Path | None:
        """Run every stage; return the published bundle, or None for a recipe that holds out no calibration images.

        After training the first process goes on alone, and the others end.

        Raises:
            DataError: a set that any stage needs is missing or unfit; nothing is trained then.
            OutputError: the bundle could not be put into the store; nothing is trained then, either.
        """
        if self.recipe.data.calibration_images:
            self.processes.first_does(lambda: require_writable(store.root / self.recipe.name))
        self.check()
        self.pretrain()
        if self.recipe.selects_margins:
            self.select()
        if self.recipe.finetune:
            self.finetune()
        self.processes.leave_to_first()
        if self.recipe.average:
            self.average()
        if not self._is_evaluated():
            self.evaluate()
        return self.publish(store) if self.recipe.data.calibration_images else None

    def check(self) -> None:
        """Read every set and see whether each can play its role, before hours go into training.

        Says which sets hold training images. The test sets are read in the first process alone.

        Raises:
            DataError: a set is missing or unfit, sets differ in encoding, or there are too few images to
                validate margins by or to fit a score on.
            RecipeError: the network does not take images of the recipe's size, or the bundle would be larger than the
                recipe allows.
        """
        require_runnable(self.recipe, self.sets, self.processes, self.say)

    def pretrain(self) -> nn.Module:
        """Train the classifier, from scratch or on from a network that there is; or take that as it is.

        Raises:
            RecipeError: the network does not take images of the recipe's size.
        """
        require_network(self.recipe, self.processes)
        recipe, folder = self.recipe, self.folder / PRETRAIN
        train_set = self.sets.train
        if recipe.start is None and recipe.weights is None:
            return pretrain(recipe, train_set, folder, self._trainer)
        if recipe.pretrain and not is_done(self._start_folder):
            require_unbegun(folder, self._start_folder)
        network = self.processes.first_does(self._begin)
        if recipe.pretrain is None:
            return network
        return pretrain(recipe, train_set, folder, self._trainer, network)

    def _begin(self) -> nn.Module:
        recipe, train_set, folder = self.recipe, self.sets.train, self._start_folder
        if recipe.weights is not None:
            return given_weights(recipe, train_set, self.data_dir, folder, self.say)
        return start(recipe, train_set, self.start_stores, folder, self.device, self.say)

    def select(self) -> Choice:
        """Choose the margins by outliers made of held-out training images; no test set is read for it.

        Raises:
            RecipeError: the recipe gives its margins, or says which were chosen.
        """
        if chosen := self.recipe.selection.chosen:  # which raises before any set is read
            raise RecipeError(
                f"recipe {self.recipe.name} has its margins chosen, {chosen}; take finetune.selection.chosen away to "
                "choose them anew"
            )
        return select_margins(
            self.recipe,
            self.sets.train,
            self.sets.outliers,
            self.folder / PRETRAIN,
            self.folder / SELECT,
            self._trainer,
            self.say,
        )

    def finetune(self) -> nn.Module:
        """Drive the energies of in-distribution images and of outliers apart.

        Raises:
            RecipeError: the recipe does not.
        """
        _ = self.recipe.finetuning  # which raises before any set is read
        train_set, outliers = self.sets.train, self.sets.outliers  # which all processes read together
        return finetune(
            self.processes.first_does(lambda: self._with_margins),
            train_set,
            outliers,
            self.folder / PRETRAIN,
            self.folder / FINETUNE,
            self._trainer,
        )

    def average(self) -> nn.Module:
        """Take the mean of the start bundles, or of the classifier and the fine-tuned network.

        Raises:
            RecipeError: the recipe takes none.
        """
        _ = self.recipe.averaging  # which raises before any set is read
        folders = self.folder / PRETRAIN, self.folder / FINETUNE, self.folder / AVERAGE
        return average(self._with_margins, self.sets.train, self.sets.outliers, *folders, self.device)

    def calibrate(self) -> Calibrated:
        """Fit the recipe's scores to the network and set every threshold on the held-out images.

        Raises:
            RecipeError: the recipe holds out none.
        """
        if not self.recipe.data.calibration_images:
            raise RecipeError(
                f"recipe {self.recipe.name} holds out no calibration images, so it has no threshold and no bundle; "
                "set data.calibration_images, 5000 say"
            )
        self.say("calibrating")
        scorer, head = self._scorer(self._last), Head.of(self._network(self._last))
        further = fit_scores(self.recipe.scores, scorer, self.sets.train, head)
        folder = self.folder / CALIBRATE
        return calibrate(self.recipe.calibrate, scorer, self.sets.held_out, self.recipe.seed, folder, further)

    def evaluate(self) -> Evaluation:
        """Measure the network beside the classifier it came from, if it came from one; write figures, tables and plot.

        A network taken from a bundle is no such classifier; the figures of that one are in the bundle's manifest.
        """
        sets = self.sets.tests
        untuned = (
            None if self.recipe.start or self._last == PRETRAIN else score_sets(self._scorer(PRETRAIN), sets, self.say)
        )
        fine_tuned = score_sets(self._scorer(self._last), sets, self.say)
        result = evaluate(
            sets,
            fine_tuned,
            untuned,
            self._predictor if self.recipe.data.calibration_images else None,
            draws=self.recipe.evaluate.draws,
            seed=self.recipe.seed,
            say=self.say,
        )
        if self.recipe.start:
            figures = untuned_figures(self.recipe, self._start_folder, self.sets.fingerprints())
            result = result.model_copy(update={"untuned": figures})
        folder = self.folder / EVALUATE
        (folder / INPUTS).unlink(missing_ok=True)
        report.write(folder, result, self.recipe.calibrate.verdict, fine_tuned, untuned)
        write_json(folder / "sets.json", [record.model_dump() for record in self.sets.records])
        write_json(folder / INPUTS, self._evaluate_inputs())
        return result

    def publish(self, store: Store) -> Path:
        """Put weights, threshold, figures and golden images into a bundle of `store`; return its folder.

        Raises:
            ResumeError: the run has not been evaluated, or was by another recipe or on other images.
        """
        require_inputs(self.folder / EVALUATE, self._evaluate_inputs())
        path = self.folder / EVALUATE / "evaluation.json"
        evaluation = Evaluation.model_validate_json(path.read_text())
        created = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
        draft = draft_bundle(
            self._with_margins,
            self._network(self._last),
            self._predictor,
            self._calibrated,
            self.sets.held_out,
            evaluation,
            provenance(self._with_margins, self.sets.records, self._hardware(), self._stage_seconds(), created),
        )
        return publish(store, draft)

    def kept(self) -> str:
        """Return what of the training is safe on disk, and how to go on."""
        again = "run the same command to go on"
        stages = {AVERAGE: None, FINETUNE: self.recipe.finetune, PRETRAIN: self.recipe.pretrain}
        for name, spec in stages.items():
            if is_done(self.folder / name):
                return f"{name} is done, in {self.folder / name}; {again}"
            if spec and (state := read_checkpoint(self.folder / name / CHECKPOINT)):
                return f"{name} is kept up to epoch {len(state['history'])} of {spec.epochs}, in {self.folder}; {again}"
        return "no epoch was finished"

    @cached_property
    def sets(self) -> RunSets:
        """The recipe's image sets."""
        return RunSets(self.recipe, self.data_dir, self.say, self.processes)

    @property
    def _last(self) -> str:
        """The stage that ends in the network of the bundle."""
        if self.recipe.average:
            return AVERAGE
        return FINETUNE if self.recipe.finetune else PRETRAIN

    @property
    def _start_folder(self) -> Path:
        """Where the network of the bundle is kept: the classifier's own folder, unless that is trained from it."""
        return self.folder / (START if self.recipe.pretrain else PRETRAIN)

    @property
    def _trainer(self) -> Trainer:
        return Trainer(self.device, self.progress, self.processes)

    @cached_property
    def _with_margins(self) -> Recipe:
        """The recipe with its margins, once they are chosen."""
        if not self.recipe.selects_margins:
            return self.recipe
        folders = self.folder / PRETRAIN, self.folder / SELECT
        return self.recipe.with_chosen(chosen_margins(self.recipe, self.sets.train, self.sets.outliers, *folders))

    @cached_property
    def _calibrated(self) -> Calibrated:
        return self.calibrate()

    @property
    def _predictor(self) -> Predictor:
        return self._calibrated.predictor(self._scorer(self._last))

    def _is_evaluated(self) -> bool:
        try:
            require_inputs(self.folder / EVALUATE, self._evaluate_inputs())
        except ResumeError:
            return False
        return True

    def _evaluate_inputs(self) -> dict[str, Any]:
        return {
            **self._inputs(self._last),
            "fine-tuned": weights_sha256(self.folder / self._last),
            "calibrate": self.recipe.calibrate.model_dump(),
            "scores": {spec.kind: spec.model_dump(exclude={"kind"}) for spec in self.recipe.scores},
            "evaluate": self.recipe.evaluate.model_dump(),
            "sets": self.sets.fingerprints(),
            "far_ood": list(self.sets.tests.far_ood),
        }

    def _inputs(self, stage: str) -> dict[str, Any]:
        if stage == PRETRAIN:
            return pretrain_inputs(self.recipe, self.sets.train)
        made_from = self._with_margins, self.sets.train, self.sets.outliers, self.folder / PRETRAIN
        if stage == FINETUNE:
            return finetune_inputs(*made_from)
        return average_inputs(*made_from, self.folder / FINETUNE)

    def _network(self, stage: str) -> nn.Module:
        network = build_network(self.recipe.network)
        require_inputs(self.folder / stage, self._inputs(stage))
        read_weights(self.folder / stage, network)
        return network

    def _scorer(self, stage: str) -> Scorer:
        runtime = TorchRuntime(self._network(stage), self.recipe.preprocess, device=self.device)
        return Scorer(runtime, self.recipe.preprocess, self.recipe.calibrate.temperature)

    def _hardware(self) -> str:
        """Return what trained, and what calibrates, evaluates and publishes, which may be another machine."""
        trained = [epoch.get("hardware") for epochs in self._histories().values() for epoch in epochs]
        return together([*trained, hardware(self.device)])

    def _stage_seconds(self) -> dict[str, float]:
        return {stage: sum(epoch["seconds"] for epoch in epochs) for stage, epochs in self._histories().items()}

    def _histories(self) -> dict[str, list[dict[str, Any]]]:
        """Return the epochs that each stage trained for, those of all pairs of margins together."""
        stages = {PRETRAIN: self.recipe.pretrain, FINETUNE: self.recipe.finetune}
        paths = {stage: [self.folder / stage / "history.json"] for stage, spec in stages.items() if spec}
        if self.recipe.selects_margins:
            paths[SELECT] = [self.folder / SELECT / str(pair) / "history.json" for pair in self.recipe.selection.pairs]
        return {
            stage: [epoch for path in each for epoch in json.loads(path.read_text())] for stage, each in paths.items()
        }
