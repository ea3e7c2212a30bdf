"""Stage 2 for who has fine-tuned networks already, stage 3 after a fine-tuning: a mean, with statistics of its own."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Generator, nn

from model_store.networks import NormalisedNetwork, build_network
from training.batches import LabelledBatches, mixed_batches
from training.config import Recipe
from training.datasets import ImageSet
from training.finetune import finetune_inputs
from training.pretrain import pretrain_inputs
from training.run_folder import (
    WEIGHTS,
    is_done,
    mean,
    open_stage,
    read_weights,
    require_inputs,
    weights_sha256,
    write_weights,
)
from training.trainer import measure_batch_norm


def average_inputs(
    recipe: Recipe, train_set: ImageSet, outliers: ImageSet | None, pretrained: Path, finetuned: Path
) -> dict[str, Any]:
    """Return all that the averaged weights depend on, those in the folders `pretrained` and `finetuned` among it.

    outliers: None if they are made of the training images.
    """
    return {
        **finetune_inputs(recipe, train_set, outliers, pretrained),
        "average": recipe.averaging.model_dump(),
        "fine-tuned": weights_sha256(finetuned) if recipe.finetune else None,
    }


def average(
    recipe: Recipe,
    train_set: ImageSet,
    outliers: ImageSet | None,
    pretrained: Path,
    finetuned: Path,
    folder: Path,
    device: torch.device,
) -> nn.Module:
    """Measure batch-norm statistics for a mean of networks, or load what `folder` holds.

    The mean is that of the classifier in the folder `pretrained` and the network in `finetuned`; where the recipe does
    not fine-tune, `pretrained` holds it already. Statistics do not average as weights do: the mean network's
    activations are no mean of the networks' activations.

    outliers: None to make them of the training images.

    Raises:
        RecipeError: the recipe takes no mean.
        ResumeError: what it is the mean of is not there, or `folder` holds another recipe's network.
    """
    spec = recipe.averaging
    require_inputs(pretrained, pretrain_inputs(recipe, train_set))
    if recipe.finetune:
        require_inputs(finetuned, finetune_inputs(recipe, train_set, outliers, pretrained))
    open_stage(folder, average_inputs(recipe, train_set, outliers, pretrained, finetuned))
    network = build_network(recipe.network)
    if is_done(folder):
        read_weights(folder, network)
        return network
    read_weights(pretrained, network)
    if spec.fine_tuned is not None:
        networks = network.state_dict(), load_file(finetuned / WEIGHTS)
        network.load_state_dict(mean(networks, (1 - spec.fine_tuned, spec.fine_tuned)))
    labelled = LabelledBatches(train_set, spec.batch_size, spec.augment or recipe.augment, device)
    batches = mixed_batches(labelled, outliers, spec.outlier_batch_size, recipe.seed)
    whole = NormalisedNetwork(network, recipe.preprocess).to(device)
    torch.manual_seed(recipe.seed)  # of dropout, which a stage before in this process would have drawn from
    measure_batch_norm(whole, batches, Generator(device).manual_seed(recipe.seed))
    write_weights(folder, network)
    return network
