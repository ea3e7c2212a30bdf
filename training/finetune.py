"""Stage 2: energies of in-distribution images and of outliers are driven apart, from the classifier's weights."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from model_store.networks import build_network
from training.batches import LabelledBatches, OutlierBatches
from training.config import Recipe
from training.datasets import ImageSet
from training.distributed import ALONE, Processes
from training.losses import make_objective
from training.pretrain import pretrain_inputs
from training.run_folder import read_weights, require_inputs, weights_sha256
from training.trainer import Progress, Stage, train_or_load


def finetune_inputs(recipe: Recipe, train_set: ImageSet, outliers: ImageSet, pretrained: Path) -> dict[str, Any]:
    """Return all that the fine-tuned weights depend on, the classifier in the folder `pretrained` among it."""
    return {
        **pretrain_inputs(recipe, train_set),
        "finetune": recipe.finetune.model_dump(exclude_none=True),
        "classifier": weights_sha256(pretrained),
        "outliers": {"sha256": outliers.fingerprint, "images": len(outliers)},
    }


def finetune(
    recipe: Recipe,
    train_set: ImageSet,
    outliers: ImageSet,
    pretrained: Path,
    folder: Path,
    device: torch.device,
    progress: Progress,
    processes: Processes = ALONE,
) -> nn.Module:
    """Fine-tune the classifier in the folder `pretrained`, or resume or load what `folder` holds; return it.

    Raises:
        ResumeError: the classifier is not trained, or `folder` holds another recipe's network.
        DivergedError: the loss is not finite.
    """
    network = build_network(recipe.network)
    processes.first_does(lambda: require_inputs(pretrained, pretrain_inputs(recipe, train_set)))
    processes.first_fills(network, lambda: read_weights(pretrained, network))
    augment = recipe.finetune.augment or recipe.augment
    labelled = LabelledBatches(train_set, recipe.finetune.batch_size, augment, device, processes)
    stage = Stage(
        name="finetune",
        objective=make_objective(recipe.finetune.objective),
        batches=OutlierBatches(labelled, outliers, recipe.finetune.outlier_batch_size, recipe.seed),
        optimisation=recipe.finetune,
        execution=recipe.execution,
        seed=recipe.seed,
        folder=folder,
        processes=processes,
    )
    inputs = processes.first_does(lambda: finetune_inputs(recipe, train_set, outliers, pretrained))
    train_or_load(network, recipe.preprocess, stage, inputs, device, progress)
    return network
