"""Stage 2: energies of in-distribution images and of outliers are driven apart, from the classifier's weights."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from model_store.networks import build_network
from training.batches import LabelledBatches, mixed_batches
from training.config import SYNTHETIC, Recipe
from training.datasets import ImageSet
from training.losses import make_objective
from training.mining import mined
from training.objective_spec import BalancedEnergySpec, Margins
from training.outlier_classes import outlier_pieces, remembered_classes
from training.pretrain import pretrain_inputs
from training.run_folder import open_stage, read_weights, require_inputs, weights_sha256
from training.trainer import Stage, Trainer


def finetune_inputs(recipe: Recipe, train_set: ImageSet, outliers: ImageSet | None, pretrained: Path) -> dict[str, Any]:
    """Return all that the fine-tuned weights depend on, those in the folder `pretrained` among it.

    outliers: None if they are made of the training images.
    """
    return {
        **pretrain_inputs(recipe, train_set),
        "finetune": recipe.finetune and recipe.finetune.model_dump(exclude_none=True),
        "classifier": weights_sha256(pretrained),
        "outliers": SYNTHETIC if outliers is None else {"sha256": outliers.fingerprint, "images": len(outliers)},
    }


def finetune(
    recipe: Recipe,
    train_set: ImageSet,
    outliers: ImageSet | None,
    pretrained: Path,
    folder: Path,
    trainer: Trainer,
) -> nn.Module:
    """Fine-tune the classifier in the folder `pretrained`, or resume or load what `folder` holds; return it.

    outliers: None to make them of the training images.

    Raises:
        RecipeError: the margins are still to be chosen, or the recipe does not fine-tune.
        ResumeError: the classifier is not trained, or `folder` holds another recipe's network.
        DivergedError: the loss is not finite.
    """
    trainer.processes.first_does(lambda: require_inputs(pretrained, pretrain_inputs(recipe, train_set)))
    inputs = trainer.processes.first_does(lambda: finetune_inputs(recipe, train_set, outliers, pretrained))
    return _from_classifier(recipe.settled(), train_set, outliers, pretrained, "finetune", folder, inputs, trainer)


def try_margins(
    recipe: Recipe,
    margins: Margins,
    train_set: ImageSet,
    validation: ImageSet,
    outliers: ImageSet | None,
    pretrained: Path,
    folder: Path,
    trainer: Trainer,
) -> nn.Module:
    """Fine-tune with these margins for the epochs of the recipe's selection, without the images of `validation`.

    Every pair of margins is tried on the same batches. As resumable as the fine-tuning itself.

    train_set: the recipe's, from which the validation images are taken away here.

    Raises:
        ResumeError: the classifier is not trained, or `folder` holds another trial.
        DivergedError: the loss is not finite.
    """
    trainer.processes.first_does(lambda: require_inputs(pretrained, pretrain_inputs(recipe, train_set)))
    trial = recipe.trial(margins)
    inputs = {
        **trainer.processes.first_does(lambda: finetune_inputs(trial, train_set, outliers, pretrained)),
        "validation_images": len(validation),
    }
    shown = train_set.without(validation)
    return _from_classifier(trial, shown, outliers, pretrained, "select", folder, inputs, trainer)


def _from_classifier(
    recipe: Recipe,
    train_set: ImageSet,
    outliers: ImageSet | None,
    pretrained: Path,
    name: str,
    folder: Path,
    inputs: dict[str, Any],
    trainer: Trainer,
) -> nn.Module:
    device, processes = trainer.device, trainer.processes
    processes.first_does(lambda: open_stage(folder, inputs))  # before anything is kept there
    network, spec = build_network(recipe.network), recipe.finetuning
    processes.first_fills(network, lambda: read_weights(pretrained, network))
    labelled = LabelledBatches(train_set, spec.batch_size, spec.augment or recipe.augment, device, processes)
    batches = mixed_batches(labelled, outliers, spec.outlier_batch_size, recipe.seed)
    classes = None
    if isinstance(spec.objective, BalancedEnergySpec):
        pieces = outlier_pieces(outliers, train_set, recipe.seed)
        counts = processes.first_does(lambda: remembered_classes(folder, network, recipe.preprocess, pieces, device))
        classes = torch.from_numpy(counts).to(device)
    objective = make_objective(spec.objective, classes)
    stage = Stage(
        name=name,
        objective=mined(objective, spec.mining.clusters) if spec.mining else objective,
        batches=batches,
        optimisation=spec,
        execution=recipe.execution,
        seed=recipe.seed,
        folder=folder,
    )
    trainer.train_or_load(network, recipe.preprocess, stage, inputs)
    return network
