"""Thresholds and p-values of one score, negative energy say, from images that training never saw.

One identity holds, whatever score and method, for every float32 score s; higher means more in-distribution. With s_(k)
the k-th smallest of n calibration scores, tau = nextafter(s_(k), -inf) and p = (1 + #{s_i <= s}) / (n + 1):

    is_ood  ==  (s <= tau)  ==  (p <= k / (n + 1))

A method only chooses k. Given the calibration set, the rate at which in-distribution images are then falsely flagged
is a draw from Beta(k, n + 1 - k) (below it where scores tie). That rests on exchangeability: the images to judge come
as the calibration images came.
"""

import math
from collections.abc import Sequence
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, localcontext
from fractions import Fraction
from numbers import Integral
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model_store.errors import CalibrationError

Method = Literal["empirical", "conformal", "pac"]

# Digits carried by the binomial sum. Rounding a million terms costs seven of them; while n * digits(alpha) stays
# below 50 the sum is exact, so that an exact tie with delta is seen as one.
_EXACT = Context(prec=50, Emin=MIN_EMIN, Emax=MAX_EMAX)

# An axis of at most this many steps, with the tick beyond either end and tau, has 20 to 30 edges.
_MOST_STEPS = 27
_ROUND_STEPS = tuple(Fraction(step) for step in ("1", "1.5", "2", "3", "4", "5", "6", "8", "10"))


def choose_k(method: Method, n: int, alpha: float, delta: float | None = None) -> int:
    """Return the k, in 1 to n, by which `method` puts its threshold at the k-th smallest of n scores.

    Args:
        method: "empirical", "conformal" or "pac".
        n: number of calibration scores.
        alpha: false-flag rate to keep to, in (0, 1).
        delta: "pac" alone takes it: the chance, over calibration sets, that the rate is above alpha; in (0, 1).

    Raises:
        CalibrationError: n scores are too few for alpha (and delta).
        ValueError: an argument is out of range, or delta is given to a method that has none, or withheld from "pac".
    """
    if method == "pac":
        if delta is None:
            raise ValueError("delta is None; method 'pac' needs one, above 0 and below 1")
        return pac_k(n, alpha, delta)
    if delta is not None:
        raise ValueError(f"delta is {delta}; only method 'pac' takes one, {method!r} does not")
    if method == "empirical":
        return empirical_k(n, alpha)
    if method == "conformal":
        return conformal_k(n, alpha)
    raise ValueError(f"method is {method!r}; it must be 'empirical', 'conformal' or 'pac'")


def empirical_k(n: int, alpha: float) -> int:
    """Return floor(alpha n) + 1, the plain empirical quantile (Liu et al. 2020, Eq. 7 with TPR = 1 - alpha).

    Flagged means s < s_(k), so the calibration set itself is flagged at (k - 1) / n (or less, where scores tie):
    this is the largest k with (k - 1) / n <= alpha. It promises nothing for new images, whose expected rate
    k / (n + 1) may lie above alpha.

    Raises:
        CalibrationError: n is 0.
        ValueError: n is no count, or alpha is not in (0, 1).
    """
    _check_count(n)
    k = math.floor(_exact_fraction("alpha", alpha) * int(n)) + 1
    if k > n:
        raise _too_few(n, 1, f"method 'empirical' with alpha {alpha}")
    return k


def conformal_k(n: int, alpha: float) -> int:
    """Return floor(alpha (n + 1)), in exact arithmetic on alpha as it is written (0.29 of 100 is 29, not 28).

    Guarantee: an in-distribution image exchangeable with the calibration images is flagged with probability at most
    alpha, over calibration sets and images together (Bates et al. 2023). Given one calibration set, the rate is above
    alpha about every other time.

    Raises:
        CalibrationError: n is below 1 / alpha - 1.
        ValueError: n is no count, or alpha is not in (0, 1).
    """
    _check_count(n)
    exact_alpha = _exact_fraction("alpha", alpha)
    k = math.floor(exact_alpha * (int(n) + 1))
    if k < 1:
        raise _too_few(n, math.ceil(1 / exact_alpha) - 1, f"method 'conformal' with alpha {alpha}")
    return k


def pac_k(n: int, alpha: float, delta: float) -> int:
    """Return the largest k with P(Binomial(n, alpha) <= k - 1) <= delta.

    Guarantee: with confidence 1 - delta over calibration sets, the rate at which exchangeable in-distribution images
    are flagged is at most alpha. For Beta(k, n + 1 - k) exceeds alpha with exactly that binomial probability.

    Raises:
        CalibrationError: n is below log(delta) / log(1 - alpha).
        ValueError: n is no count, or alpha or delta is not in (0, 1).
    """
    _check_count(n)
    _check_open_fraction("alpha", alpha)
    _check_open_fraction("delta", delta)
    # Decimal, not float: its exponents reach (1 - alpha) ** n without underflow, so no logarithms are needed.
    with localcontext(_EXACT):
        flagged, limit = Decimal(str(alpha)), Decimal(str(delta))
        k = _terms_within(int(n), flagged, limit)
        if k < 1:
            raise _too_few(n, _least_for_pac(flagged, limit), f"method 'pac' with alpha {alpha} and delta {delta}")
    return k


def sorted_scores(scores: NDArray[Any]) -> NDArray[np.float32]:
    """Return a sorted copy of calibration scores, float32 (n,), ascending.

    Args:
        scores: floats (n,), n >= 1, finite. Wider floats are rounded to float32, the precision of the scores that
            will be judged.

    Raises:
        CalibrationError: there are none, they are not floats (n,), or some are not finite in float32.
    """
    given = np.asarray(scores)
    if given.ndim != 1 or given.dtype.kind != "f" or given.size == 0:
        raise CalibrationError(f"calibration scores are {given.dtype} {given.shape}; they must be floats (n,), n >= 1")
    with np.errstate(over="ignore"):  # counted below
        narrow = given.astype(np.float32)
    bad = int(np.count_nonzero(~np.isfinite(narrow)))
    if bad:
        raise CalibrationError(f"{bad} of {narrow.size} calibration scores are not finite in float32; all must be")
    return np.sort(narrow)


def threshold(sorted_scores: NDArray[np.float32], k: int) -> np.float32:
    """Return tau = nextafter(s_(k), -inf), the largest float32 below the k-th smallest score.

    Args:
        sorted_scores: float32 (n,), ascending, finite.
        k: 1 to n.

    Raises:
        CalibrationError: the scores are not sorted or not finite, k is not in 1 to n, or no float32 lies below s_(k).
    """
    require_sorted(sorted_scores)
    n = sorted_scores.size
    if not 1 <= k <= n:
        raise CalibrationError(f"k is {k}; with {n} calibration scores it must be in 1 to {n}")
    with np.errstate(over="ignore", under="ignore"):  # the first is refused below, the second is a denormal tau
        tau = np.nextafter(sorted_scores[k - 1], np.float32(-np.inf))
    if not np.isfinite(tau):
        raise CalibrationError(f"calibration score number {k} is {sorted_scores[k - 1]}; no finite float32 lies below")
    return np.float32(tau)


def require_sorted(scores: NDArray[np.float32]) -> None:
    """Refuse calibration scores that are not float32 (n,), n >= 1, ascending and finite.

    Raises:
        CalibrationError: they are not.
    """
    if scores.dtype != np.float32 or scores.ndim != 1 or scores.size == 0:
        raise CalibrationError(
            f"calibration scores are {scores.dtype} {scores.shape}; they must be float32 (n,), n >= 1"
        )
    # NaN fails the comparison, and what is sorted between finite ends is finite.
    if not np.all(scores[:-1] <= scores[1:]) or not np.isfinite(scores[[0, -1]]).all():
        raise CalibrationError("calibration scores are not ascending and finite; `sorted_scores` makes them so")


def p_values(scores: NDArray[np.float32], sorted_scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the conformal p-values (1 + #{s_i <= s}) / (n + 1), float64 (N,) in [1 / (n + 1), 1].

    Args:
        scores: float32 (N,), not NaN. One NaN refuses the batch, so single it out before.
        sorted_scores: float32 (n,), as `require_sorted` has them; a batch is judged too often to look again.

    Raises:
        ValueError: scores are not float32 (N,), or hold NaN.
    """
    _check_scores(scores)
    not_above = np.searchsorted(sorted_scores, scores, side="right")
    p: NDArray[np.float64] = (1 + not_above) / np.float64(sorted_scores.size + 1)
    return p


def is_ood(scores: NDArray[np.float32], tau: np.float32 | float) -> NDArray[np.bool_]:
    """Return scores <= tau, bool (N,): Liu et al. 2020, Eq. 7.

    Args:
        scores: float32 (N,), not NaN. One NaN refuses the batch, so single it out before.
        tau: from `threshold`; as a Python float it must still be that float32's value.

    Raises:
        ValueError: scores are not float32 (N,) or hold NaN, or tau is not the value of a finite float32.
    """
    _check_scores(scores)
    return scores <= _float32_tau(tau)


def histogram_edges(sorted_scores: NDArray[np.float32], tau: np.float32 | float) -> tuple[float, ...]:
    """Return 20 to 30 finite, strictly increasing bucket edges for a score, tau exactly one of them.

    The others are multiples of one round step, from as far below the least score as the scores range (OOD
    images score far lower) to the first at or above the greatest. Where all scores are equal, the range counts as their
    magnitude, at least 1. Buckets are closed above, as Prometheus has them, so that the count of `le=tau` is the
    count of flagged images; the bucket up to +Inf is left to the histogram.

    Args:
        sorted_scores: float32 (n,), ascending, finite.
        tau: from `threshold`.

    Raises:
        CalibrationError: the scores are not sorted or not finite.
        ValueError: tau is not the value of a finite float32.
    """
    require_sorted(sorted_scores)
    low, high = Fraction(float(sorted_scores[0])), Fraction(float(sorted_scores[-1]))
    bottom = low - (high - low or max(Fraction(1), abs(high)))
    step = _round_step((high - bottom) / _MOST_STEPS)
    ticks = range(math.floor(bottom / step), math.ceil(high / step) + 1)
    return tuple(sorted({float(tick * step) for tick in ticks} | {float(_float32_tau(tau))}))


def histogram_counts(sorted_scores: NDArray[np.float32], edges: Sequence[float]) -> tuple[int, ...]:
    """Return how many scores lie in each bucket, closed above; the last count is of those above every edge.

    Args:
        sorted_scores: float32 (n,), ascending, finite.
        edges: finite, strictly increasing.

    Raises:
        CalibrationError: the scores are not sorted or not finite.
    """
    require_sorted(sorted_scores)
    up_to = np.searchsorted(sorted_scores, np.asarray(edges, np.float64), side="right")
    return tuple(np.diff(up_to, prepend=0, append=sorted_scores.size).tolist())


def _terms_within(n: int, alpha: Decimal, limit: Decimal) -> int:
    """Return how many of P(Binomial(n, alpha) = 0), = 1, ... may be summed before the sum exceeds limit."""
    term = total = (1 - alpha) ** n
    count = 0
    while total <= limit:
        count += 1
        term = term * (n - count + 1) * alpha / (count * (1 - alpha))
        total += term
    return count


def _least_for_pac(alpha: Decimal, delta: Decimal) -> int:
    """Return the least n with (1 - alpha) ** n <= delta: that of k = 1."""
    with localcontext(prec=_EXACT.prec - alpha.adjusted()):  # 1 - alpha must not round to 1
        n = max(1, int(delta.ln() / (1 - alpha).ln()))
        while (1 - alpha) ** n > delta:
            n += 1
        return n


def _round_step(least: Fraction) -> Fraction:
    """Return the smallest step >= least that reads well on an axis: 1, 1.5, 2, 3, 4, 5, 6 or 8 times a power of 10."""
    magnitude = Fraction(10) ** math.floor(math.log10(least))
    return next(step * magnitude for step in _ROUND_STEPS if step * magnitude >= least)


def _exact_fraction(name: str, value: float) -> Fraction:
    _check_open_fraction(name, value)
    return Fraction(str(value))


def _float32_tau(tau: np.float32 | float) -> np.float32:
    with np.errstate(over="ignore"):
        narrow = np.float32(tau)
    if not np.isfinite(narrow) or float(narrow) != float(tau):
        raise ValueError(f"tau is {tau}; it must be the value of a finite float32, as `threshold` gives it")
    return narrow


def _too_few(n: int, least: int, what: str) -> CalibrationError:
    return CalibrationError(f"n is {n}; {what} needs at least {least} calibration scores")


def _check_count(n: int) -> None:
    if not isinstance(n, Integral) or n < 0:
        raise ValueError(f"n is {n!r}; it must be an integer, at least 0")


def _check_open_fraction(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} is {value}; it must be above 0 and below 1")


def _check_scores(scores: NDArray[np.float32]) -> None:
    # A wider float could lie between tau and s_(k), and the two forms of the verdict would part.
    if scores.dtype != np.float32 or scores.ndim != 1:
        raise ValueError(f"scores are {scores.dtype} {scores.shape}; they must be float32 (N,)")
    nans = int(np.count_nonzero(np.isnan(scores)))
    if nans:
        raise ValueError(f"scores hold {nans} NaN among {scores.size}; no verdict exists for those")
