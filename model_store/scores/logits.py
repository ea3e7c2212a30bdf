"""Scores of the logits alone. Higher means more in-distribution, except where a name says energy alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from model_store.networks.output import NetworkOutput
from model_store.scores import on_arrays


def negative_energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return -E(x; f) = T logsumexp(f(x) / T), float32 (N,), for logits float32 (N, K): Liu et al. 2020, Eq. 4.

    Raises:
        ValueError: logits are not float32 (N, K), or the temperature is not above 0.
    """
    _check(logits, temperature)
    return temperature * torch.logsumexp(logits / temperature, dim=1)


def energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the free energy E(x; f) of Eq. 4, float32 (N,): lower means more in-distribution."""
    return -negative_energy(logits, temperature)


def max_softmax(logits: Tensor) -> Tensor:
    """Return the largest softmax probability, float32 (N,) in (0, 1] (Hendrycks & Gimpel, 2017)."""
    _check(logits, temperature=1.0)
    return torch.softmax(logits, dim=1).amax(dim=1)


def max_logit(logits: Tensor) -> Tensor:
    """Return the largest logit, float32 (N,) (Hendrycks et al., 2022)."""
    _check(logits, temperature=1.0)
    return logits.amax(dim=1)


def gen(logits: Tensor, gamma: float = 0.1, top_classes: int = 100) -> Tensor:
    """Return -sum p^gamma (1 - p)^gamma over the `top_classes` likeliest classes, float32 (N,) at most 0.

    Liu et al. 2023 (GEN), Eq. 5. The complement of the greatest p is summed from the others: 1 - p itself is 0 in
    float32 from p = 1 - 3e-8 on, where the term is still 0.18.

    Raises:
        ValueError: logits are not float32 (N, K), or gamma or top_classes is not above 0.
    """
    _check(logits, temperature=1.0)
    if not (gamma > 0 and top_classes > 0):
        raise ValueError(f"gamma is {gamma}, top_classes {top_classes}; both must be above 0")
    ordered = torch.softmax(logits, dim=1).sort(dim=1, descending=True).values
    top = ordered[:, :top_classes]
    complement = torch.cat([ordered[:, 1:].sum(dim=1, keepdim=True), 1 - top[:, 1:]], dim=1)
    return -(top * complement).pow(gamma).sum(dim=1)


class _Unfitted:
    """A score that is the same for every training set."""

    @property
    def statistics(self) -> Mapping[str, Tensor]:
        """Nothing."""
        return {}


@dataclass(frozen=True)
class NegativeEnergy(_Unfitted):
    """`negative_energy` of a network's output."""

    temperature: float = 1.0
    name: Literal["negative_energy"] = "negative_energy"

    def __call__(self, output: NetworkOutput) -> Tensor:
        """Return float32 (N,)."""
        return torch.from_numpy(on_arrays.negative_energy(output.logits.numpy(), self.temperature))


@dataclass(frozen=True)
class MaxSoftmax(_Unfitted):
    """`max_softmax` of a network's output."""

    name: Literal["max_softmax"] = "max_softmax"

    def __call__(self, output: NetworkOutput) -> Tensor:
        """Return float32 (N,)."""
        return torch.from_numpy(on_arrays.max_softmax(output.logits.numpy()))


@dataclass(frozen=True)
class MaxLogit(_Unfitted):
    """`max_logit` of a network's output."""

    name: Literal["max_logit"] = "max_logit"

    def __call__(self, output: NetworkOutput) -> Tensor:
        """Return float32 (N,)."""
        return max_logit(output.logits)


@dataclass(frozen=True)
class Gen(_Unfitted):
    """`gen` of a network's output."""

    gamma: float = 0.1
    top_classes: int = 100
    name: Literal["gen"] = "gen"

    def __call__(self, output: NetworkOutput) -> Tensor:
        """Return float32 (N,)."""
        return gen(output.logits, self.gamma, self.top_classes)


def _check(logits: Tensor, temperature: float) -> None:
    if logits.ndim != 2 or logits.dtype != torch.float32:
        raise ValueError(f"logits are {logits.dtype} {tuple(logits.shape)}; scores take float32 (N, K)")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
