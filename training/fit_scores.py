"""What scores take from training images: fitted on the features of un-augmented ones, in float64, stored in float32."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from model_store.networks import NetworkOutput
from model_store.predictor import Scorer
from model_store.score_specs import (
    EnergyMahalanobisSpec,
    KnnSpec,
    MahalanobisSpec,
    NegativeEnergySpec,
    ReactSpec,
    RelativeMahalanobisSpec,
    ScoreSpec,
    VimSpec,
)
from model_store.scores import Head, OnePassScore, restore_score
from training.datasets import ImageSet
from training.errors import DataError
from training.splits import class_shares

_ROWS_AT_ONCE = 8192
"""Rows that are float64 at a time."""


def fit_scores(
    specs: Sequence[ScoreSpec], scorer: Scorer, train: ImageSet, head: tuple[Tensor, Tensor]
) -> tuple[OnePassScore, ...]:
    """Return the scores that a bundle carries, fitted on its training images as they are, without augmentation.

    The images go through the network once, and only if a score takes anything from them.

    Raises:
        DataError: the images are not what some score needs.
    """
    features = torch.empty(0, head[0].shape[1])
    if any(needs_fitting(spec) for spec in specs):
        features = torch.cat([scorer.score(train.subset(rows).images).features for rows in _chunks(len(train))])
    return tuple(fit_score(spec, features, train.labels[: len(features)], head) for spec in specs)


def needs_fitting(spec: ScoreSpec) -> bool:
    """Return whether a score takes anything from training images."""
    return isinstance(
        spec, ReactSpec | KnnSpec | MahalanobisSpec | RelativeMahalanobisSpec | VimSpec | EnergyMahalanobisSpec
    )


def require_fittable(spec: ScoreSpec, images: int, width: int) -> None:
    """Say, before anything is computed, whether so many training images with so many features each can do.

    Raises:
        DataError: they can't; what the score needs is named.
    """
    if needs_fitting(spec) and images < 2:
        raise DataError(f"{spec.kind} is fitted on {images} training images; it needs at least 2")
    if isinstance(spec, KnnSpec) and images < spec.k:
        raise DataError(
            f"knn has {images} training images for its reference rows; k = {spec.k} needs at least {spec.k}: give more "
            "images, or lower k"
        )
    if isinstance(spec, VimSpec) and not 1 <= spec.residual_of(width) < width:
        raise DataError(
            f"vim has residual_dimension {spec.residual_of(width)} of {width} features; it must be 1 to {width - 1}"
        )


def fit_score(
    spec: ScoreSpec, features: Tensor, labels: Tensor | NDArray[np.int64], head: tuple[Tensor, Tensor]
) -> OnePassScore:
    """Return the score that `spec` describes, fitted on training images.

    Args:
        spec: which score, with its hyperparameters.
        features: float32 (N, D), penultimate, of un-augmented training images.
        labels: int64 (N,), their classes, in 0 to K - 1.
        head: the network's last layer, weight float32 (K, D) and bias float32 (K,).

    Raises:
        DataError: the images are too few, a class has none, or their features are not finite or never vary.
        ValueError: a tensor is of another shape or dtype.
    """
    layer = Head(*(part.detach().cpu() for part in head))
    rows, classes = features.detach().cpu(), torch.as_tensor(labels).cpu()
    _require_tensors(rows, classes, layer)
    require_fittable(spec, len(rows), rows.shape[1])
    if bad := int((~torch.isfinite(rows)).sum()):
        raise DataError(
            f"{bad} of {rows.numel()} training features are not finite; {spec.kind} can't be fitted on them"
        )
    return restore_score(spec, _fitted(spec, rows, classes, layer), layer)


def _fitted(spec: ScoreSpec, features: Tensor, labels: Tensor, head: Head) -> dict[str, Tensor]:
    match spec:
        case ReactSpec():
            return {"clip": torch.tensor(np.quantile(features.numpy(), spec.percentile), dtype=torch.float32)}
        case KnnSpec():
            rows = stratified_rows(labels.numpy(), spec.reference_rows, spec.seed)
            return {"reference": F.normalize(features[torch.from_numpy(rows)], dim=1)}
        case MahalanobisSpec():
            return _class_gaussians(features, labels, len(head.weight), spec.ridge)
        case RelativeMahalanobisSpec():
            mean = _mean(features)
            return _class_gaussians(features, labels, len(head.weight), spec.ridge) | {
                "background_mean": mean.float(),
                "background_whitening": _whitening(_covariance(features, mean[None]), spec.ridge),
            }
        case VimSpec():
            return _vim(features, head, spec.residual_of(features.shape[1]))
        case EnergyMahalanobisSpec():
            return _energy_mahalanobis(features, labels, head, spec.ridge)
        case _:
            return {}


def stratified_rows(labels: NDArray[np.int64], rows: int, seed: int) -> NDArray[np.int64]:
    """Return `rows` of the indices of labels, ascending: of each class its share of all, drawn by the seed.

    All of them where there are no more.
    """
    if len(labels) <= rows:
        return np.arange(len(labels))
    generator = np.random.default_rng(seed)
    drawn = [
        generator.choice(np.flatnonzero(labels == label), share, replace=False)
        for label, share in enumerate(class_shares(np.bincount(labels), rows))
        if share
    ]
    return np.sort(np.concatenate(drawn))


def _class_gaussians(features: Tensor, labels: Tensor, classes: int, ridge: float) -> dict[str, Tensor]:
    counts = torch.bincount(labels, minlength=classes)
    if empty := (counts == 0).nonzero().flatten().tolist():
        raise DataError(f"class {', '.join(map(str, empty))} has no training images; every class mean needs at least 1")
    sums = torch.zeros(classes, features.shape[1], dtype=torch.float64)
    for rows in _pieces(len(features)):
        sums.index_add_(0, labels[rows], features[rows].double())
    means = sums / counts[:, None]
    return {"class_means": means.float(), "whitening": _whitening(_covariance(features, means, labels), ridge)}


def _covariance(features: Tensor, means: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return the mean outer product of features minus their means, float64 (D, D): the row's class's, or the one."""
    width = features.shape[1]
    scatter = torch.zeros(width, width, dtype=torch.float64)
    for rows in _pieces(len(features)):
        centred = features[rows].double() - (means if labels is None else means[labels[rows]])
        scatter += centred.T @ centred
    return scatter / len(features)


def _whitening(covariance: Tensor, ridge: float) -> Tensor:
    """Return A float32 (D, D) with A A' = (covariance + ridge * mean variance * I)^-1.

    By rows, as a bundle stores it: of a matrix by columns, as `eigh` leaves it, products sum in another order.
    """
    mean_variance = covariance.diagonal().mean()
    if not mean_variance > 0:
        raise DataError("the training features never vary within what the score compares; it can't be fitted on them")
    values, vectors = torch.linalg.eigh(covariance)
    whitening: Tensor = vectors / (values.clamp(min=0) + ridge * mean_variance).sqrt()
    return whitening.float().contiguous()


def _vim(features: Tensor, head: Head, residual_dimension: int) -> dict[str, Tensor]:
    weight, bias = head.weight.double(), head.bias.double()
    origin = -torch.linalg.pinv(weight) @ bias
    ascending = torch.linalg.eigh(_covariance(features, origin[None])).eigenvectors
    residual = ascending[:, :residual_dimension]
    largest = outside = 0.0
    for rows in _pieces(len(features)):
        piece = features[rows].double()
        largest += float((piece @ weight.T + bias).amax(dim=1).sum())
        outside += float(((piece - origin) @ residual).norm(dim=1).sum())
    if not (outside > 0 and largest > 0):
        raise DataError(
            f"vim's alpha is the mean greatest logit, {largest / len(features):.4g} on these training images, over the "
            f"mean residual norm, {outside / len(features):.4g}; both must be above 0"
        )
    alpha = torch.tensor(largest / outside, dtype=torch.float32)
    return {"origin": origin.float(), "residual": residual.float().contiguous(), "alpha": alpha}


def _energy_mahalanobis(features: Tensor, labels: Tensor, head: Head, ridge: float) -> dict[str, Tensor]:
    gaussians = _class_gaussians(features, labels, len(head.weight), ridge)
    energies, distances = (
        _spread(restore_score(spec, statistics, head), features, head)
        for spec, statistics in ((NegativeEnergySpec(), {}), (MahalanobisSpec(ridge=ridge), gaussians))
    )
    if not (energies > 0 and distances > 0):
        raise DataError(
            "energy_mahalanobis' alpha is a ratio of standard deviations over training images, of negative energies "
            f"{energies:.4g}, of squared distances {distances:.4g}; both must be above 0"
        )
    return gaussians | {"alpha": torch.tensor(energies / distances, dtype=torch.float32)}


def _spread(score: OnePassScore, features: Tensor, head: Head) -> float:
    """Return the standard deviation of a score over training images."""
    rows = (features[rows] for rows in _pieces(len(features)))
    scores = torch.cat([score(NetworkOutput(head.logits(piece), piece)) for piece in rows])
    return float(scores.double().std(correction=0))


def _chunks(images: int) -> list[NDArray[np.int64]]:
    """Return the rows of a set in turns, so that one that is a memory map need not be in memory whole."""
    return np.array_split(np.arange(images), -(-images // _ROWS_AT_ONCE))


def _mean(features: Tensor) -> Tensor:
    total = torch.zeros(features.shape[1], dtype=torch.float64)
    for rows in _pieces(len(features)):
        total += features[rows].double().sum(dim=0)
    return total / len(features)


def _pieces(rows: int) -> Iterator[slice]:
    return (slice(at, at + _ROWS_AT_ONCE) for at in range(0, rows, _ROWS_AT_ONCE))


def _require_tensors(features: Tensor, labels: Tensor, head: Head) -> None:
    classes, width = head.weight.shape
    if features.dtype != torch.float32 or features.ndim != 2 or features.shape[1] != width:
        raise ValueError(f"features are {features.dtype} {tuple(features.shape)}; expected float32 (N, {width})")
    if labels.dtype != torch.int64 or labels.shape != features.shape[:1]:
        raise ValueError(f"labels are {labels.dtype} {tuple(labels.shape)}; expected int64 ({len(features)},)")
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        raise ValueError(f"labels are {int(labels.min())} to {int(labels.max())}; expected 0 to {classes - 1}")
