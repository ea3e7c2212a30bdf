"""One entry per network family: from the manifest's spec to an untrained module."""

import torch
from torch import nn

from model_store.manifest import NetworkSpec, TorchvisionSpec, WideResNetSpec
from model_store.networks.wide_resnet import WideResNet


def build_network(spec: NetworkSpec) -> nn.Module:
    """Build the network that `spec` describes, randomly initialised, in training mode.

    Its forward maps normalised float (N, 3, H, W) to a `NetworkOutput`.

    Raises:
        ValueError: the family has no such network, or needs a package that is not installed.
    """
    match spec:
        case WideResNetSpec():
            return WideResNet(spec.depth, spec.widen_factor, spec.dropout, spec.num_classes)
        case TorchvisionSpec():
            try:
                from model_store.networks.torchvision_classifier import TorchvisionClassifier  # only if used
            except ModuleNotFoundError as err:
                raise ValueError(
                    f"{spec.name} is a network of torchvision, and there is no {err.name} here; "
                    "pip install 'energy-ood[torchvision]'"
                ) from err
            return TorchvisionClassifier(spec.name, spec.num_classes)


def outlined(spec: NetworkSpec) -> nn.Module:
    """Build the network for its shapes alone: without values, so without memory for them, if it can be built so.

    Raises:
        ValueError: as `build_network`.
    """
    try:
        with torch.device("meta"):
            return build_network(spec)
    except NotImplementedError:  # a RegNet computes its widths by tensors, whose values it needs
        return build_network(spec)
