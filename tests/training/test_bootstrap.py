from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr
from scipy.stats import bootstrap

from training.bootstrap import _figures, _ranked, bootstrap_intervals
from training.metrics import aupr, auroc, detection_metrics, fpr95


def normal(n: int, mean: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1, n).astype(np.float32)


counted = st.lists(st.tuples(st.integers(-4, 4), st.integers(0, 3)), min_size=1, max_size=30).filter(
    lambda pairs: any(count for _, count in pairs)
)


@settings(max_examples=200, deadline=None)
@given(counted, counted)
def test_figures_of_a_resample_are_the_metrics_of_its_images(
    inside: list[tuple[int, int]], outside: list[tuple[int, int]]
) -> None:
    """Each pair is a score and how often it was drawn; a score that was not drawn must leave no trace."""
    (scores_in, times_in), (scores_out, times_out) = (np.array(pairs).T for pairs in (inside, outside))
    points, ranks_in, ranks_out = _ranked(scores_in, scores_out)
    figures = _figures(
        np.bincount(ranks_in, times_in, points).astype(np.intp),
        np.bincount(ranks_out, times_out, points).astype(np.intp),
        sample_size=10_000,
    )
    drawn = detection_metrics(
        in_distribution=np.repeat(scores_in, times_in), out_of_distribution=np.repeat(scores_out, times_out)
    )
    assert figures == pytest.approx((drawn.fpr95, drawn.auroc, drawn.aupr), abs=1e-12)


@pytest.mark.parametrize(("name", "metric"), [("fpr95", fpr95), ("auroc", auroc), ("aupr", aupr)])
def test_intervals_agree_with_scipy(name: str, metric) -> None:
    inside, outside = normal(300, 2, 0), normal(120, 0, 1)
    ours = bootstrap_intervals(in_distribution=inside, out_of_distribution=outside, resamples=2000, seed=2)
    theirs = bootstrap(
        (inside, outside),
        lambda a, b: metric(in_distribution=a, out_of_distribution=b),
        n_resamples=400,
        vectorized=False,
        method="percentile",
        rng=np.random.default_rng(3),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert getattr(ours, name) == pytest.approx((theirs.low, theirs.high), abs=0.15 * width)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    truth = float(ndtr(1.5 / 2**0.5))  # P(N(1.5, 1) > N(0, 1))
    covered = 0
    for seed in range(120):
        low, high = bootstrap_intervals(
            in_distribution=normal(150, 1.5, 2 * seed),
            out_of_distribution=normal(80, 0, 2 * seed + 1),
            resamples=150,
            confidence=0.9,
            seed=seed,
        ).auroc
        covered += low <= truth <= high
    assert 0.83 <= covered / 120 <= 0.97  # 0.9 up to two and a half standard errors of 0.027


def test_ood_images_count_as_the_sample_of_the_protocol() -> None:
    """All scores equal: AUPR is the base rate, N / (N + 40) of 60 in-distribution images, whatever M is."""
    found = bootstrap_intervals(
        in_distribution=np.ones(60), out_of_distribution=np.ones(500), sample_size=40, resamples=3, seed=0
    )
    assert found.aupr == pytest.approx((0.6, 0.6))
    assert (found.fpr95, found.auroc) == ((1.0, 1.0), (0.5, 0.5))


def test_intervals_follow_their_seed_and_widen_with_confidence() -> None:
    sets = {"in_distribution": normal(100, 1, 0), "out_of_distribution": normal(100, 0, 1)}
    first, again, other = (bootstrap_intervals(**sets, resamples=100, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    wide = bootstrap_intervals(**sets, resamples=100, confidence=0.99, seed=1)
    for (low, high), (lower, higher) in zip(astuple(first), astuple(wide), strict=True):
        assert lower <= low < high <= higher


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resamples": 0}, "resamples is 0; it must be at least 1"),
        ({"sample_size": 0}, "sample_size is 0; it must be at least 1"),
        ({"confidence": 1.0}, r"confidence is 1.0; it must be in \(0, 1\)"),
        ({"out_of_distribution": np.array([np.nan])}, "out_of_distribution holds 1 of 1 scores that are not finite"),
    ],
)
def test_intervals_refuse(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_intervals(**({"in_distribution": np.ones(2), "out_of_distribution": np.ones(2), "seed": 0} | change))
