import math
import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy import stats

from model_store.calibration import (
    choose_k,
    conformal_k,
    empirical_k,
    histogram_counts,
    histogram_edges,
    is_ood,
    p_values,
    pac_k,
    require_sorted,
    sorted_scores,
    threshold,
)
from model_store.errors import CalibrationError

FLOAT32_MAX = float(np.finfo(np.float32).max)
DENORMAL = float(np.finfo(np.float32).smallest_subnormal)


def float32(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


# k


@pytest.mark.parametrize(
    ("n", "alpha", "k"),
    [
        (19, 0.05, 1),  # 0.05 * 20 = 1
        (38, 0.05, 1),  # 0.05 * 39 = 1.95
        (39, 0.05, 2),
        (5000, 0.05, 250),  # 250.05
        (99, 0.29, 29),  # in floats 0.29 * 100 = 28.999999999999996
        (99, 0.57, 57),  # in floats 56.99999999999999
        (9, 0.7, 7),
        (1, 0.5, 1),
        (10**6 - 1, 1e-06, 1),  # written with an exponent
    ],
)
def test_conformal_k_is_the_exact_floor_of_alpha_times_n_plus_1(n: int, alpha: float, k: int) -> None:
    assert conformal_k(n, alpha) == k


@pytest.mark.parametrize(
    ("n", "alpha", "k"),
    [(1, 0.05, 1), (19, 0.05, 1), (20, 0.05, 2), (5000, 0.05, 251), (100, 0.29, 30), (1, 0.99, 1), (4, 0.75, 4)],
)
def test_empirical_k_is_the_exact_floor_of_alpha_n_plus_1(n: int, alpha: float, k: int) -> None:
    assert empirical_k(n, alpha) == k


@settings(deadline=None)
@given(n=st.integers(1, 300), alpha=st.integers(1, 99).map(lambda percent: percent / 100))
def test_empirical_k_is_the_largest_whose_rate_on_the_calibration_set_is_within_alpha(n: int, alpha: float) -> None:
    scores = np.arange(n, dtype=np.float32)
    rates = [Fraction(int(is_ood(scores, threshold(scores, k)).sum()), n) for k in range(1, n + 1)]
    within = [k for k, rate in enumerate(rates, start=1) if rate <= Fraction(str(alpha))]
    assert empirical_k(n, alpha) == max(within)


@pytest.mark.parametrize(("n", "k"), [(59, 1), (1000, 39), (5000, 225), (10000, 464)])
def test_pac_k_has_the_published_values_at_5_percent(n: int, k: int) -> None:
    assert pac_k(n, 0.05, 0.05) == k


@pytest.mark.parametrize(
    ("n", "alpha", "delta", "k"),
    [
        (2, 0.5, 0.25, 1),  # P(X = 0) = 1/4, a tie with delta
        (2, 0.5, 0.75, 2),  # P(X <= 1) = 3/4, a tie
        (2, 0.5, 0.74, 1),
        (2, 0.1, 0.81, 1),  # 0.9 ** 2 = 0.81, which floats miss
        (1, 0.9, 0.1, 1),
    ],
)
def test_pac_k_counts_an_exact_tie_with_delta(n: int, alpha: float, delta: float, k: int) -> None:
    assert pac_k(n, alpha, delta) == k


@settings(deadline=None)
@given(n=st.integers(1, 3000), alpha=st.floats(0.001, 0.999), delta=st.floats(1e-6, 0.999))
def test_pac_k_agrees_with_scipy(n: int, alpha: float, delta: float) -> None:
    cdf = stats.binom.cdf(np.arange(n + 1), n, alpha)
    assume(np.abs(cdf / delta - 1).min() > 1e-9)  # scipy rounds too
    expected = int((cdf <= delta).sum())
    if expected:
        assert pac_k(n, alpha, delta) == expected
    else:
        with pytest.raises(CalibrationError, match=f"n is {n};"):
            pac_k(n, alpha, delta)


@pytest.mark.parametrize(("alpha", "delta"), [(0.05, 0.05), (0.001, 1e-6), (0.5, 0.01)])
def test_pac_k_agrees_with_scipy_at_a_million_scores(alpha: float, delta: float) -> None:
    k = pac_k(10**6, alpha, delta)
    assert stats.binom.cdf(k - 1, 10**6, alpha) <= delta < stats.binom.cdf(k, 10**6, alpha)


def test_pac_k_does_not_underflow_where_alpha_is_nearly_1() -> None:
    # The sum starts at 0.0001 ** 300,000 = 1e-1,200,000, below the least number of a default decimal context.
    k = pac_k(300_000, 0.9999, 0.05)
    assert stats.binom.cdf(k - 1, 300_000, 0.9999) <= 0.05 < stats.binom.cdf(k, 300_000, 0.9999)


@pytest.mark.parametrize(
    ("method", "n", "alpha", "delta", "least"),
    [
        ("conformal", 18, 0.05, None, 19),
        ("conformal", 0, 0.5, None, 1),
        ("conformal", 98, 0.01, None, 99),
        ("conformal", 2, 0.29, None, 3),  # 0.29 * 4 = 1.16
        ("pac", 58, 0.05, 0.05, 59),
        ("pac", 0, 0.5, 0.25, 2),
        ("pac", 1, 0.1, 0.81, 2),
        ("empirical", 0, 0.05, None, 1),
    ],
)
def test_choose_k_says_how_many_scores_are_needed(
    method: str, n: int, alpha: float, delta: float | None, least: int
) -> None:
    with pytest.raises(CalibrationError, match=f"^n is {n}; method '{method}' .* at least {least} calibration scores"):
        choose_k(method, n, alpha, delta)
    assert choose_k(method, least, alpha, delta) == 1
    if least > 1:
        with pytest.raises(CalibrationError):
            choose_k(method, least - 1, alpha, delta)


def test_pac_says_how_many_scores_an_alpha_needs_that_1_minus_alpha_cannot_show() -> None:
    # -ln(0.05) = 2.995732273553990993435..., and n is that times 1e60 and a little.
    with pytest.raises(CalibrationError, match=r"at least 2995732273553990993435\d{39} calibration scores"):
        choose_k("pac", 5000, 1e-60, 0.05)


def test_choose_k_asks_the_method_named() -> None:
    assert choose_k("empirical", 5000, 0.05) == 251
    assert choose_k("conformal", 5000, 0.05) == 250
    assert choose_k("pac", 5000, 0.05, 0.05) == 225


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mondrian", 100, 0.05), "method is 'mondrian'; it must be 'empirical', 'conformal' or 'pac'"),
        (("pac", 100, 0.05), "delta is None; method 'pac' needs one"),
        (("conformal", 100, 0.05, 0.05), "delta is 0.05; only method 'pac' takes one, 'conformal' does not"),
        (("empirical", 100, 0.05, 0.05), "delta is 0.05; only method 'pac' takes one, 'empirical' does not"),
        (("pac", 100, 0.05, 0.0), "delta is 0.0; it must be above 0 and below 1"),
        (("pac", 100, 0.05, 1.0), "delta is 1.0; it must be above 0 and below 1"),
        (("pac", 100, 0.05, math.nan), "delta is nan; it must be above 0 and below 1"),
    ],
)
def test_choose_k_refuses(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        choose_k(*arguments)


@pytest.mark.parametrize(("method", "delta"), [("empirical", None), ("conformal", None), ("pac", 0.05)])
@pytest.mark.parametrize("alpha", [0, 1, -0.05, 5, math.nan, math.inf])
def test_every_method_refuses_an_alpha_outside_0_to_1(method: str, delta: float | None, alpha: float) -> None:
    with pytest.raises(ValueError, match=f"^alpha is {alpha}; it must be above 0 and below 1"):
        choose_k(method, 1000, alpha, delta)


@pytest.mark.parametrize(("method", "delta"), [("empirical", None), ("conformal", None), ("pac", 0.05)])
@pytest.mark.parametrize("n", [-1, 1000.0])
def test_every_method_refuses_an_n_that_is_no_count(method: str, delta: float | None, n: int) -> None:
    with pytest.raises(ValueError, match=f"^n is {n}; it must be an integer, at least 0"):
        choose_k(method, n, 0.05, delta)


# scores and threshold


def test_sorted_scores_sorts_a_copy() -> None:
    given = float32(3, 1, 2)
    scores = sorted_scores(given)
    assert scores.tolist() == [1, 2, 3]
    assert scores.dtype == np.float32
    assert given.tolist() == [3, 1, 2]


def test_sorted_scores_rounds_float64_to_float32() -> None:
    assert sorted_scores(np.array([0.1])).tolist() == [13421773 / 2**27]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.array([1, np.nan, np.inf, -np.inf], dtype=np.float32), "3 of 4 calibration scores are not finite"),
        (np.array([1e39, 1.0]), "1 of 2 calibration scores are not finite in float32"),
        (np.zeros((2, 1), dtype=np.float32), r"calibration scores are float32 \(2, 1\); they must be floats \(n,\)"),
        (np.array([], dtype=np.float32), r"calibration scores are float32 \(0,\); they must be floats \(n,\), n >= 1"),
        (np.array([1, 2]), r"calibration scores are int64 \(2,\)"),
        (np.array(["a"]), r"calibration scores are <U1 \(1,\)"),
    ],
)
def test_sorted_scores_refuses(scores: np.ndarray, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        sorted_scores(scores)


def test_threshold_is_the_float32_just_below_the_kth_smallest() -> None:
    scores = float32(1, 2, 4)
    assert [float(threshold(scores, k)) for k in (1, 2, 3)] == [1 - 2**-24, 2 - 2**-23, 4 - 2**-22]
    assert threshold(scores, 1).dtype == np.float32


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_threshold_below_either_zero_is_the_least_denormal(zero: float) -> None:
    tau = threshold(float32(zero), 1)
    assert float(tau) == -DENORMAL
    assert is_ood(float32(0.0, -0.0, -DENORMAL), tau).tolist() == [False, False, True]


@pytest.mark.parametrize("k", [0, -1, 4])
def test_threshold_refuses_a_k_that_is_not_the_scores(k: int) -> None:
    with pytest.raises(CalibrationError, match=f"k is {k}; with 3 calibration scores it must be in 1 to 3"):
        threshold(float32(1, 2, 3), k)


def test_threshold_refuses_the_least_float32() -> None:
    with pytest.raises(CalibrationError, match=r"calibration score number 1 is -3\.40"):
        threshold(float32(-FLOAT32_MAX, 0), 1)


@pytest.mark.parametrize(
    "scores",
    [
        float32(2, 1),
        float32(1, np.nan),
        float32(1, np.nan, 2),
        float32(np.nan),
        float32(1, np.inf),
        float32(-np.inf, 1),
        float32(),
        np.array([1.0, 2.0]),
        np.zeros((1, 2), dtype=np.float32),
    ],
)
def test_unsorted_or_unfit_calibration_scores_are_refused_everywhere(scores: np.ndarray) -> None:
    for use in (
        lambda: threshold(scores, 1),
        lambda: require_sorted(scores),
        lambda: histogram_edges(scores, np.float32(0)),
        lambda: histogram_counts(scores, (0.0, 1.0)),
    ):
        with pytest.raises(CalibrationError, match="calibration scores are"):
            use()


def test_counts_of_a_histogram_by_hand() -> None:
    """Buckets are closed above; what is above every edge is counted last."""
    scores = float32(-1, 1, 2, 2, 2.5, 5, 9)
    assert histogram_counts(scores, (0.0, 2.0, 3.0, 4.0, 5.0)) == (1, 3, 1, 0, 1, 1)
    assert histogram_counts(scores, (-2.0, 10.0)) == (0, 7, 0)


def test_counts_up_to_the_threshold_are_the_flagged_ones() -> None:
    scores = sorted_scores(np.random.default_rng(0).normal(size=500).astype(np.float32))
    tau = threshold(scores, 25)
    edges = histogram_edges(scores, tau)
    counts = histogram_counts(scores, edges)
    assert sum(counts[: edges.index(float(tau)) + 1]) == int((scores <= tau).sum()) == 24
    assert sum(counts) == 500


# verdicts


def test_p_values_and_flags_by_hand() -> None:
    scores = float32(1, 2, 2, 5)
    energies = float32(0, 1, 1.5, 2, 4, 5, 9, -np.inf, np.inf)
    assert p_values(energies, scores).tolist() == [0.2, 0.4, 0.4, 0.8, 0.8, 1, 1, 0.2, 1]
    assert p_values(energies, scores).dtype == np.float64
    # k = 2 and k = 3 name the same score, 2, and so flag the same.
    for k in (2, 3):
        flags = is_ood(energies, threshold(scores, k))
        assert flags.tolist() == [True, True, True, False, False, False, False, True, False]
        assert flags.dtype == np.bool_


def test_an_empty_batch_has_no_verdicts() -> None:
    assert p_values(float32(), float32(1)).shape == (0,)
    assert is_ood(float32(), np.float32(1)).shape == (0,)


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
tied = st.sampled_from([0.0, -0.0, DENORMAL, -DENORMAL, 1.0, -1.0, 24.5, FLOAT32_MAX, -FLOAT32_MAX])


@st.composite
def calibrations(draw: st.DrawFn) -> tuple[list[float], int, list[float]]:
    scores = draw(st.lists(draw(st.sampled_from([finite, tied, finite | tied])), min_size=1, max_size=200))
    k = draw(st.integers(1, len(scores)))
    judged = draw(st.lists(st.floats(width=32, allow_nan=False), max_size=20))
    return scores, k, judged


@settings(max_examples=300, deadline=None)
@example(([0.0, -0.0], 1, [])).via("both zeros tie")
@example(([DENORMAL, -DENORMAL, 0.0], 3, [])).via("tau is zero")
@given(calibrations())
def test_the_three_forms_of_the_verdict_are_one(case: tuple[list[float], int, list[float]]) -> None:
    scores, k, judged = case
    ranked = sorted(scores)
    assume(ranked[k - 1] != -FLOAT32_MAX)
    calibration = float32(*scores)
    infinity = np.float32(np.inf)
    with np.errstate(over="ignore", under="ignore"):
        neighbours = [np.nextafter(calibration, infinity), np.nextafter(calibration, -infinity)]
    energies = np.concatenate([calibration, *neighbours, float32(0.0, -0.0, *judged)])

    calibration = sorted_scores(calibration)
    tau = threshold(calibration, k)
    flags = is_ood(energies, tau)

    by_definition = [energy < ranked[k - 1] for energy in energies.tolist()]
    assert flags.tolist() == by_definition
    assert (energies <= tau).tolist() == by_definition
    assert (p_values(energies, calibration) <= k / (len(scores) + 1)).tolist() == by_definition
    # The threshold may travel as a Python float, as JSON does it.
    assert is_ood(energies, float(tau)).tolist() == by_definition


@pytest.mark.parametrize(
    ("energies", "message"),
    [
        (float32(1, np.nan, np.nan), "scores hold 2 NaN among 3"),
        (np.array([1.0]), r"scores are float64 \(1,\); they must be float32 \(N,\)"),
        (np.zeros((1, 1), dtype=np.float32), r"scores are float32 \(1, 1\)"),
        (np.float32(1), r"scores are float32 \(\)"),
    ],
)
def test_unfit_energies_are_refused(energies: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        is_ood(energies, np.float32(1))
    with pytest.raises(ValueError, match=message):
        p_values(energies, float32(1))


@pytest.mark.parametrize("tau", [0.1, math.nan, math.inf, -math.inf, 1e39, np.float32(np.nan)])
def test_a_tau_that_is_no_finite_float32_is_refused(tau: float) -> None:
    with pytest.raises(ValueError, match=f"tau is {re.escape(str(tau))}; it must be the value of a finite float32"):
        is_ood(float32(1), tau)
    with pytest.raises(ValueError, match="tau is"):
        histogram_edges(float32(1), tau)


# the guarantees, by simulation: scores are uniform on [0, 1), so that the false-flag rate below tau is tau itself


def realised_rates(n: int, k: int, draws: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.array([threshold(sorted_scores(rng.random(n, dtype=np.float32)), k) for _ in range(draws)], np.float64)


def test_conformal_flags_at_k_over_n_plus_1_on_average() -> None:
    n, alpha, draws, images = 50, 0.1, 4000, 100
    k = conformal_k(n, alpha)
    assert k == 5
    rng = np.random.default_rng(0)
    flagged = 0
    for _ in range(draws):
        tau = threshold(sorted_scores(rng.standard_normal(n, dtype=np.float32)), k)
        flagged += int(is_ood(rng.standard_normal(images, dtype=np.float32), tau).sum())
    # Each draw's count of flagged images is beta-binomial.
    four_sigma = 4 * stats.betabinom(images, k, n + 1 - k).std() / images / math.sqrt(draws)
    assert four_sigma < 0.1 / 30
    assert flagged / draws / images == pytest.approx(k / (n + 1), abs=four_sigma)


@pytest.mark.parametrize(("n", "k"), [(99, 10), (20, 1), (20, 20), (500, 25)])
def test_the_realised_rate_is_beta_distributed(n: int, k: int) -> None:
    rates = realised_rates(n, k, draws=4000, seed=n + k)
    assert stats.kstest(rates, stats.beta(k, n + 1 - k).cdf).pvalue > 1e-3
    # The test has the power to tell a neighbouring rank.
    neighbour = k + 1 if k < n else k - 1
    assert stats.kstest(rates, stats.beta(neighbour, n + 1 - neighbour).cdf).pvalue < 1e-6


def test_pac_exceeds_alpha_in_delta_of_the_calibration_sets() -> None:
    n, alpha, delta, draws = 1000, 0.05, 0.05, 4000
    exceeding = (realised_rates(n, pac_k(n, alpha, delta), draws, seed=1) > alpha).mean()
    four_sigma = 4 * math.sqrt(delta * (1 - delta) / draws)
    # k is whole: the exact chance is below delta by less than one binomial term.
    nearest = stats.binom.cdf(pac_k(n, alpha, delta) - 1, n, alpha)
    assert 0.04 < nearest <= delta
    assert exceeding == pytest.approx(nearest, abs=four_sigma)
    # The same threshold by the conformal method has no such promise.
    assert (realised_rates(n, conformal_k(n, alpha), draws, seed=1) > alpha).mean() > 0.4


# histogram edges


def test_histogram_edges_by_hand() -> None:
    scores = float32(10, 16, 20, 37)
    tau = threshold(scores, 2)
    # The range is 27: from 10 - 27 = -17 to 37, by the least round step of at least 54 / 27 = 2.
    assert histogram_edges(scores, tau) == tuple(sorted([*map(float, range(-18, 40, 2)), float(tau)]))


def test_histogram_edges_are_readable_decimals() -> None:
    scores = float32(0.25, 1.5)
    tau = threshold(scores, 1)
    edges = histogram_edges(scores, tau)
    assert [edge for edge in edges if edge != tau] == [i / 10 for i in range(-10, 16)]


@settings(max_examples=300, deadline=None)
@example(([7.0] * 30, 4, [])).via("all equal")
@example(([0.0, -0.0], 2, [])).via("all zero")
@example(([-FLOAT32_MAX, FLOAT32_MAX], 2, [])).via("the whole of float32")
@example(([0.0, DENORMAL], 2, [])).via("the least range")
@given(calibrations())
def test_histogram_edges_hold_tau_and_span_what_is_below(case: tuple[list[float], int, list[float]]) -> None:
    scores, k, _ = case
    assume(sorted(scores)[k - 1] != -FLOAT32_MAX)
    calibration = sorted_scores(float32(*scores))
    low, high = Fraction(min(scores)), Fraction(max(scores))
    tau = threshold(calibration, k)

    edges = histogram_edges(calibration, tau)

    assert all(type(edge) is float and math.isfinite(edge) for edge in edges)
    assert list(edges) == sorted(set(edges))
    assert edges.count(float(tau)) == 1
    assert 20 <= len(edges) <= 30
    span = high - low or max(Fraction(1), abs(high))
    # As wide below the calibration scores as they are, and not a bucket further on either side.
    assert low - 1.12 * float(span) < edges[0] <= low - span
    assert high <= edges[-1] < high + 0.12 * float(span)
