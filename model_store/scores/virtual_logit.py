"""The energy against what the last layer does not see."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from model_store.networks.output import NetworkOutput
from model_store.scores.logits import negative_energy
from model_store.scores.score import require_features


@dataclass(frozen=True, eq=False)
class Vim:
    """logsumexp(f) - alpha |R' (h - o)|: Wang et al. 2022 (ViM).

    o = -pinv(W) b, the origin for which the logits are linear; R the directions in which training features vary least;
    alpha makes the two terms alike in size on training images.
    """

    origin: Tensor
    residual: Tensor
    alpha: Tensor
    name: Literal["vim"] = "vim"

    @property
    def statistics(self) -> Mapping[str, Tensor]:
        """`origin` float32 (D,), `residual` float32 (D, R) with orthonormal columns, `alpha` float32 () above 0."""
        return {"origin": self.origin, "residual": self.residual, "alpha": self.alpha}

    def __call__(self, output: NetworkOutput) -> Tensor:
        """Return float32 (N,)."""
        require_features(output.features, len(self.origin))
        outside = ((output.features - self.origin) @ self.residual).norm(dim=1)
        return negative_energy(output.logits) - self.alpha * outside
