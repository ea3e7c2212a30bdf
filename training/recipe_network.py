"""Whether a recipe's network takes the recipe's images, before it is trained."""

import torch

from model_store.manifest import NetworkSpec, OnnxSpec, PreprocessSpec
from model_store.networks import NormalisedNetwork, build_network
from training.errors import RecipeError


def require_fit(spec: NetworkSpec, preprocess: PreprocessSpec) -> None:
    """Refuse a network that cannot be trained on images of this size, by a forward pass of two on the CPU.

    Raises:
        RecipeError: what the network says to them.
    """
    if isinstance(spec, OnnxSpec):  # whose graph comes with the weights, and is not trained
        return
    network = NormalisedNetwork(build_network(spec), preprocess).train()
    images = torch.zeros(2, preprocess.height, preprocess.width, 3, dtype=torch.uint8)
    try:
        with torch.no_grad():
            network(images)
    except Exception as err:  # every architecture has an error of its own
        raise RecipeError(
            f"network {spec.title} cannot be trained on images of {preprocess.height}x{preprocess.width} ({err}); take "
            "another preprocess.height and preprocess.width, or another network"
        ) from err
