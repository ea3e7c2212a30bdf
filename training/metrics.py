"""How well a score tells in-distribution from out-of-distribution images.

Everywhere: higher = more in-distribution, values are fractions in [0, 1], and in-distribution is the positive class,
except where a name says `ood_positive`. Others make OOD positive throughout or integrate AUPR by trapezoids
(pytorch-ood, OpenOOD do): their numbers are not comparable.
"""

from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[Any]


@dataclass(frozen=True)
class DetectionMetrics:
    """All metrics of one score on one pair of sets, as fractions in [0, 1]; AUROC is the same either way."""

    fpr95: float
    auroc: float
    aupr: float
    fpr95_ood_positive: float
    aupr_ood_positive: float


def fpr95(*, in_distribution: Scores, out_of_distribution: Scores) -> float:
    """Return the share of OOD images accepted where about 95 % of the in-distribution images are; lower is better.

    As the implementation of Liu et al. 2020 has it. Every distinct score t is an operating point that accepts
    score >= t, and the point counts whose recall is nearest to 0.95, on either side. Where two are equally near, the
    higher recall counts; where several share it, the one that accepts the most OOD images, except that a recall of 1
    is read where it is first reached.

    Args:
        in_distribution: real (N,), N >= 1, finite.
        out_of_distribution: real (M,), M >= 1, finite.

    Raises:
        ValueError: either is empty, not 1-d, not real, or not finite.
    """
    accepted = np.sort(checked_scores("in_distribution", in_distribution))
    outliers = np.sort(checked_scores("out_of_distribution", out_of_distribution))
    points = np.unique(np.concatenate([accepted, outliers]))
    points = points[points >= accepted[0]]
    true_positives = accepted.size - np.searchsorted(accepted, points)
    # |recall - 0.95| times 20 N, in whole numbers: in floats 0.9 would be nearer to 0.95 than 1.0 is.
    distance = np.abs(20 * true_positives - 19 * accepted.size)
    # The points ascend, so the first of the nearest has the highest recall and the most false positives.
    nearest = points[np.argmin(distance)]
    false_positives = outliers.size - np.searchsorted(outliers, nearest)
    return float(false_positives / outliers.size)


def auroc(*, in_distribution: Scores, out_of_distribution: Scores) -> float:
    """Return the area under the ROC curve: P(in-distribution > OOD) + P(equal) / 2; higher is better, chance is 0.5.

    Args:
        in_distribution: real (N,), N >= 1, finite.
        out_of_distribution: real (M,), M >= 1, finite.

    Raises:
        ValueError: either is empty, not 1-d, not real, or not finite.
    """
    from sklearn.metrics import roc_auc_score  # takes longer to import than most commands to begin

    return float(roc_auc_score(*_labelled(in_distribution, out_of_distribution)))


def aupr(*, in_distribution: Scores, out_of_distribution: Scores) -> float:
    """Return the average precision, in-distribution positive; higher is better, chance is N / (N + M).

    Args:
        in_distribution: real (N,), N >= 1, finite.
        out_of_distribution: real (M,), M >= 1, finite.

    Raises:
        ValueError: either is empty, not 1-d, not real, or not finite.
    """
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(*_labelled(in_distribution, out_of_distribution)))


def fpr95_ood_positive(*, in_distribution: Scores, out_of_distribution: Scores) -> float:
    """Return the share of in-distribution images flagged where about 95 % of the OOD images are; lower is better.

    `fpr95` with the roles exchanged: every distinct score t is an operating point that flags score <= t, and the
    point counts whose recall of OOD images is nearest to 0.95, with ties as there.

    Args:
        in_distribution: real (N,), N >= 1, finite.
        out_of_distribution: real (M,), M >= 1, finite.

    Raises:
        ValueError: either is empty, not 1-d, not real, or not finite.
    """
    return fpr95(**_exchanged(in_distribution, out_of_distribution))


def aupr_ood_positive(*, in_distribution: Scores, out_of_distribution: Scores) -> float:
    """Return the average precision, OOD positive; higher is better, chance is M / (N + M).

    Args:
        in_distribution: real (N,), N >= 1, finite.
        out_of_distribution: real (M,), M >= 1, finite.

    Raises:
        ValueError: either is empty, not 1-d, not real, or not finite.
    """
    return aupr(**_exchanged(in_distribution, out_of_distribution))


def detection_metrics(*, in_distribution: Scores, out_of_distribution: Scores) -> DetectionMetrics:
    """Return all metrics of one pair of sets.

    Args:
        in_distribution: real (N,), N >= 1, finite.
        out_of_distribution: real (M,), M >= 1, finite.

    Raises:
        ValueError: either is empty, not 1-d, not real, or not finite.
    """
    return DetectionMetrics(
        fpr95=fpr95(in_distribution=in_distribution, out_of_distribution=out_of_distribution),
        auroc=auroc(in_distribution=in_distribution, out_of_distribution=out_of_distribution),
        aupr=aupr(in_distribution=in_distribution, out_of_distribution=out_of_distribution),
        fpr95_ood_positive=fpr95_ood_positive(in_distribution=in_distribution, out_of_distribution=out_of_distribution),
        aupr_ood_positive=aupr_ood_positive(in_distribution=in_distribution, out_of_distribution=out_of_distribution),
    )


def resampled_metrics(
    *, in_distribution: Scores, out_of_distribution: Scores, sample_size: int = 2000, draws: int = 10, seed: int
) -> DetectionMetrics:
    """Return the mean metrics over random draws of OOD images: the paper's protocol, 10,000 against 2,000, 10 times.

    Each draw takes `sample_size` OOD images without replacement and all in-distribution images. A set of at most
    `sample_size` images is used whole, once; the base rate of its AUPR is then N / (N + M).

    Args:
        in_distribution: real (N,), N >= 1, finite.
        out_of_distribution: real (M,), M >= 1, finite.
        sample_size: OOD images a draw, at least 1.
        draws: at least 1.
        seed: of the draws; the same seed draws the same images of sets of one size.

    Raises:
        ValueError: either set is empty, not 1-d, not real, or not finite, or sample_size or draws is below 1.
    """
    for name, value in (("sample_size", sample_size), ("draws", draws)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    outliers = checked_scores("out_of_distribution", out_of_distribution)
    if outliers.size <= sample_size:
        return detection_metrics(in_distribution=in_distribution, out_of_distribution=outliers)
    rng = np.random.default_rng(seed)
    return _mean(
        [
            detection_metrics(
                in_distribution=in_distribution,
                out_of_distribution=rng.choice(outliers, sample_size, replace=False),
            )
            for _ in range(draws)
        ]
    )


def _mean(metrics: list[DetectionMetrics]) -> DetectionMetrics:
    return DetectionMetrics(*np.mean([astuple(each) for each in metrics], axis=0).tolist())


def _exchanged(in_distribution: Scores, out_of_distribution: Scores) -> dict[str, NDArray[np.float64]]:
    """Return the roles exchanged: a score of being OOD, with OOD as what is to be found."""
    return {
        "in_distribution": -checked_scores("out_of_distribution", out_of_distribution),
        "out_of_distribution": -checked_scores("in_distribution", in_distribution),
    }


def _labelled(in_distribution: Scores, out_of_distribution: Scores) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return labels, True for in-distribution, and scores, both (N + M,), as scikit-learn takes them."""
    positive = checked_scores("in_distribution", in_distribution)
    negative = checked_scores("out_of_distribution", out_of_distribution)
    labels = np.arange(positive.size + negative.size) < positive.size
    return labels, np.concatenate([positive, negative])


def checked_scores(name: str, scores: Scores) -> NDArray[np.float64]:
    """Return scores float64 (N,).

    Raises:
        ValueError: they are empty, not 1-d, not real, or not finite; `name` is what the message calls them.
    """
    given = np.asarray(scores)
    if given.ndim != 1 or given.size == 0 or given.dtype.kind not in "iuf":
        raise ValueError(f"{name} is {given.dtype} {given.shape}; it must be real numbers (N,), N >= 1")
    bad = int(np.count_nonzero(~np.isfinite(given)))
    if bad:
        raise ValueError(f"{name} holds {bad} of {given.size} scores that are not finite; all must be")
    return given.astype(np.float64)
