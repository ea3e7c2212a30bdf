"""How far a metric would stray with other test images: percentile bootstrap over both sets."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.metrics import Scores, checked_scores

Interval = tuple[float, float]


@dataclass(frozen=True)
class MetricIntervals:
    """Intervals (low, high) of the metrics of one score on one pair of sets, as fractions in [0, 1]."""

    fpr95: Interval
    auroc: Interval
    aupr: Interval


def bootstrap_intervals(
    *,
    in_distribution: Scores,
    out_of_distribution: Scores,
    sample_size: int = 2000,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int,
) -> MetricIntervals:
    """Return percentile bootstrap intervals (Efron, 1979) of FPR95, AUROC and AUPR.

    A resample draws N in-distribution and M OOD images with replacement, independently, and takes the metrics of it
    all. What they would be for other images of the same sources and this very network is what the interval covers;
    training again is not in it. AUPR depends on how many OOD images there are: as in `resampled_metrics`, they count
    as `sample_size` in all where there are more.

    Args:
        in_distribution: real (N,), N >= 1, finite.
        out_of_distribution: real (M,), M >= 1, finite.
        sample_size: the most that OOD images count for, at least 1.
        resamples: at least 1; the ends of the interval are its quantiles, so some hundreds at 0.95.
        confidence: in (0, 1).
        seed: of the resamples; the same seed gives the same interval.

    Raises:
        ValueError: a set is empty, not 1-d, not real, or not finite, or another argument is out of its range.
    """
    for name, value in (("sample_size", sample_size), ("resamples", resamples)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must be in (0, 1)")
    points, inside, outside = _ranked(in_distribution, out_of_distribution)
    rng = np.random.default_rng(seed)
    figures = [
        _figures(
            np.bincount(rng.choice(inside, inside.size), minlength=points),
            np.bincount(rng.choice(outside, outside.size), minlength=points),
            sample_size,
        )
        for _ in range(resamples)
    ]
    tail = (1 - confidence) / 2
    low, high = np.quantile(figures, [tail, 1 - tail], axis=0).tolist()
    return MetricIntervals(*zip(low, high, strict=True))


def _ranked(in_distribution: Scores, out_of_distribution: Scores) -> tuple[int, NDArray[np.intp], NDArray[np.intp]]:
    """Return how many distinct scores there are, and each score's rank among them, 0 the highest."""
    inside = checked_scores("in_distribution", in_distribution)
    outside = checked_scores("out_of_distribution", out_of_distribution)
    points, ranks = np.unique(-np.concatenate([inside, outside]), return_inverse=True)
    return points.size, ranks[: inside.size], ranks[inside.size :]


def _figures(inside: NDArray[np.intp], outside: NDArray[np.intp], sample_size: int) -> tuple[float, float, float]:
    """Return FPR95, AUROC and AUPR of how often each distinct score occurs, the highest first, as `metrics` has them.

    A score that occurs in neither set repeats the operating point of the one before it.
    """
    true_positives, false_positives = np.cumsum(inside), np.cumsum(outside)
    n, m = int(true_positives[-1]), int(false_positives[-1])
    first_full = int(np.searchsorted(true_positives, n))
    nearest = first_full - int(np.argmin(np.abs(20 * true_positives[first_full::-1] - 19 * n)))
    below = m - false_positives + outside / 2
    mass = min(sample_size, m) / m
    precision = true_positives / np.maximum(true_positives + mass * false_positives, mass)  # 0 / 0 at the top: 0
    return false_positives[nearest] / m, float(inside @ below) / (n * m), float(inside @ precision) / n
