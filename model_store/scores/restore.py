"""A score from its spec and its fitted statistics, strictly."""

from collections.abc import Mapping

import torch
from torch import Tensor

from model_store.errors import ScoreMismatchError
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
    ScoreSpec,
    VimSpec,
)
from model_store.scores.gaussian import EnergyMahalanobis, Mahalanobis, RelativeMahalanobis, Whitened
from model_store.scores.logits import Gen, MaxLogit, MaxSoftmax, NegativeEnergy
from model_store.scores.nearest import Knn
from model_store.scores.reshaped import React, Scale
from model_store.scores.score import Head, OnePassScore
from model_store.scores.virtual_logit import Vim

Shape = tuple[int | None, ...]
"""None is a size that the statistics themselves choose."""


def restore_score(spec: ScoreSpec, statistics: Mapping[str, Tensor], head: Head) -> OnePassScore:
    """Return the score that `spec` describes, with what was fitted for it, over a network that ends in `head`.

    Raises:
        ScoreMismatchError: a statistic is missing, unknown, of another shape or dtype than the score and the network
            have it, or not finite; it is named.
    """
    classes, width = head.weight.shape
    expected = statistic_shapes(spec, classes, width)
    for name in sorted(expected.keys() | statistics.keys()):
        _require(f"{spec.kind}.{name}", statistics.get(name), expected.get(name))
    match spec:
        case NegativeEnergySpec():
            return NegativeEnergy(spec.temperature)
        case MaxSoftmaxSpec():
            return MaxSoftmax()
        case MaxLogitSpec():
            return MaxLogit()
        case GenSpec():
            return Gen(spec.gamma, spec.top_classes)
        case ReactSpec():
            return React(head, statistics["clip"])
        case ScaleSpec():
            return Scale(head, spec.percentile)
        case KnnSpec():
            return Knn(spec.k, _enough_rows(spec, statistics["reference"]))
        case MahalanobisSpec():
            return Mahalanobis(_classes(statistics))
        case RelativeMahalanobisSpec():
            background = Whitened(statistics["background_mean"][None], statistics["background_whitening"])
            return RelativeMahalanobis(_classes(statistics), background)
        case VimSpec():
            return Vim(statistics["origin"], statistics["residual"], statistics["alpha"])
        case EnergyMahalanobisSpec():
            return EnergyMahalanobis(_classes(statistics), statistics["alpha"])


def statistic_shapes(spec: ScoreSpec, classes: int, width: int) -> dict[str, Shape]:
    """Return the shape of each statistic, float32, that a score is fitted to on features of this width."""
    match spec:
        case ReactSpec():
            return {"clip": ()}
        case KnnSpec():
            return {"reference": (None, width)}
        case MahalanobisSpec():
            return {"class_means": (classes, width), "whitening": (width, width)}
        case RelativeMahalanobisSpec():
            gaussians: dict[str, Shape] = {"class_means": (classes, width), "whitening": (width, width)}
            return gaussians | {"background_mean": (width,), "background_whitening": (width, width)}
        case VimSpec():
            return {"origin": (width,), "residual": (width, spec.residual_of(width)), "alpha": ()}
        case EnergyMahalanobisSpec():
            return {"class_means": (classes, width), "whitening": (width, width), "alpha": ()}
        case _:
            return {}


def _classes(statistics: Mapping[str, Tensor]) -> Whitened:
    return Whitened(statistics["class_means"], statistics["whitening"])


def _require(name: str, tensor: Tensor | None, shape: Shape | None) -> None:
    found = "missing" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {_written(tensor.shape)}"
    if shape is None:
        raise ScoreMismatchError(f"{name} is {found}; the score has no such statistic")
    if tensor is None or tensor.dtype != torch.float32 or not _fits(tuple(tensor.shape), shape):
        raise ScoreMismatchError(f"{name} is {found}; expected float32 {_written(shape)}")
    if bad := int((~torch.isfinite(tensor)).sum()):
        raise ScoreMismatchError(f"{name} holds {bad} values that are not finite")


def _fits(found: tuple[int, ...], shape: Shape) -> bool:
    return len(found) == len(shape) and all(wanted in (None, size) for size, wanted in zip(found, shape, strict=True))


def _written(shape: Shape | torch.Size) -> str:
    sizes = ["any" if size is None else str(size) for size in shape]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def _enough_rows(spec: KnnSpec, reference: Tensor) -> Tensor:
    if not spec.k <= len(reference) <= spec.reference_rows:
        raise ScoreMismatchError(
            f"knn.reference has {len(reference)} rows; k = {spec.k} and reference_rows = {spec.reference_rows} want "
            f"{spec.k} to {spec.reference_rows}"
        )
    return reference
