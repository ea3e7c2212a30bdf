"""Scores from one forward pass. Higher means more in-distribution, except where a name says energy alone."""

import torch
from torch import Tensor


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


def _check(logits: Tensor, temperature: float) -> None:
    if logits.ndim != 2 or logits.dtype != torch.float32:
        raise ValueError(f"logits are {logits.dtype} {tuple(logits.shape)}; scores take float32 (N, K)")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
