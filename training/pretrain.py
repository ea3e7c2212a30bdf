"""Stage 1: a classifier, by cross-entropy, from scratch or from a network that is there already."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from model_store.networks import build_network
from training.batches import LabelledBatches
from training.config import Recipe
from training.datasets import ImageSet
from training.errors import RecipeError
from training.losses import make_objective
from training.objective_spec import CrossEntropySpec
from training.trainer import Stage, Trainer


def pretrain_inputs(recipe: Recipe, train_set: ImageSet) -> dict[str, Any]:
    """Return all that the classifier's weights depend on."""
    return {
        "seed": recipe.seed,
        "network": recipe.network.model_dump(),
        "preprocess": recipe.preprocess.model_dump(),
        "augment": recipe.augment.model_dump(),
        "execution": recipe.execution.model_dump(),
        "pretrain": recipe.pretrain.model_dump() if recipe.pretrain else None,
        "start": recipe.start,
        "weights": recipe.weights,
        "train": {
            "sha256": train_set.fingerprint,
            "images": len(train_set),
            "uneven_classes": train_set.uneven_classes,  # how a split held out each class
        },
    }


def pretrain(
    recipe: Recipe,
    train_set: ImageSet,
    folder: Path,
    trainer: Trainer,
    start: nn.Module | None = None,
) -> nn.Module:
    """Train `start`, or the recipe's network from scratch; or resume or load it from `folder`. Return it.

    Raises:
        RecipeError: the recipe has no such stage.
        ResumeError: `folder` holds another recipe's classifier.
        DivergedError: the loss is not finite.
    """
    if recipe.pretrain is None:
        raise RecipeError(f"recipe {recipe.name} has no [pretrain]: it starts from {recipe.origin}")
    torch.manual_seed(recipe.seed)
    network = build_network(recipe.network) if start is None else start
    stage = Stage(
        name="pretrain",
        objective=make_objective(CrossEntropySpec()),
        batches=LabelledBatches(
            train_set, recipe.pretrain.batch_size, recipe.augment, trainer.device, trainer.processes
        ),
        optimisation=recipe.pretrain,
        execution=recipe.execution,
        seed=recipe.seed,
        folder=folder,
    )
    trainer.train_or_load(network, recipe.preprocess, stage, pretrain_inputs(recipe, train_set))
    return network
