"""The distance of p-values from uniform against scipy, and its limit against simulations."""

import numpy as np
import pytest
from scipy import stats

from service.watching.uniformity import ks_distance, ks_limit


@pytest.mark.parametrize("n", [1, 2, 37, 5000])
@pytest.mark.parametrize("power", [0.3, 1.0, 4.0])
def test_the_distance_is_scipys(n: int, power: float) -> None:
    rng = np.random.default_rng(n)
    for p_values in (rng.random(n) ** power, rng.integers(1, 102, n) / 101, np.full(n, 0.25), np.ones(n)):
        assert ks_distance(p_values) == pytest.approx(stats.kstest(p_values, "uniform").statistic, abs=1e-12)


def test_the_distance_by_hand() -> None:
    assert ks_distance(np.array([0.5])) == 0.5
    assert ks_distance(np.array([0.9, 0.1, 0.2])) == pytest.approx(2 / 3 - 0.2)


def test_the_limit_is_passed_as_often_as_looks_say() -> None:
    """With a calibration set beyond number only the window's scatter is left; its bound is nearly exact."""
    rng, images, looks = np.random.default_rng(0), 400, 20
    limit = ks_limit(images=images, calibration_images=10**12, looks=looks)
    above = [ks_distance(p_values) > limit for p_values in rng.random((8000, images))]
    assert 0.6 / looks < np.mean(above) <= 1 / looks + 4 * np.std(above) / np.sqrt(len(above))


def test_the_limit_allows_for_the_calibration_set() -> None:
    """Without its part, traffic of another calibration set would be above the limit most of the time."""
    rng, n, images, looks = np.random.default_rng(1), 300, 3000, 1000
    limit, without = (ks_limit(images=images, calibration_images=each, looks=looks) for each in (n, 10**12))
    above, above_without = [], []
    for _ in range(400):
        calibration = np.sort(rng.random(n))
        p_values = (1 + np.searchsorted(calibration, rng.random(images), side="right")) / (n + 1)
        distance = ks_distance(p_values)
        above.append(distance > limit)
        above_without.append(distance > without)
    assert np.mean(above) <= 1 / looks + 0.05
    assert np.mean(above_without) > 0.1


def test_a_tenth_of_ood_traffic_is_seen() -> None:
    rng = np.random.default_rng(2)
    window = np.where(rng.random(10_000) < 0.1, 1 / 5001, rng.random(10_000))
    assert ks_distance(window) > ks_limit(images=10_000, calibration_images=5000, looks=7.2e6)


def test_a_few_images_say_nothing() -> None:
    assert ks_limit(images=1, calibration_images=5000, looks=1000) == 1.0
