"""Objectives of one batch: N labelled in-distribution images first, then M outliers, all from one forward pass."""

from typing import Protocol, assert_never

from torch import Tensor
from torch.nn import functional as F

from model_store.networks import NetworkOutput
from model_store.scores import energy, negative_energy
from training.objective_spec import (
    BalancedEnergySpec,
    CrossEntropySpec,
    EnergyBoundedSpec,
    ObjectiveSpec,
    OutlierExposureSpec,
    RankedExposureSpec,
)


class Objective(Protocol):
    """Loss of one batch: the network's output of N + M rows, the N in-distribution ones first; labels int64 (N,)."""

    def __call__(self, output: NetworkOutput, labels: Tensor) -> Tensor:
        """Return the scalar to minimise, float32."""
        ...


def energy_bounded(logits_in: Tensor, logits_out: Tensor, margin_in: float, margin_out: float) -> Tensor:
    """Return the energy regulariser of Liu et al. 2020, Eqs. 9 and 10: squared hinges on both sides.

    In-distribution energies above `margin_in` and outlier energies below `margin_out` are penalised, as the
    reference implementation does (the text says: only those between the margins).

    logits_in: float32 (N, K). logits_out: float32 (M, K).
    """
    return _above(logits_in, margin_in).mean() + _below(logits_out, margin_out).mean()


def balanced_energy(
    logits_in: Tensor, logits_out: Tensor, margin_in: float, margin_out: float, class_weights: Tensor
) -> Tensor:
    """Return the energy regulariser with outliers that resemble common classes pushed harder (Choi et al. 2023).

    The outliers' hinges are averaged with weights Z = sum_k p_k class_weights_k, where p is the outlier's softmax and
    class_weights float32 (K,) grow with the share of outliers that the network took for class k. As in the authors'
    implementation the weights are divided by their sum, so that equal ones give `energy_bounded`. Two deviations: Z is
    a constant, no way for an outlier to lower its loss by moving to a rare class; and the margin stays `margin_out`,
    where they subtract alpha Z from the energy as well.

    logits_in: float32 (N, K). logits_out: float32 (M, K).
    """
    weights = F.softmax(logits_out.detach(), dim=1) @ class_weights
    return _above(logits_in, margin_in).mean() + (weights * _below(logits_out, margin_out)).sum() / weights.sum()


def class_weights(outlier_classes: Tensor, gamma: float) -> Tensor:
    """Return pi_k^gamma, float32 (K,), for how many outliers the starting network takes for each class, int64 (K,).

    One is added to every count: a class that no outlier was taken for would have weight 0, and an outlier that later
    comes there no loss at all.
    """
    smoothed = outlier_classes + 1
    return (smoothed / smoothed.sum()).pow(gamma)


def outlier_exposure(logits_out: Tensor) -> Tensor:
    """Return the cross-entropy of the outliers' softmax to uniform, at least log K (Hendrycks et al., 2019)."""
    return (negative_energy(logits_out) - logits_out.mean(dim=1)).mean()


def energy_ranking(logits_in: Tensor, logits_out: Tensor) -> Tensor:
    """Return the mean of log(1 + exp(E_in - E_out)) over all pairs of an image and an outlier.

    A logistic bound on 1 - AUROC of the energies, up to a factor. What is ranked right by a few units costs nothing
    more, wherever the two lie.

    logits_in: float32 (N, K). logits_out: float32 (M, K).
    """
    return F.softplus(energy(logits_in)[:, None] - energy(logits_out)[None, :]).mean()


def make_objective(spec: ObjectiveSpec, outlier_classes: Tensor | None = None) -> Objective:
    """Return the loss that a recipe's stage asks for.

    outlier_classes: int64 (K,) on the training device, needed by balanced energy alone: how many outliers the network
    takes for each class before it is fine-tuned.

    Raises:
        ValueError: balanced energy without them, or an objective without its margins.
    """
    match spec:
        case CrossEntropySpec():

            def classification(output: NetworkOutput, labels: Tensor) -> Tensor:
                return F.cross_entropy(output.logits, labels)

            return classification
        case EnergyBoundedSpec():
            margins = spec.margins

            def energy_fine_tuning(output: NetworkOutput, labels: Tensor) -> Tensor:
                logits_in, logits_out = _by_role(output, labels)
                regulariser = energy_bounded(logits_in, logits_out, margins.margin_in, margins.margin_out)
                return F.cross_entropy(logits_in, labels) + spec.weight * regulariser

            return energy_fine_tuning
        case BalancedEnergySpec():
            if outlier_classes is None:
                raise ValueError("balanced energy needs outlier_classes: count them before the first step")
            margins = spec.margins
            weights = class_weights(outlier_classes, spec.gamma)

            def balanced_fine_tuning(output: NetworkOutput, labels: Tensor) -> Tensor:
                logits_in, logits_out = _by_role(output, labels)
                regulariser = balanced_energy(logits_in, logits_out, margins.margin_in, margins.margin_out, weights)
                return F.cross_entropy(logits_in, labels) + spec.weight * regulariser

            return balanced_fine_tuning
        case OutlierExposureSpec():

            def outlier_exposure_training(output: NetworkOutput, labels: Tensor) -> Tensor:
                logits_in, logits_out = _by_role(output, labels)
                return F.cross_entropy(logits_in, labels) + spec.weight * outlier_exposure(logits_out)

            return outlier_exposure_training
        case RankedExposureSpec():

            def ranked_exposure_training(output: NetworkOutput, labels: Tensor) -> Tensor:
                logits_in, logits_out = _by_role(output, labels)
                exposure = spec.weight * outlier_exposure(logits_out)
                return (
                    F.cross_entropy(logits_in, labels) + exposure + spec.ranking * energy_ranking(logits_in, logits_out)
                )

            return ranked_exposure_training
        case _:
            assert_never(spec)


def _by_role(output: NetworkOutput, labels: Tensor) -> tuple[Tensor, Tensor]:
    return output.logits[: len(labels)], output.logits[len(labels) :]


def _above(logits: Tensor, margin: float) -> Tensor:
    return F.relu(energy(logits) - margin).square()


def _below(logits: Tensor, margin: float) -> Tensor:
    return F.relu(margin - energy(logits)).square()
