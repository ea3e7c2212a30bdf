"""Fitted scores: by hand in two dimensions, and against pytorch-ood on the same features."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from pytorch_ood.detector import GEN, KNN, RMD, SCALE, Mahalanobis, MaxLogit, ReAct, ViM
from scipy.spatial.distance import cdist
from torch import Tensor, nn
from torch.nn import functional as F

from model_store.errors import ScoreMismatchError
from model_store.networks import NetworkOutput
from model_store.score_specs import (
    EnergyMahalanobisSpec,
    GenSpec,
    KnnSpec,
    MahalanobisSpec,
    MaxLogitSpec,
    MaxSoftmaxSpec,
    NegativeEnergySpec,
    ReactSpec,
    RelativeMahalanobisSpec,
    ScaleSpec,
    ScoreName,
    ScoreSpec,
    VimSpec,
)
from model_store.scores import Head, Knn, negative_energy, restore_score
from model_store.scores.nearest import ROWS_AT_ONCE
from training.errors import DataError
from training.fit_scores import fit_score, require_fittable, stratified_rows

CLASSES, WIDTH = 10, 32
SPECS: tuple[ScoreSpec, ...] = (
    NegativeEnergySpec(),
    MaxSoftmaxSpec(),
    MaxLogitSpec(),
    GenSpec(),
    ReactSpec(),
    ScaleSpec(),
    KnnSpec(k=20, reference_rows=300),
    MahalanobisSpec(),
    RelativeMahalanobisSpec(),
    VimSpec(residual_dimension=20),
    EnergyMahalanobisSpec(),
)
UNFITTED = {"negative_energy", "max_softmax", "max_logit", "gen", "scale"}
FITTED = tuple(spec for spec in SPECS if spec.kind not in UNFITTED)


def _features(rows: int, seed: int, classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    """Penultimate features as a ReLU network has them: not negative, around a mean a class."""
    generator = torch.Generator().manual_seed(seed)
    means = 2 * torch.rand(classes, WIDTH, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(rows) % classes
    return (means[labels] + 0.7 * torch.randn(rows, WIDTH, generator=generator)).relu(), labels


@pytest.fixture(scope="module")
def head() -> Head:
    generator = torch.Generator().manual_seed(7)
    return Head(torch.randn(CLASSES, WIDTH, generator=generator), torch.randn(CLASSES, generator=generator))


@pytest.fixture(scope="module")
def training() -> tuple[Tensor, Tensor]:
    return _features(1000, seed=0)


@pytest.fixture(scope="module")
def output(head: Head) -> NetworkOutput:
    """Half as the training images, half far from them."""
    features = torch.cat([_features(32, seed=1)[0], 3 * _features(32, seed=2)[0].flip(1)])
    return NetworkOutput(head.logits(features), features)


def _check_agrees(ours: Tensor, theirs: Tensor) -> None:
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours.double(), theirs.double(), rtol=1e-4, atol=1e-4)


def _tail(head: Head) -> nn.Module:
    """The rest of a network behind feature maps (N, D, 1, 1), as pytorch-ood has it."""
    layer = nn.Linear(WIDTH, CLASSES)
    layer.weight.data, layer.bias.data = head.weight, head.bias
    return nn.Sequential(nn.Flatten(), layer)


def _maps(features: Tensor) -> Tensor:
    return features[:, :, None, None]


def test_every_score_has_a_spec_and_the_name_of_it(training: tuple[Tensor, Tensor], head: Head) -> None:
    assert [spec.kind for spec in SPECS] == list(get_args(ScoreName))
    assert [fit_score(spec, *training, head).name for spec in SPECS] == [spec.kind for spec in SPECS]


def test_max_logit_and_gen_agree_with_pytorch_ood(output: NetworkOutput, head: Head) -> None:
    """Its GEN averages; it also raises probabilities to 1e-7, below which these logits do not go."""
    logits = 0.1 * output.logits
    assert float(logits.softmax(dim=1).amin()) > 1e-7
    scaled, nothing = NetworkOutput(logits, output.features), (output.features[:2], torch.tensor([0, 1]))
    _check_agrees(fit_score(MaxLogitSpec(), *nothing, head)(scaled), -MaxLogit.score(logits))
    _check_agrees(fit_score(GenSpec(), *nothing, head)(scaled), -CLASSES * GEN.score(logits))
    of_three = fit_score(GenSpec(gamma=0.3, top_classes=3), *nothing, head)
    _check_agrees(of_three(scaled), -3 * GEN.score(logits, gamma=0.3, M=3))


@pytest.mark.parametrize("percentile", [0.5, 0.9])
def test_react_agrees_with_pytorch_ood(
    training: tuple[Tensor, Tensor], output: NetworkOutput, head: Head, percentile: float
) -> None:
    theirs = ReAct(None, _tail(head), percentile=percentile).fit_feature_maps(_maps(training[0]), training[1])
    ours = fit_score(ReactSpec(percentile=percentile), *training, head)
    _check_agrees(ours(output), -theirs.predict_feature_maps(_maps(output.features)))


@pytest.mark.parametrize("percentile", [0.65, 0.85])
def test_scale_agrees_with_pytorch_ood(output: NetworkOutput, head: Head, percentile: float) -> None:
    theirs = SCALE(None, _tail(head), percentile=percentile).predict_feature_maps(_maps(output.features))
    ours = fit_score(ScaleSpec(percentile=percentile), *_features(2, seed=0), head)
    _check_agrees(ours(output), -theirs)


@pytest.mark.parametrize("k", [1, 50])
def test_knn_agrees_with_pytorch_ood(
    training: tuple[Tensor, Tensor], output: NetworkOutput, head: Head, k: int
) -> None:
    theirs = KNN(None, k=k).fit_features(*training).predict_features(output.features)
    _check_agrees(fit_score(KnnSpec(k=k), *training, head)(output), -theirs)


def test_mahalanobis_agrees_with_pytorch_ood(
    training: tuple[Tensor, Tensor], output: NetworkOutput, head: Head
) -> None:
    """It halves the square, takes the sum of outer products for their mean, and adds 1e-6 I, in place of our ridge."""
    images = len(training[0])
    halves = Mahalanobis(None).fit_features(*training).predict_features(output.features)
    _check_agrees(fit_score(MahalanobisSpec(ridge=1e-9), *training, head)(output), -2 * images * halves)
    relative = RMD(None).fit_features(*training).predict_features(output.features)
    _check_agrees(fit_score(RelativeMahalanobisSpec(ridge=1e-9), *training, head)(output), -images * relative)


@pytest.mark.parametrize("residual", [8, 20])
def test_vim_agrees_with_pytorch_ood(
    training: tuple[Tensor, Tensor], output: NetworkOutput, head: Head, residual: int
) -> None:
    """Where the least varying directions stand apart: it finds them in float32."""
    spread = torch.where(torch.arange(WIDTH) < residual, 0.2, 1.0)
    features, seen = spread * training[0], spread * output.features
    theirs = ViM(None, WIDTH - residual, *head).fit_features(features, training[1]).predict_features(seen)
    ours = fit_score(VimSpec(residual_dimension=residual), features, training[1], head)
    _check_agrees(ours(NetworkOutput(head.logits(seen), seen)), -theirs)


# Two classes in the plane: their means (1, 0) and (5, 4), each with two images one step to either side of x.
PLANE = torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 4.0], [6.0, 4.0]])
PLANE_LABELS = torch.tensor([0, 0, 1, 1])
PLANE_HEAD = (torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([2.0, -2.0]))


def _of_point(spec: ScoreSpec, x: float, y: float, training: Tensor = PLANE) -> float:
    features = torch.tensor([[x, y]], dtype=torch.float32)
    output = NetworkOutput(Head(*PLANE_HEAD).logits(features), features)
    return float(fit_score(spec, training, PLANE_LABELS, PLANE_HEAD)(output))


def test_mahalanobis_by_hand() -> None:
    """Within classes x has variance 1 and y none, so the ridge alone, 1e-2 of (1 + 0) / 2, stands for y."""
    spec = MahalanobisSpec(ridge=1e-2)
    assert _of_point(spec, 4, 0) == pytest.approx(-9 / 1.005, rel=1e-5)  # three off the nearer mean
    assert _of_point(spec, 1, 0.1) == pytest.approx(-0.01 / 0.005, rel=1e-4)  # where no training image ever went
    assert _of_point(spec, 5, 4) == pytest.approx(0, abs=1e-6)


def test_relative_mahalanobis_by_hand() -> None:
    """All four together: mean (3, 2), variances 5 and 4, covariance 4, determinant 4, so the inverse is
    [[1, -1], [-1, 5/4]]; with a spread of one in y, the classes are no longer flat."""
    spread = torch.tensor([[0.0, 1.0], [2.0, -1.0], [4.0, 5.0], [6.0, 3.0]])  # within: [[1, -1], [-1, 1]], singular
    flat = torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 4.0], [6.0, 4.0]])
    assert _of_point(RelativeMahalanobisSpec(ridge=1e-9), 4, 0, flat) == pytest.approx(
        -9 + (1 * 1 - 2 * 1 * -2 * 1 + 4 * 5 / 4), rel=1e-4
    )
    off_diagonal = _of_point(RelativeMahalanobisSpec(ridge=1e-6), 2, -1, spread)  # along the one direction there is
    # d_c^2 of (1, -1) is (1, -1) . pinv . (1, -1) = 2 / 2; of the background (-1, -3): variances 5 and 5, covariance 3.
    assert off_diagonal == pytest.approx(-1 + (5 * 1 - 2 * 3 * 3 + 5 * 9) / 16, rel=1e-3)


def test_energy_and_mahalanobis_by_hand() -> None:
    """Class means (1, 0) and (6, 4). Within classes x varies by (1 + 1 + 4 + 4) / 4, and y by the ridge alone; squared
    distances of training images are 1, 1, 4 and 4 of that variance, their standard deviation 3 / 2 of it."""
    uneven = torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 4.0], [8.0, 4.0]])
    variance = 2.5 + 1e-2 * 2.5 / 2
    alpha = np.std([np.logaddexp(x + 2, -x - 2) for x in (0, 2, 4, 8)]) / (1.5 / variance)
    found = _of_point(EnergyMahalanobisSpec(ridge=1e-2), 4, 0, uneven)
    assert found == pytest.approx(np.logaddexp(6, -6) - alpha * 9 / variance, rel=1e-5)


def test_energy_and_mahalanobis_need_energies_that_vary() -> None:
    uneven = torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 4.0], [8.0, 4.0]])
    with pytest.raises(DataError, match=r"of negative energies 0, of squared distances .*; both must be above 0"):
        fit_score(EnergyMahalanobisSpec(), uneven, PLANE_LABELS, Head(torch.zeros(2, 2), torch.zeros(2)))


def test_knn_by_hand() -> None:
    """Unit vectors at 0, 45 and 90 degrees; a chord of an angle a is 2 sin(a / 2)."""
    rows = torch.tensor([[3.0, 0.0], [1.0, 1.0], [0.0, 0.5], [0.0, 2.0]])
    nearest, second = KnnSpec(k=1, reference_rows=4), KnnSpec(k=2, reference_rows=4)
    assert _of_point(nearest, 7, 0, rows) == pytest.approx(0, abs=1e-6)
    assert _of_point(second, 7, 0, rows) == pytest.approx(-2 * math.sin(math.pi / 8), rel=1e-6)
    assert _of_point(KnnSpec(k=4, reference_rows=4), -1, 0, rows) == pytest.approx(-2, rel=1e-6)


def test_knn_keeps_the_digits_of_near_neighbours() -> None:
    """A chord of 1e-4: its cosine differs from 1 by 5e-9, which float32 does not know."""
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    assert _of_point(KnnSpec(k=1, reference_rows=4), 1, 1e-4, rows) == pytest.approx(-1e-4, rel=1e-3)


def test_knn_of_many_images_is_that_of_each() -> None:
    """More than are compared at a time; by exact distances of a second library."""
    generator = torch.Generator().manual_seed(3)
    features, reference = (torch.randn(rows, 4, generator=generator) for rows in (2 * ROWS_AT_ONCE + 5, 30))
    units = [F.normalize(rows, dim=1) for rows in (features, reference)]
    found = Knn(3, units[1])(NetworkOutput(torch.zeros(len(features), 2), features))
    expected = np.sort(cdist(*(unit.numpy() for unit in units)), axis=1)[:, 2]
    np.testing.assert_allclose(found.numpy(), -expected, atol=1e-6)


def test_react_by_hand() -> None:
    """The median of the eight numbers 0 0 0 2 4 4 4 6 is 3, so x is cut to 3; logits 3 + 2 and -3 - 2."""
    assert _of_point(ReactSpec(percentile=0.5), 9, 1) == pytest.approx(np.logaddexp(5, -5))
    assert _of_point(ReactSpec(percentile=0.5), 1, 1) == pytest.approx(np.logaddexp(3, -3))


def test_scale_by_hand() -> None:
    """Of (3, 1) the larger half is 3, the ratio 4 / 3."""
    x = 3 * math.exp(4 / 3)
    assert _of_point(ScaleSpec(percentile=0.5), 3, 1) == pytest.approx(np.logaddexp(x + 2, -x - 2), rel=1e-5)
    assert _of_point(ScaleSpec(percentile=0.5), 0, 0) == pytest.approx(np.logaddexp(2, -2))  # 0 / 0 scales nothing


def test_vim_by_hand() -> None:
    """The logits see x + 2 alone, so the origin is (-2, 0). About it x and y vary by (4, 16, 36, 64) / 4 = 30 and
    (0, 0, 16, 16) / 4 = 8, together by (24 + 32) / 4 = 14: the residual is the eigenvector of 19 - sqrt(121 + 196).
    """
    residual = np.array([14.0, 19 - math.sqrt(317) - 30])
    residual /= np.linalg.norm(residual)
    outside = np.abs((PLANE.numpy() + np.array([2, 0])) @ residual)
    alpha = np.mean([2, 4, 6, 8]) / outside.mean()
    expected = np.logaddexp(3, -3) - alpha * abs(np.array([3, 5]) @ residual)
    assert _of_point(VimSpec(residual_dimension=1), 1, 5) == pytest.approx(expected, rel=1e-5)
    assert _of_point(VimSpec(), 1, 5) == pytest.approx(expected, rel=1e-5)  # half of two


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_score_of_an_image_is_its_own(
    spec: ScoreSpec, training: tuple[Tensor, Tensor], output: NetworkOutput, head: Head
) -> None:
    score = fit_score(spec, *training, head)
    alone = torch.cat([score(NetworkOutput(output.logits[[row]], output.features[[row]])) for row in range(64)])
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    shuffled = score(NetworkOutput(output.logits[order], output.features[order]))
    # Float32 products sum in another order in another batch size.
    torch.testing.assert_close(shuffled, alone[order], rtol=5e-5, atol=1e-5)
    assert shuffled.dtype == torch.float32
    assert len(torch.unique(alone)) > 50


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
@pytest.mark.parametrize("size", [0.0, 1e-6, 1e4])
def test_extreme_outputs_have_finite_scores(
    spec: ScoreSpec, training: tuple[Tensor, Tensor], output: NetworkOutput, head: Head, size: float
) -> None:
    logits = size * output.logits / output.logits.abs().amax(dim=1, keepdim=True)
    extreme = NetworkOutput(logits, size * output.features)
    assert torch.isfinite(fit_score(spec, *training, head)(extreme)).all()


def test_scale_is_finite_where_features_cancel(head: Head) -> None:
    """A network without a ReLU at its end: s2 is a millionth of s1, or below 0."""
    features = torch.zeros(2, WIDTH)
    features[0, :10], features[0, 10:] = 1e-6, -1.0
    features[1] = -1.0
    hundredth = torch.full((1, WIDTH), 1.0)  # percentile 0.99 keeps one feature of 32: a ratio of 32
    output = NetworkOutput(torch.zeros(3, CLASSES), torch.cat([features, hundredth]))
    found = fit_score(ScaleSpec(percentile=0.99), *_features(2, seed=0), head)(output)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found[1], negative_energy(head.logits(features[1:]))[0])


@pytest.mark.parametrize("spec", SPECS[6:], ids=lambda spec: spec.kind)
def test_what_no_training_image_is_like_scores_lower(
    spec: ScoreSpec, training: tuple[Tensor, Tensor], output: NetworkOutput, head: Head
) -> None:
    """The sign, of the scores that measure distances; logits are held the same for ViM's energy."""
    near, far = output.features[:32], output.features[32:]
    score = fit_score(spec, *training, head)
    found = [score(NetworkOutput(output.logits[:32], features)).median() for features in (near, far)]
    assert found[0] > found[1]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_score_is_rebuilt_from_its_statistics(
    spec: ScoreSpec, training: tuple[Tensor, Tensor], output: NetworkOutput, head: Head
) -> None:
    fitted = fit_score(spec, *training, head)
    again = restore_score(spec, fitted.statistics, head)
    assert torch.equal(again(output), fitted(output))
    assert bool(fitted.statistics) == (spec in FITTED)
    for tensor in fitted.statistics.values():
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()  # as a bundle gives it back: of another order products differ in the last bit


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_statistics_of_another_score_are_refused(spec: ScoreSpec, training: tuple[Tensor, Tensor], head: Head) -> None:
    statistics = dict(fit_score(spec, *training, head).statistics)
    with pytest.raises(ScoreMismatchError, match=rf"{spec.kind}\.surplus is float32 \(2,\); the score has no such"):
        restore_score(spec, statistics | {"surplus": torch.zeros(2)}, head)
    for name, tensor in statistics.items():
        missing = {key: value for key, value in statistics.items() if key != name}
        for changed, found in (
            (missing, "missing"),
            (statistics | {name: tensor.double()}, "float64"),
            (statistics | {name: tensor[..., None]}, r"float32 .*; expected float32 \("),
            (statistics | {name: torch.full_like(tensor, torch.nan)}, f"{tensor.numel()} values that are not finite"),
        ):
            with pytest.raises(ScoreMismatchError, match=rf"{spec.kind}\.{name} .*{found}"):
                restore_score(spec, changed, head)


def test_too_few_reference_rows_are_refused(training: tuple[Tensor, Tensor], head: Head) -> None:
    statistics = fit_score(KnnSpec(k=20, reference_rows=300), *training, head).statistics
    with pytest.raises(ScoreMismatchError, match="300 rows; k = 301"):
        restore_score(KnnSpec(k=301, reference_rows=400), statistics, head)
    with pytest.raises(ScoreMismatchError, match=r"300 rows; .*want 20 to 299"):
        restore_score(KnnSpec(k=20, reference_rows=299), statistics, head)


@pytest.mark.parametrize("spec", FITTED, ids=lambda spec: spec.kind)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_that_are_not_finite_are_refused(
    spec: ScoreSpec, training: tuple[Tensor, Tensor], head: Head, value: float
) -> None:
    damaged = training[0].clone()
    damaged[3, 4] = value
    with pytest.raises(DataError, match=rf"1 of 32000 training features are not finite; {spec.kind}"):
        fit_score(spec, damaged, training[1], head)


@pytest.mark.parametrize("spec", [MahalanobisSpec(), RelativeMahalanobisSpec()], ids=lambda spec: spec.kind)
def test_class_without_images_is_named(spec: ScoreSpec, training: tuple[Tensor, Tensor], head: Head) -> None:
    kept = (training[1] != 3) & (training[1] != 9)
    with pytest.raises(DataError, match="class 3, 9 has no training images"):
        fit_score(spec, training[0][kept], training[1][kept], head)


@pytest.mark.parametrize(
    ("spec", "images", "message"),
    [
        (KnnSpec(k=50), 49, "49 training images .* k = 50 needs at least 50"),
        (VimSpec(residual_dimension=WIDTH), 100, "32 of 32 features; it must be 1 to 31"),
        (MahalanobisSpec(), 1, "1 training images; it needs at least 2"),
        (ReactSpec(), 0, "0 training images"),
    ],
)
def test_what_cannot_be_fitted_is_said_beforehand(
    spec: ScoreSpec, images: int, message: str, training: tuple[Tensor, Tensor], head: Head
) -> None:
    with pytest.raises(DataError, match=message):
        require_fittable(spec, images, WIDTH)
    with pytest.raises(DataError, match=message):
        fit_score(spec, training[0][:images], training[1][:images], head)


@pytest.mark.parametrize("spec", [MahalanobisSpec(), RelativeMahalanobisSpec(), VimSpec()], ids=lambda s: s.kind)
def test_features_that_never_vary_are_refused(spec: ScoreSpec, head: Head) -> None:
    with pytest.raises(DataError, match=r"never vary|both must be above 0"):
        fit_score(spec, torch.zeros(20, WIDTH), torch.arange(20) % CLASSES, Head(head.weight, 0 * head.bias))


@pytest.mark.parametrize("spec", [MahalanobisSpec(), RelativeMahalanobisSpec(), VimSpec()], ids=lambda s: s.kind)
def test_dead_features_and_few_images_leave_scores_finite(spec: ScoreSpec, head: Head, output: NetworkOutput) -> None:
    """Twenty images in 32 dimensions, five of them always 0: every covariance is singular."""
    features, labels = _features(20, seed=0)
    features[:, :5] = 0
    score = fit_score(spec, features, labels, head)
    assert torch.isfinite(score(output)).all()
    alive = output.features.clone()
    alive[:, :5] = 0
    if spec.kind == "mahalanobis":  # a feature that no training image has is the farthest of all
        assert (score(output) < score(NetworkOutput(output.logits, alive)) - 100).sum() > 50


def test_large_sums_are_exact_to_float32(head: Head) -> None:
    """20,000 rows far from 0: in float32 the scatter of such sums is off in its third digit."""
    generator = torch.Generator().manual_seed(0)
    features = 1000 + torch.randn(20_000, WIDTH, generator=generator)
    labels = torch.zeros(20_000, dtype=torch.int64)
    labels[:CLASSES] = torch.arange(CLASSES)
    whitening = fit_score(MahalanobisSpec(ridge=1e-12), features, labels, head).statistics["whitening"].double()
    rows = features.double().numpy()
    means = np.stack([rows[labels.numpy() == label].mean(axis=0) for label in range(CLASSES)])
    precision = np.linalg.inv(np.cov((rows - means[labels.numpy()]).T, bias=True))
    np.testing.assert_allclose(whitening @ whitening.T, precision, atol=2e-5)


def test_reference_rows_are_stratified_seeded_and_of_unit_length(training: tuple[Tensor, Tensor], head: Head) -> None:
    labels = np.repeat([0, 1, 2], [700, 200, 100])
    rows = stratified_rows(labels, 50, seed=3)
    assert np.bincount(labels[rows]).tolist() == [35, 10, 5]
    assert len(np.unique(rows)) == 50
    assert np.all(np.diff(rows) > 0)
    assert np.array_equal(rows, stratified_rows(labels, 50, seed=3))
    assert not np.array_equal(rows, stratified_rows(labels, 50, seed=4))
    assert len(stratified_rows(np.repeat([0, 1, 2], [5, 4, 1]), 7, seed=0)) == 7  # 3.5, 2.8 and 0.7
    assert np.array_equal(stratified_rows(labels, 1000, seed=0), np.arange(1000))
    reference = fit_score(KnnSpec(k=5, reference_rows=200), *training, head).statistics["reference"]
    assert reference.shape == (200, WIDTH)
    torch.testing.assert_close(reference.norm(dim=1), torch.ones(200))


def test_tensors_of_another_shape_or_type_are_refused(training: tuple[Tensor, Tensor], head: Head) -> None:
    features, labels = training
    for bad in ((features.double(), labels), (features[:, :5], labels), (features, labels[:5]), (features, labels + 1)):
        with pytest.raises(ValueError, match="expected"):
            fit_score(MahalanobisSpec(), *bad, head)
    for spec in (*FITTED, ScaleSpec()):
        with pytest.raises(ValueError, match=r"float32 \(N, 32\)"):
            fit_score(spec, *training, head)(NetworkOutput(torch.zeros(2, CLASSES), torch.zeros(2, 31)))
