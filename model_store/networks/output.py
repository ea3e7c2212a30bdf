"""What every network returns."""

from typing import NamedTuple

from torch import Tensor


class NetworkOutput(NamedTuple):
    """Logits float32 (N, K) and the penultimate features float32 (N, D) that they are linear in."""

    logits: Tensor
    features: Tensor
