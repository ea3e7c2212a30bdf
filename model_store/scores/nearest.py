"""The distance to the training features nearby."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from model_store.networks.output import NetworkOutput
from model_store.scores.score import require_features

ROWS_AT_ONCE = 1024
"""Images that are compared with all reference rows at a time: cosines to 5,000 rows take 20 MB then."""


@dataclass(frozen=True, eq=False)
class Knn:
    """Minus the distance to the k-th nearest of the reference rows, all of unit length: Sun et al. 2022 (KNN)."""

    k: int
    reference: Tensor
    name: Literal["knn"] = "knn"

    @property
    def statistics(self) -> Mapping[str, Tensor]:
        """`reference` float32 (M, D): features of training images, each of unit length."""
        return {"reference": self.reference}

    def __call__(self, output: NetworkOutput) -> Tensor:
        """Return float32 (N,) in [-2, 0].

        The k-th nearest is found by its cosine and its distance then computed from the difference: sqrt(2 - 2 cos)
        would leave three digits of it where the two are close.
        """
        require_features(output.features, self.reference.shape[1])
        unit = F.normalize(output.features, dim=1)
        nearest = torch.cat([self._nearest(rows) for rows in torch.split(unit, ROWS_AT_ONCE)])
        distance: Tensor = torch.linalg.vector_norm(unit - self.reference[nearest], dim=1)
        return -distance

    def _nearest(self, unit: Tensor) -> Tensor:
        """Return which reference row is the k-th nearest of each row of unit length."""
        return (unit @ self.reference.T).topk(self.k, dim=1).indices[:, -1]
