"""The step between stored pixels and a network: to float, to the training mean and std."""

import torch
from torch import Tensor, nn

from model_store.manifest import PreprocessSpec
from model_store.networks.output import NetworkOutput


class NormalisedNetwork(nn.Module):
    """A network that takes pixels as they travel: uint8 (N, H, W, 3)."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, preprocess: PreprocessSpec) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(preprocess.mean).mul(255).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std).mul(255).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> NetworkOutput:
        """Return logits and features of uint8 (N, H, W, 3); the permuted view is channels-last already."""
        output: NetworkOutput = self.network(self.normalise(images))
        return output

    def normalise(self, images: Tensor) -> Tensor:
        """Return what the network itself takes, float32 (N, 3, H, W), of uint8 (N, H, W, 3)."""
        return (images.permute(0, 3, 1, 2).float() - self.mean) / self.std
