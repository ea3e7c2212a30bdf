"""Distances to class means, in units of the features' own spread."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from model_store.networks.output import NetworkOutput
from model_store.scores.logits import negative_energy
from model_store.scores.score import require_features


@dataclass(frozen=True, eq=False)
class Whitened:
    """Squared Mahalanobis distances (h - m)' S^-1 (h - m) to several means, S^-1 = whitening @ whitening.T.

    Features and means are centred before they are whitened, so that no digits cancel that the difference needs.
    """

    means: Tensor
    whitening: Tensor

    @cached_property
    def _centre(self) -> Tensor:
        return self.means.mean(dim=0)

    @cached_property
    def _white_means(self) -> Tensor:
        return (self.means - self._centre) @ self.whitening

    def nearest(self, features: Tensor) -> Tensor:
        """Return the least squared distance of each row of features float32 (N, D), float32 (N,)."""
        require_features(features, self.means.shape[1])
        white = (features - self._centre) @ self.whitening
        distances = torch.cdist(white, self._white_means, compute_mode="donot_use_mm_for_euclid_dist")
        return distances.amin(dim=1).square()


@dataclass(frozen=True, eq=False)
class Mahalanobis:
    """-min_c d_c^2, d_c the distance to class c under one covariance for all: Lee et al. 2018.

    Without their perturbation of the input, which takes a second pass and gradients, and without their other layers.
    """

    classes: Whitened
    name: Literal["mahalanobis"] = "mahalanobis"

    @property
    def statistics(self) -> Mapping[str, Tensor]:
        """`class_means` float32 (K, D); `whitening` float32 (D, D), with S^-1 = whitening @ whitening.T."""
        return {"class_means": self.classes.means, "whitening": self.classes.whitening}

    def __call__(self, output: NetworkOutput) -> Tensor:
        """Return float32 (N,), at most 0."""
        return -self.classes.nearest(output.features)


@dataclass(frozen=True, eq=False)
class EnergyMahalanobis:
    """logsumexp(f) - alpha min_c d_c^2: the negative energy and what `Mahalanobis` measures, together.

    alpha is the ratio of their standard deviations over training images, so that neither drowns the other.
    """

    classes: Whitened
    alpha: Tensor
    name: Literal["energy_mahalanobis"] = "energy_mahalanobis"

    @property
    def statistics(self) -> Mapping[str, Tensor]:
        """Those of `Mahalanobis`; `alpha` float32 () above 0."""
        return {"class_means": self.classes.means, "whitening": self.classes.whitening, "alpha": self.alpha}

    def __call__(self, output: NetworkOutput) -> Tensor:
        """Return float32 (N,)."""
        return negative_energy(output.logits) - self.alpha * self.classes.nearest(output.features)


@dataclass(frozen=True, eq=False)
class RelativeMahalanobis:
    """-min_c d_c^2 + d_0^2, d_0 the distance under one Gaussian for all classes together: Ren et al. 2021."""

    classes: Whitened
    background: Whitened
    name: Literal["relative_mahalanobis"] = "relative_mahalanobis"

    @property
    def statistics(self) -> Mapping[str, Tensor]:
        """Those of `Mahalanobis`; `background_mean` float32 (D,), `background_whitening` float32 (D, D)."""
        return {
            "class_means": self.classes.means,
            "whitening": self.classes.whitening,
            "background_mean": self.background.means[0],
            "background_whitening": self.background.whitening,
        }

    def __call__(self, output: NetworkOutput) -> Tensor:
        """Return float32 (N,)."""
        return self.background.nearest(output.features) - self.classes.nearest(output.features)
