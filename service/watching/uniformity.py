"""How far p-values are from uniform, and how far they may be in distribution."""

import math

import numpy as np
from numpy.typing import NDArray

CALIBRATION_DOUBT = 0.05
"""Chance, over calibration sets, that p-values are farther from uniform than the limit allows for."""


def ks_distance(p_values: NDArray[np.float64]) -> float:
    """Return the Kolmogorov-Smirnov distance of p-values from uniform on [0, 1].

    Args:
        p_values: float64 (N,), N >= 1, in [0, 1], in any order.
    """
    ordered, n = np.sort(p_values), len(p_values)
    above = np.arange(1, n + 1) / n - ordered
    below = ordered - np.arange(n) / n
    return float(max(above.max(), below.max()))


def ks_limit(*, images: int, calibration_images: int, looks: float) -> float:
    """Return the distance that in-distribution p-values are above in at most one of `looks` looks, in (0, 1].

    Looks may overlap and be as many as there are images: by linearity of expectation, what each of them has a chance of
    1 / looks for happens once in so many, on average. Two parts add up. The window's own scatter: each look at `images`
    p-values is farther than e from their true distribution with probability <= 2 exp(-2 images e^2) (Dvoretzky, Kiefer,
    Wolfowitz; Massart 1990). And the calibration set's: of n scores the same bound holds, with CALIBRATION_DOUBT for
    its probability, and p-values are steps of 1 / (n + 1).

    Args:
        images: in the window, at least 1.
        calibration_images: n, at least 1.
        looks: at least 1.
    """
    window = math.sqrt(math.log(2 * looks) / (2 * images))
    calibration = math.sqrt(math.log(2 / CALIBRATION_DOUBT) / (2 * calibration_images))
    return min(1.0, window + calibration + 1 / (calibration_images + 1))
