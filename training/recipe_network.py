"""Whether a recipe's network takes the recipe's images, before anything is made of it."""

import torch
from torch import nn

from model_store.manifest import NetworkSpec, OnnxSpec, PreprocessSpec
from model_store.networks import NormalisedNetwork, build_network
from training.errors import RecipeError

ANOTHER_SIZE = "take another preprocess.height and preprocess.width"


def require_fit(spec: NetworkSpec, preprocess: PreprocessSpec, images: int = 2, *, trained: bool = True) -> None:
    """Refuse a network that cannot be trained on images of this size, by a forward pass on the CPU.

    images: how many the smallest batch has, 1 or 2 for more: batch norm over maps of one pixel needs two.
    trained: whether any stage trains it, or measures its batch norm; otherwise it need only classify them.

    Raises:
        RecipeError: what the network says to them.
    """
    if isinstance(spec, OnnxSpec):  # whose graph comes with the weights, and is not trained
        return
    network = build_network(spec)
    if not trained:
        require_classifies(network, spec, preprocess)
        return
    try:
        _pass(network.train(), preprocess, images)
    except Exception as err:  # every architecture has an error of its own
        size, way_out = _size(preprocess), ANOTHER_SIZE
        if images == 1:
            size, way_out = f"{size}, one of them alone in the last batch of an epoch", "change pretrain.batch_size"
        raise RecipeError(
            f"network {spec.title} cannot be trained on images of {size} ({err}); {way_out}, or take another network"
        ) from err


def require_classifies(network: nn.Module, spec: NetworkSpec, preprocess: PreprocessSpec) -> None:
    """Refuse a network that cannot classify images of this size as it is, by a forward pass on the CPU.

    network: put in evaluation mode.

    Raises:
        RecipeError: what the network says to them.
    """
    try:
        _pass(network.eval(), preprocess, images=2)
    except Exception as err:
        reason = " ".join(str(err).split())  # onnxruntime's are of several lines
        raise RecipeError(
            f"network {spec.title} cannot classify images of {_size(preprocess)} ({reason}); {ANOTHER_SIZE}, or take "
            "another network"
        ) from err


def _pass(network: nn.Module, preprocess: PreprocessSpec, images: int) -> None:
    batch = torch.zeros(images, preprocess.height, preprocess.width, 3, dtype=torch.uint8)
    with torch.no_grad():
        NormalisedNetwork(network, preprocess)(batch)


def _size(preprocess: PreprocessSpec) -> str:
    return f"{preprocess.height}x{preprocess.width}"
