"""Negative energies of logits that the last layer gives to changed features."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from model_store.networks.output import NetworkOutput
from model_store.scores.logits import negative_energy
from model_store.scores.score import Head, require_features

MAX_RATIO = 60.0
"""SCALE's exponent is cut off here: exp(60) is 1e26, and features times it stay finite in float32. Features that are
not negative give at most D over the number summed, 6.7 for 128 features at the 85th percentile."""


@dataclass(frozen=True, eq=False)
class React:
    """logsumexp(W min(h, c) + b), c a percentile of all training features: Sun et al. 2021 (ReAct)."""

    head: Head
    clip: Tensor
    name: Literal["react"] = "react"

    @property
    def statistics(self) -> Mapping[str, Tensor]:
        """`clip` float32 (): c."""
        return {"clip": self.clip}

    def __call__(self, output: NetworkOutput) -> Tensor:
        """Return float32 (N,)."""
        require_features(output.features, self.head.weight.shape[1])
        return negative_energy(self.head.logits(output.features.minimum(self.clip)))


@dataclass(frozen=True, eq=False)
class Scale:
    """logsumexp(W h exp(s1 / s2) + b), s1 the sum of h, s2 that of its largest features: Xu et al. 2024 (SCALE).

    Summed in s2 are the D - round(percentile D) largest, as the reference implementation has it. Where s2 is 0 or less
    nothing is scaled.
    """

    head: Head
    percentile: float = 0.85
    name: Literal["scale"] = "scale"

    @property
    def statistics(self) -> Mapping[str, Tensor]:
        """Nothing."""
        return {}

    def __call__(self, output: NetworkOutput) -> Tensor:
        """Return float32 (N,)."""
        width = self.head.weight.shape[1]
        require_features(output.features, width)
        kept = max(1, width - round(self.percentile * width))
        total = output.features.sum(dim=1, keepdim=True)
        largest = output.features.topk(kept, dim=1, sorted=False).values.sum(dim=1, keepdim=True)
        ratio = (total / largest.where(largest > 0, 1.0)).where(largest > 0, 0.0).clamp(max=MAX_RATIO)
        return negative_energy(self.head.logits(output.features * ratio.exp()))
