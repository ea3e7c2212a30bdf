"""What every image's verdict takes, on arrays of the host: small ones, of which NumPy makes no more than a loop.

PyTorch lets go of the interpreter in each of its operations, and an engine's thread then waits for it behind whatever
else runs: beside one that never pauses a batch was judged in 14 ms instead of half of one.
"""

import numpy as np
from numpy.typing import NDArray


def negative_energy(logits: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float32]:
    """Return -E(x; f) = T logsumexp(f(x) / T), float32 (N,), for finite logits float32 (N, K): Liu et al. 2020, Eq. 4.

    As `model_store.scores.negative_energy` up to rounding.
    """
    scaled = logits / np.float32(temperature)
    greatest, sums = _exponentials(scaled)
    found: NDArray[np.float32] = np.float32(temperature) * (greatest + np.log(sums))
    return found


def max_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the largest softmax probability, float32 (N,) in (0, 1], for finite logits float32 (N, K)."""
    _, sums = _exponentials(logits)
    return np.float32(1) / sums


def all_finite(values: NDArray[np.float32]) -> bool:
    """Return whether there is neither infinity nor NaN among them."""
    return bool(np.isfinite(values).all())


def _exponentials(logits: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the greatest of each row, and the sum of exp(logit - greatest), at least 1."""
    greatest = logits.max(axis=1)
    with np.errstate(over="ignore"):  # of a difference below the least float32, whose exponential is 0
        sums: NDArray[np.float32] = np.exp(logits - greatest[:, None]).sum(axis=1)
    return greatest, sums
