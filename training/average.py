"""Stage 2 for who has fine-tuned networks already: their mean, with batch-norm statistics of its own."""

from pathlib import Path

import torch
from torch import Generator, nn

from model_store.networks import NormalisedNetwork, build_network
from training.batches import LabelledBatches, mixed_batches
from training.config import Recipe
from training.datasets import ImageSet
from training.finetune import network_inputs
from training.pretrain import pretrain_inputs
from training.run_folder import is_done, open_stage, read_weights, require_inputs, write_weights
from training.trainer import measure_batch_norm


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
    spec = recipe.averaging
    require_inputs(mean, pretrain_inputs(recipe, train_set))
    open_stage(folder, network_inputs(recipe, train_set, outliers, mean))
    network = build_network(recipe.network)
    if is_done(folder):
        read_weights(folder, network)
        return network
    read_weights(mean, network)
    labelled = LabelledBatches(train_set, spec.batch_size, recipe.augment, device)
    batches = mixed_batches(labelled, outliers, spec.outlier_batch_size, recipe.seed)
    whole = NormalisedNetwork(network, recipe.preprocess).to(device)
    measure_batch_norm(whole, batches, Generator(device).manual_seed(recipe.seed))
    write_weights(folder, network)
    return network
