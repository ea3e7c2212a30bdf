from dataclasses import astuple
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pytorch_ood.metrics import functional as pytorch_ood
from sklearn.metrics import average_precision_score, roc_curve
from torch import Tensor, tensor

from training.metrics import (
    DetectionMetrics,
    aupr,
    aupr_ood_positive,
    auroc,
    detection_metrics,
    fpr95,
    fpr95_ood_positive,
    resampled_metrics,
)

METRICS = (fpr95, auroc, aupr, fpr95_ood_positive, aupr_ood_positive, detection_metrics)


def scores(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def measured(metric, in_distribution, out_of_distribution):
    return metric(in_distribution=np.asarray(in_distribution), out_of_distribution=np.asarray(out_of_distribution))


# by hand


@pytest.mark.parametrize(
    ("in_distribution", "out_of_distribution", "expected"),
    [
        ([3, 4], [1, 2], (0, 1, 1)),  # told apart without a fault
        ([1, 2], [3, 4], (1, 0, 5 / 12)),  # upside down: precision 1/3 at recall 1/2, 2/4 at 1
        ([7, 7, 7], [7], (1, 1 / 2, 3 / 4)),  # all equal: chance
        ([4, 3, 1], [2, 0], (1 / 2, 5 / 6, 11 / 12)),  # 1 stands below 2: precisions 1, 1, 3/4
        ([2, 0], [4, 3, 1], (1, 1 / 6, 11 / 30)),  # the same with the roles swapped: precisions 1/3, 2/5
        ([2, 1], [1, 0], (1 / 2, 7 / 8, 5 / 6)),  # a tie across the sets: pairs 1, 1, 1/2, 1; precisions 1, 2/3
    ],
)
def test_metrics_by_hand(in_distribution: list, out_of_distribution: list, expected: tuple) -> None:
    found = measured(detection_metrics, in_distribution, out_of_distribution)
    assert (found.fpr95, found.auroc, found.aupr) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("in_distribution", "out_of_distribution", "expected"),
    [
        # Recall 19/20 is 0.95 from 2 down to above 1: 2.5 and 30 are accepted there, and last 1.5.
        (range(1, 21), [0.5, 1.5, 2.5, 30], 3 / 4),
        # 9/10 (score 2) and 10/10 (score 1) are equally near: the higher recall, which accepts the OOD image at 1.
        (range(1, 11), [0, 1, 3, 11], 3 / 4),
        # 94/100 is nearer than 100/100, though below 0.95.
        ([2] * 94 + [1] * 6, [2, 1, 1, 0], 1 / 4),
        # 96/100 is nearer than 90/100, though above 0.95.
        ([3] * 90 + [2] * 6 + [1] * 4, [3, 2, 1, 0], 2 / 4),
        # Full recall is read where it is first reached: 4 is below every in-distribution score.
        ([5], [9, 5, 4], 2 / 3),
        # -0.0 and 0.0 are one score.
        ([0.0], [-0.0, -1.0], 1 / 2),
    ],
)
def test_fpr95_by_hand(in_distribution: list, out_of_distribution: list, expected: float) -> None:
    assert measured(fpr95, in_distribution, out_of_distribution) == expected


def test_metrics_are_plain_floats_whatever_the_dtype() -> None:
    for dtype in (np.float16, np.float32, np.float64, np.int64, np.uint8):
        found = measured(detection_metrics, np.array([4, 3, 1], dtype), np.array([2, 0], dtype))
        # OOD positive: flagging down to 2 takes 1 of 3 along, precisions 1 and 2/3.
        assert astuple(found) == pytest.approx((1 / 2, 5 / 6, 11 / 12, 1 / 3, 5 / 6))
        assert {type(value) for value in astuple(found)} == {float}


def test_metrics_leave_their_arguments_as_they_are() -> None:
    in_distribution, out_of_distribution = scores(1, 3, 2), scores(2, 0, 1)
    measured(detection_metrics, in_distribution, out_of_distribution)
    assert in_distribution.tolist() == [1, 3, 2]
    assert out_of_distribution.tolist() == [2, 0, 1]


# against their definitions, one pair or one operating point at a time


def operating_points(inside: list[float], outside: list[float]) -> list[tuple[Fraction, Fraction, Fraction]]:
    """Return (recall, false-positive rate, precision) of every distinct score, from the highest down."""
    points = []
    for point in sorted({*inside, *outside}, reverse=True):
        true_positives = sum(score >= point for score in inside)
        false_positives = sum(score >= point for score in outside)
        recall, fpr = Fraction(true_positives, len(inside)), Fraction(false_positives, len(outside))
        points.append((recall, fpr, Fraction(true_positives, true_positives + false_positives)))
    return points


def fpr95_by_definition(points: list[tuple[Fraction, Fraction, Fraction]]) -> Fraction:
    first_full = next(index for index, (recall, _, _) in enumerate(points) if recall == 1)
    points = points[: first_full + 1]
    _, _, fpr = min((abs(recall - Fraction(95, 100)), -recall, -fpr) for recall, fpr, _ in points)
    return -fpr


def aupr_by_definition(points: list[tuple[Fraction, Fraction, Fraction]]) -> Fraction:
    recalls = [Fraction(0), *(recall for recall, _, _ in points)]
    return sum((points[i][2] * (recalls[i + 1] - recalls[i]) for i in range(len(points))), Fraction(0))


def auroc_by_definition(inside: list[float], outside: list[float]) -> Fraction:
    halves = sum(2 * (a > b) + (a == b) for a in inside for b in outside)
    return Fraction(halves, 2 * len(inside) * len(outside))


coarse = st.integers(-12, 12).map(lambda eighths: eighths / 8)
fine = st.floats(width=32, allow_nan=False, allow_infinity=False)
score_lists = st.one_of(st.lists(coarse, min_size=1, max_size=60), st.lists(fine, min_size=1, max_size=60))


@settings(max_examples=300, deadline=None)
@example([float(score) for score in range(20)], [0.5, 1.5, 0.25, 18.5]).via("several points share recall 0.95")
@example([float(score) for score in range(10)], [0.0, 0.5, 1.0]).via("two recalls are equally near")
@given(score_lists, score_lists)
def test_metrics_agree_with_their_definitions(inside: list[float], outside: list[float]) -> None:
    found = measured(detection_metrics, scores(*inside), scores(*outside))
    points = operating_points(inside, outside)
    assert found.fpr95 == pytest.approx(float(fpr95_by_definition(points)), abs=1e-12)
    assert found.auroc == pytest.approx(float(auroc_by_definition(inside, outside)), abs=1e-12)
    assert found.aupr == pytest.approx(float(aupr_by_definition(points)), abs=1e-12)


# against other libraries


def energies(n: int, mean: float, seed: int, decimals: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 3, n).round(decimals).astype(np.float32)


@pytest.mark.parametrize("decimals", [0, 1, 6])
def test_fpr95_lies_on_the_roc_curve_of_scikit_learn(decimals: int) -> None:
    inside, outside = energies(997, 10, 0, decimals), energies(300, 6, 1, decimals)
    labels = np.repeat([1, 0], [inside.size, outside.size])
    fpr, recall, _ = roc_curve(labels, np.concatenate([inside, outside]), drop_intermediate=False)
    fpr, recall = fpr[recall < 1], recall[recall < 1]
    distance = np.abs(recall - 0.95)
    assert distance.min() < 0.04  # so that recall 1, left out, is not the nearest
    assert measured(fpr95, inside, outside) == pytest.approx(fpr[np.isclose(distance, distance.min())].max(), rel=1e-12)


def pytorch_ood_input(positive: np.ndarray, negative: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return scores and labels whose positive class, OOD to pytorch-ood, is `positive` with the higher scores."""
    labels = np.repeat([-1, 0], [positive.size, negative.size])
    return tensor(np.concatenate([positive, negative])), tensor(labels)


@pytest.mark.parametrize("decimals", [0, 6])
def test_auroc_agrees_with_pytorch_ood(decimals: int) -> None:
    inside, outside = energies(500, 10, 2, decimals), energies(300, 6, 3, decimals)
    as_it_would = pytorch_ood.auroc(*pytorch_ood_input(-outside, -inside))
    assert measured(auroc, inside, outside) == pytest.approx(float(as_it_would), rel=1e-9)


def test_fpr95_agrees_with_pytorch_ood_where_the_conventions_meet() -> None:
    # The roles swapped, 0.95 a recall that is reached, and every OOD score one that an in-distribution image has too,
    # so that "nearest" is "first to reach" and no two points share a recall.
    inside = np.random.default_rng(4).permutation(np.arange(200, dtype=np.float32))
    outside = np.random.default_rng(5).integers(0, 150, 80).astype(np.float32)
    theirs = float(pytorch_ood.fpr_at_tpr(*pytorch_ood_input(inside, outside), tpr=0.95))
    assert 0.5 < theirs < 1
    assert measured(fpr95, inside, outside) == pytest.approx(theirs, rel=1e-12)


def test_fpr95_and_aupr_are_not_those_of_pytorch_ood_as_it_comes() -> None:
    # In-distribution 4, 3, 1 against OOD 2, 0. OOD positive: both are caught only by also flagging 1.
    inside, outside = scores(4, 3, 1), scores(2, 0)
    as_it_comes = pytorch_ood_input(-outside, -inside)
    assert float(pytorch_ood.fpr_at_tpr(*as_it_comes)) == pytest.approx(1 / 3)
    assert measured(fpr95, inside, outside) == 1 / 2
    # Trapezoids: 2/3 * 1 + 1/3 * (2/3 + 3/4) / 2.
    assert float(pytorch_ood.aupr(*as_it_comes, positive="id")) == pytest.approx(2 / 3 + 17 / 72)
    assert measured(aupr, inside, outside) == pytest.approx(11 / 12)


@pytest.mark.parametrize(
    ("in_distribution", "out_of_distribution", "expected"),
    [
        ([3, 4], [1, 2], (0, 1)),
        ([7, 7, 7], [7], (1, 1 / 4)),
        ([4, 3, 1], [2, 0], (1 / 3, 5 / 6)),
        # 19 of 20 OOD images are caught from 18 up to below 19, where 0.5, 17.5 and last 18.5 are caught with them.
        ([0.5, 17.5, 18.5, 30], range(20), (3 / 4, 0.886329)),
    ],
)
def test_metrics_with_ood_positive_by_hand(in_distribution: list, out_of_distribution: list, expected: tuple) -> None:
    assert measured(fpr95_ood_positive, in_distribution, out_of_distribution) == pytest.approx(expected[0], rel=1e-12)
    assert measured(aupr_ood_positive, in_distribution, out_of_distribution) == pytest.approx(expected[1], abs=1e-4)


@pytest.mark.parametrize("decimals", [0, 6])
def test_aupr_with_ood_positive_is_average_precision_of_the_other_class(decimals: int) -> None:
    inside, outside = energies(500, 10, 2, decimals), energies(300, 6, 3, decimals)
    labels = np.repeat([0, 1], [inside.size, outside.size])
    expected = average_precision_score(labels, -np.concatenate([inside, outside]))
    assert measured(aupr_ood_positive, inside, outside) == pytest.approx(expected, rel=1e-9)


def test_fpr95_with_ood_positive_is_that_of_pytorch_ood_where_the_conventions_meet() -> None:
    outside = np.random.default_rng(4).permutation(np.arange(200, dtype=np.float32))
    inside = np.random.default_rng(5).integers(50, 200, 80).astype(np.float32)
    theirs = float(pytorch_ood.fpr_at_tpr(*pytorch_ood_input(-outside, -inside), tpr=0.95))
    assert 0.5 < theirs < 1
    assert measured(fpr95_ood_positive, inside, outside) == pytest.approx(theirs, rel=1e-12)


# draws


def test_resampled_metrics_use_a_small_set_whole_and_once() -> None:
    inside, outside = energies(100, 10, 6, 1), energies(50, 6, 7, 1)
    whole = measured(detection_metrics, inside, outside)
    for seed in range(3):
        found = resampled_metrics(in_distribution=inside, out_of_distribution=outside, sample_size=50, seed=seed)
        assert found == whole
    assert resampled_metrics(in_distribution=inside, out_of_distribution=outside, seed=0) == whole


def test_resampled_metrics_draw_without_replacement() -> None:
    # Of OOD 0, 0, 2 against 1, two are drawn: {0, 0} gives AUROC 1, {0, 2} gives 1/2; {2, 2}, 0, needs replacement.
    seen = {
        resampled_metrics(
            in_distribution=scores(1), out_of_distribution=scores(0, 0, 2), sample_size=2, draws=1, seed=seed
        ).auroc
        for seed in range(30)
    }
    assert seen == {0.5, 1.0}


def test_resampled_metrics_are_means_over_draws() -> None:
    # As above, {0, 0} has chance 1/3: AUROC 2/3, sd 0.236; FPR95 1/3; average precision 1 or 1/2, so 2/3.
    draws = 400
    found = resampled_metrics(
        in_distribution=scores(1), out_of_distribution=scores(0, 0, 2), sample_size=2, draws=draws, seed=0
    )
    four_sigma = 4 * 0.236 / draws**0.5
    assert found.auroc == pytest.approx(2 / 3, abs=four_sigma)
    # In every draw FPR95 is 0 or 1/2 and average precision 1 or 1/2, as AUROC is 1 or 1/2.
    assert found.fpr95 == pytest.approx(1 - found.auroc, rel=1e-12)
    assert found.aupr == pytest.approx(found.auroc, rel=1e-12)


def test_resampled_metrics_keep_all_in_distribution_images_and_2000_ood_images() -> None:
    # Equal scores give the base rate.
    found = resampled_metrics(in_distribution=np.ones(10_000), out_of_distribution=np.ones(2001), draws=1, seed=0)
    assert astuple(found) == pytest.approx((1, 0.5, 10 / 12, 1, 2 / 12))


def test_resampled_metrics_follow_their_seed() -> None:
    inside, outside = energies(100, 10, 8, 6), energies(500, 6, 9, 6)
    first, again, other = (
        resampled_metrics(in_distribution=inside, out_of_distribution=outside, sample_size=50, seed=seed)
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first.auroc != other.auroc


@pytest.mark.parametrize("name", ["sample_size", "draws"])
def test_resampled_metrics_refuse_none_to_draw(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} is 0; it must be at least 1"):
        resampled_metrics(in_distribution=scores(1), out_of_distribution=scores(0), seed=0, **{name: 0})


# refusals


def seeded_resampled_metrics(**sets: np.ndarray) -> DetectionMetrics:
    return resampled_metrics(**sets, seed=0)


@pytest.mark.parametrize("metric", [*METRICS, seeded_resampled_metrics])
@pytest.mark.parametrize("name", ["in_distribution", "out_of_distribution"])
@pytest.mark.parametrize(
    ("unfit", "message"),
    [
        (scores(1, np.nan, np.nan), "holds 2 of 3 scores that are not finite"),
        (scores(1, np.inf), "holds 1 of 2 scores that are not finite"),
        (scores(-np.inf), "holds 1 of 1 scores that are not finite"),
        (scores(), r"is float32 \(0,\); it must be real numbers \(N,\), N >= 1"),
        (np.ones((2, 1)), r"is float64 \(2, 1\); it must be real numbers"),
        (np.float32(1), r"is float32 \(\); it must be real numbers"),
        (np.array([True]), r"is bool \(1,\); it must be real numbers"),
        (np.array([1j]), r"is complex128 \(1,\); it must be real numbers"),
    ],
)
def test_metrics_refuse(metric, name: str, unfit: np.ndarray, message: str) -> None:
    sets = {"in_distribution": scores(1), "out_of_distribution": scores(0), name: unfit}
    with pytest.raises(ValueError, match=f"^{name} {message}"):
        metric(**sets)


@pytest.mark.parametrize("metric", METRICS)
def test_metrics_take_no_positional_arguments(metric) -> None:
    with pytest.raises(TypeError, match="positional"):
        metric(scores(1), scores(0))
