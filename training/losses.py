"""Objectives over logits: in-distribution float32 (N, K) with labels int64 (N,), outliers float32 (M, K)."""

from typing import Protocol

from torch import Tensor
from torch.nn import functional as F

from model_store.scores import energy, negative_energy
from training.config import CrossEntropySpec, EnergyBoundedSpec, ObjectiveSpec, OutlierExposureSpec


class Objective(Protocol):
    """Loss of one batch: logits (N + M, K), the N in-distribution rows first, and their labels int64 (N,)."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar to minimise."""
        ...


def energy_bounded(logits_in: Tensor, logits_out: Tensor, margin_in: float, margin_out: float) -> Tensor:
    """Return the energy regulariser of Liu et al. 2020, Eqs. 9 and 10: squared hinges on both sides.

    In-distribution energies above `margin_in` and outlier energies below `margin_out` are penalised, as the
    reference implementation does (the text says: only those between the margins).
    """
    above = F.relu(energy(logits_in) - margin_in)
    below = F.relu(margin_out - energy(logits_out))
    return above.square().mean() + below.square().mean()


def outlier_exposure(logits_out: Tensor) -> Tensor:
    """Return the cross-entropy of the outliers' softmax to uniform, at least log K (Hendrycks et al., 2019)."""
    return (negative_energy(logits_out) - logits_out.mean(dim=1)).mean()


def make_objective(spec: ObjectiveSpec) -> Objective:
    """Return the loss that a recipe's stage asks for."""
    match spec:
        case CrossEntropySpec():

            def classification(logits: Tensor, labels: Tensor) -> Tensor:
                return F.cross_entropy(logits, labels)

            return classification
        case EnergyBoundedSpec():

            def energy_fine_tuning(logits: Tensor, labels: Tensor) -> Tensor:
                logits_in, logits_out = logits[: len(labels)], logits[len(labels) :]
                regulariser = energy_bounded(logits_in, logits_out, spec.margin_in, spec.margin_out)
                return F.cross_entropy(logits_in, labels) + spec.weight * regulariser

            return energy_fine_tuning
        case OutlierExposureSpec():

            def outlier_exposure_training(logits: Tensor, labels: Tensor) -> Tensor:
                logits_in, logits_out = logits[: len(labels)], logits[len(labels) :]
                return F.cross_entropy(logits_in, labels) + spec.weight * outlier_exposure(logits_out)

            return outlier_exposure_training
