"""Stage 2 for who has fine-tuned networks already: their mean, with batch-norm statistics of its own."""

from pathlib import Path
from typing import Any

import torch
from torch import Generator, nn

from model_store.networks import NormalisedNetwork, build_network
from training.batches import LabelledBatches, mixed_batches
from training.config import SYNTHETIC, Recipe
from training.datasets import ImageSet
from training.errors import RecipeError
from training.pretrain import pretrain_inputs
from training.run_folder import is_done, open_stage, read_weights, require_inputs, weights_sha256, write_weights
from training.trainer import measure_batch_norm


def average_inputs(recipe: Recipe, train_set: ImageSet, outliers: ImageSet | None, mean: Path) -> dict[str, Any]:
    """Return all that the averaged network depends on, the mean of the weights in the folder `mean` among it.

    outliers: None if they are made of the training images.
    """
    return {
        **pretrain_inputs(recipe, train_set),
        "average": recipe.average.model_dump() if recipe.average else None,
        "classifier": weights_sha256(mean),
        "outliers": SYNTHETIC if outliers is None else {"sha256": outliers.fingerprint, "images": len(outliers)},
    }


def average(
    recipe: Recipe, train_set: ImageSet, outliers: ImageSet | None, mean: Path, folder: Path, device: torch.device
) -> nn.Module:
    """Measure batch-norm statistics for the mean of networks in the folder `mean`, or load what `folder` holds.

    Statistics do not average as weights do: the mean network's activations are no mean of the networks' activations.

    outliers: None to make them of the training images.

    Raises:
        RecipeError: the recipe fine-tunes instead.
        ResumeError: the mean is not there, or `folder` holds another recipe's network.
    """
    if recipe.average is None:
        raise RecipeError(f"recipe {recipe.name} has no [average]: it fine-tunes")
    require_inputs(mean, pretrain_inputs(recipe, train_set))
    open_stage(folder, average_inputs(recipe, train_set, outliers, mean))
    network = build_network(recipe.network)
    if is_done(folder):
        read_weights(folder, network)
        return network
    read_weights(mean, network)
    labelled = LabelledBatches(train_set, recipe.average.batch_size, recipe.augment, device)
    batches = mixed_batches(labelled, outliers, recipe.average.outlier_batch_size, recipe.seed)
    whole = NormalisedNetwork(network, recipe.preprocess).to(device)
    measure_batch_norm(whole, batches, Generator(device).manual_seed(recipe.seed))
    write_weights(folder, network)
    return network
