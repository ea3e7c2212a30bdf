"""One entry per network family: from the manifest's spec to an untrained module."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from model_store.manifest import NetworkSpec, OnnxSpec, TimmSpec, TorchvisionSpec, WideResNetSpec
from model_store.networks.onnx_classifier import OnnxClassifier
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
            with _needed("torchvision", spec.name):
                from model_store.networks.torchvision_classifier import torchvision_classifier  # only if used

                return torchvision_classifier(spec.name, spec.num_classes)
        case TimmSpec():
            with _needed("timm", spec.name):
                from model_store.networks.timm_classifier import timm_classifier  # only if used

                return timm_classifier(spec.name, spec.num_classes)
        case OnnxSpec():
            return OnnxClassifier(spec.graph_bytes, spec.features, spec.num_classes)


@contextmanager
def _needed(library: str, network: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as err:
        raise ValueError(
            f"{network} is a network of {library}, and there is no {err.name} here; pip install 'energy-ood[{library}]'"
        ) from err


def outlined(spec: NetworkSpec) -> nn.Module:
    """Build the network for its shapes alone: without values, so without memory for them, if it can be built so.

    Raises:
        ValueError: as `build_network`.
    """
    try:
        with torch.device("meta"):
            return build_network(spec)
    except (NotImplementedError, RuntimeError):  # a RegNet computes its widths by tensors, whose values it needs
        return build_network(spec)
