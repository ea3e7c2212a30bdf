"""A recipe's network before it is trained: its shapes, and whether it takes the recipe's images."""

import torch
from torch import nn

from model_store.manifest import NetworkSpec, PreprocessSpec, TorchvisionSpec
from model_store.networks import NormalisedNetwork, build_network
from training.errors import RecipeError


def outlined(spec: NetworkSpec) -> nn.Module:
    """Return the network for its shapes; without values, if it can be built so.

    Raises:
        ValueError: as `build_network`.
    """
    try:
        with torch.device("meta"):
            return build_network(spec)
    except NotImplementedError:  # a RegNet computes its widths by tensors, whose values it needs
        return build_network(spec)


def require_fit(spec: NetworkSpec, preprocess: PreprocessSpec) -> None:
    """Refuse a network that cannot be trained on images of this size, by a forward pass of two on the CPU.

    Raises:
        RecipeError: what the network says to them.
    """
    network = NormalisedNetwork(build_network(spec), preprocess).train()
    images = torch.zeros(2, preprocess.height, preprocess.width, 3, dtype=torch.uint8)
    try:
        with torch.no_grad():
            network(images)
    except Exception as err:  # every architecture has an error of its own
        name = spec.name if isinstance(spec, TorchvisionSpec) else spec.kind
        raise RecipeError(
            f"network {name} cannot be trained on images of {preprocess.height}x{preprocess.width} ({err}); take "
            "another preprocess.height and preprocess.width, or another network"
        ) from err
