"""Which scores there are, and the hyperparameters of each."""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, model_validator

from model_store.frozen import Frozen, OpenFraction

ScoreName = Literal[
    "negative_energy",
    "max_softmax",
    "max_logit",
    "gen",
    "react",
    "scale",
    "knn",
    "mahalanobis",
    "relative_mahalanobis",
    "vim",
    "energy_mahalanobis",
]
"""Every score that one forward pass gives; higher means more in-distribution."""
OFFLINE_ONLY = ("odin", "perturbed_mahalanobis")
"""Scores that no bundle carries and no server gives: they take gradients and a second forward pass."""


class NegativeEnergySpec(Frozen):
    """T logsumexp(f / T): Liu et al. 2020, Eq. 4."""

    kind: Literal["negative_energy"] = "negative_energy"
    temperature: FiniteFloat = Field(default=1.0, gt=0)


class MaxSoftmaxSpec(Frozen):
    """The greatest softmax probability: Hendrycks & Gimpel 2017."""

    kind: Literal["max_softmax"] = "max_softmax"


class MaxLogitSpec(Frozen):
    """The greatest logit: Hendrycks et al. 2022."""

    kind: Literal["max_logit"] = "max_logit"


class GenSpec(Frozen):
    """Minus the generalised entropy of the `top_classes` likeliest classes, all if there are fewer: Liu et al. 2023."""

    kind: Literal["gen"] = "gen"
    gamma: FiniteFloat = Field(default=0.1, gt=0)
    top_classes: int = Field(default=100, ge=1)


class ReactSpec(Frozen):
    """Negative energy of features cut off at a percentile of the training features: Sun et al. 2021."""

    kind: Literal["react"] = "react"
    percentile: OpenFraction = 0.9


class ScaleSpec(Frozen):
    """Negative energy of scaled features; those above each image's own percentile set the scale: Xu et al. 2024."""

    kind: Literal["scale"] = "scale"
    percentile: OpenFraction = 0.85


class KnnSpec(Frozen):
    """Minus the distance to the k-th nearest of `reference_rows` training features of unit length: Sun et al. 2022.

    The rows are drawn by `seed`, each class by its share; all are kept where there are fewer.
    """

    kind: Literal["knn"] = "knn"
    k: int = Field(default=50, ge=1)
    reference_rows: int = Field(default=5000, ge=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _k_is_among_the_rows(self) -> "KnnSpec":
        if self.k > self.reference_rows:
            raise ValueError(f"k is {self.k}, above reference_rows = {self.reference_rows}")
        return self


class MahalanobisSpec(Frozen):
    """Minus the squared distance to the nearest class mean under one covariance: Lee et al. 2018, unperturbed.

    `ridge` times the mean variance of a feature is added to the covariance's diagonal, so that features that never
    vary leave it invertible.
    """

    kind: Literal["mahalanobis"] = "mahalanobis"
    ridge: FiniteFloat = Field(default=1e-6, gt=0)


class RelativeMahalanobisSpec(Frozen):
    """`mahalanobis` plus the squared distance under one Gaussian for all classes: Ren et al. 2021."""

    kind: Literal["relative_mahalanobis"] = "relative_mahalanobis"
    ridge: FiniteFloat = Field(default=1e-6, gt=0)


class VimSpec(Frozen):
    """Negative energy minus a virtual logit, the norm in the residual space: Wang et al. 2022.

    `residual_dimension` is how many directions that space has; half of the features' by default.
    """

    kind: Literal["vim"] = "vim"
    residual_dimension: int | None = Field(default=None, ge=1)

    def residual_of(self, width: int) -> int:
        """Return the number of directions for features of this width."""
        return width // 2 if self.residual_dimension is None else self.residual_dimension


class EnergyMahalanobisSpec(Frozen):
    """Negative energy plus `mahalanobis`, weighted so that training images spread alike by both; ours.

    What the last layer sees and how far the features lie from any class: outliers that pass for one fail the other.
    """

    kind: Literal["energy_mahalanobis"] = "energy_mahalanobis"
    ridge: FiniteFloat = Field(default=1e-6, gt=0)


ScoreSpec = Annotated[
    NegativeEnergySpec
    | MaxSoftmaxSpec
    | MaxLogitSpec
    | GenSpec
    | ReactSpec
    | ScaleSpec
    | KnnSpec
    | MahalanobisSpec
    | RelativeMahalanobisSpec
    | VimSpec
    | EnergyMahalanobisSpec,
    Field(discriminator="kind"),
]
"""A score and its hyperparameters; `kind` is its ScoreName."""


def further_names(scores: Iterable[ScoreSpec]) -> tuple[ScoreName, ...]:
    """Return the names of a bundle's further scores.

    Raises:
        ValueError: one is there twice, or is negative energy, which every bundle has without being told.
    """
    names = tuple(spec.kind for spec in scores)
    if "negative_energy" in names:
        raise ValueError("scores holds negative_energy, which every bundle has, at its own temperature; leave it out")
    if len(set(names)) != len(names):
        raise ValueError(f"scores holds {', '.join(names)}; each may be there once")
    return names
