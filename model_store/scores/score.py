"""What every score offers."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from model_store.networks.output import NetworkOutput
from model_store.score_specs import ScoreName


class OnePassScore(Protocol):
    """A score from one forward pass; higher means more in-distribution. Frozen, and no row depends on another."""

    @property
    def name(self) -> ScoreName:
        """Which of the scores it is."""
        ...

    @property
    def statistics(self) -> Mapping[str, Tensor]:
        """What was fitted, by name, on the host; empty where nothing was."""
        ...

    def __call__(self, output: NetworkOutput) -> Tensor:
        """Return float32 (N,), for logits float32 (N, K) and features float32 (N, D), computed in float32."""
        ...


class Head(NamedTuple):
    """A network's last layer, logits = features @ weight.T + bias: weight float32 (K, D), bias float32 (K,)."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, network: nn.Module) -> "Head":
        """Copy the last layer of a network of ours to the host."""
        layer = network.head
        if not isinstance(layer, nn.Linear):
            raise TypeError(f"head is {type(layer).__name__}; every network of ours ends in Linear")
        weight = layer.weight.detach().float().cpu().clone()
        return cls(
            weight, torch.zeros(len(weight)) if layer.bias is None else layer.bias.detach().float().cpu().clone()
        )

    def logits(self, features: Tensor) -> Tensor:
        """Return float32 (N, K) of features float32 (N, D)."""
        return torch.addmm(self.bias, features, self.weight.T)


def require_features(features: Tensor, width: int) -> None:
    """Refuse features of another shape or type than were fitted.

    Raises:
        ValueError: they are not float32 (N, width).
    """
    if features.ndim != 2 or features.dtype != torch.float32 or features.shape[1] != width:
        raise ValueError(f"features are {features.dtype} {tuple(features.shape)}; the score takes float32 (N, {width})")
