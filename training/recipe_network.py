"""Whether a recipe's network takes the recipe's images, before it is trained."""

import torch

from model_store.manifest import NetworkSpec, OnnxSpec, PreprocessSpec
from model_store.networks import NormalisedNetwork, build_network
from training.errors import RecipeError


def require_fit(spec: NetworkSpec, preprocess: PreprocessSpec, images: int = 2) -> None:
    """Refuse a network that cannot be trained on images of this size, by a forward pass on the CPU.

    images: how many the smallest batch has, 1 or 2 for more: batch norm over maps of one pixel needs two.

    Raises:
        RecipeError: what the network says to them.
    """
    if isinstance(spec, OnnxSpec):  # whose graph comes with the weights, and is not trained
        return
    network = NormalisedNetwork(build_network(spec), preprocess).train()
    batch = torch.zeros(images, preprocess.height, preprocess.width, 3, dtype=torch.uint8)
    try:
        with torch.no_grad():
            network(batch)
    except Exception as err:  # every architecture has an error of its own
        size, way_out = f"{preprocess.height}x{preprocess.width}", "take another preprocess.height and preprocess.width"
        if images == 1:
            size, way_out = f"{size}, one of them alone in the last batch of an epoch", "change pretrain.batch_size"
        raise RecipeError(
            f"network {spec.title} cannot be trained on images of {size} ({err}); {way_out}, or take another network"
        ) from err
