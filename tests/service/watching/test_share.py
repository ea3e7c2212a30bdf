"""The share of true OOD: beta quantiles and intervals against scipy, by hand, and its simulated coverage."""

from functools import cache

import numpy as np
import pytest
from scipy import stats

from service.watching import beta
from service.watching.share import ShareEstimator, clopper_pearson


@pytest.mark.parametrize(
    ("a", "b"), [(1, 1), (0.5, 2), (1, 5000), (250, 4751), (4751, 250), (30_000, 70_001), (3, 1e5)]
)
def test_beta_is_scipys(a: float, b: float) -> None:
    for probability in (1e-6, 0.0125, 0.3, 0.95, 0.9999):
        exact = stats.beta.ppf(probability, a, b)
        assert beta.quantile(probability, a, b) == pytest.approx(exact, rel=1e-9, abs=1e-13)
        assert beta.cdf(exact, a, b) == pytest.approx(probability, rel=1e-9)
    assert (beta.cdf(-0.1, a, b), beta.cdf(0.0, a, b), beta.cdf(1.0, a, b)) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize(("flagged", "images"), [(0, 1), (1, 1), (0, 400), (21, 400), (400, 400), (560, 10_000)])
def test_the_interval_of_a_rate_is_scipys(flagged: int, images: int) -> None:
    exact = stats.binomtest(flagged, images).proportion_ci(0.975, method="exact")
    assert clopper_pearson(flagged, images, 0.025) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_the_share_by_hand() -> None:
    """5 of 99 calibration images make a false-flag rate of .05; 21 of 100 flagged, where .85 of OOD images would be."""
    share = ShareEstimator(k=5, calibration_images=99, detection_rate=0.85)(21, 100)
    assert share.estimate == pytest.approx((0.21 - 0.05) / (0.85 - 0.05))
    low, high = stats.binomtest(21, 100).proportion_ci(0.975, method="exact")
    fewest, most = stats.beta.ppf([0.0125, 0.9875], 5, 95)
    assert share.lower == pytest.approx((low - most) / (0.85 - most))
    assert share.upper == pytest.approx((high - fewest) / (0.85 - fewest))


def test_shares_stay_in_their_range() -> None:
    estimator = ShareEstimator(k=250, calibration_images=5000, detection_rate=0.9)
    assert estimator(0, 50) == (0.0, 0.0, pytest.approx(0.0455, abs=0.01))
    assert estimator(50, 50)[::2] == (1.0, 1.0)
    assert not ShareEstimator(k=250, calibration_images=5000, detection_rate=0.05).is_possible


@pytest.mark.parametrize("true_share", [0.0, 0.02, 0.3])
def test_the_interval_holds_the_true_share_as_often_as_it_says(true_share: float) -> None:
    """Over calibration sets and windows alike."""
    k, n, images, detection_rate, runs = 25, 500, 600, 0.9, 4000
    rng = np.random.default_rng(round(100 * true_share))
    estimate = cache(ShareEstimator(k=k, calibration_images=n, detection_rate=detection_rate))
    false_flags = rng.beta(k, n + 1 - k, runs)
    flagged = rng.binomial(images, (1 - true_share) * false_flags + true_share * detection_rate)
    found = [estimate(int(count), images) for count in flagged]
    held = np.mean([share.lower <= true_share <= share.upper for share in found])
    assert held >= 0.95
    assert np.mean([share.upper - share.lower for share in found]) < 0.2
