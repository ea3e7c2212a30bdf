"""Choices by validation outliers alone: margins, scores, hyperparameters. Nothing here can reach a test set."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_store.frozen import Frozen, Percent
from model_store.predictor import Scorer
from training.metrics import fpr95
from training.validation_outliers import validation_outliers


@dataclass(frozen=True)
class ValidationSets:
    """Training images that were held out, uint8 (N, H, W, 3), their labels int64 (N,), and outliers made of them.

    There is no way to hand in outliers: a set of OOD images that is to be tested on cannot come in here.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    seed: int

    @cached_property
    def outliers(self) -> dict[str, NDArray[np.uint8]]:
        """The validation outliers by kind, drawn by the seed."""
        return validation_outliers(self.images, self.seed)


@dataclass(frozen=True)
class ValidationScores:
    """How one candidate scores the validation images: real (N,), and each kind of validation outliers: real (M,).

    Higher = more in-distribution. error: the share in [0, 1] of the validation images that it classifies wrongly; it
    decides between candidates that tell outliers apart equally well; None where all are of one network.
    """

    in_distribution: NDArray[Any]
    outliers: Mapping[str, NDArray[Any]]
    error: float | None = None


class Candidate(Frozen):
    """One candidate's figures on the validation images, in percent."""

    fpr95: Percent
    """The mean over the kinds of validation outliers, each counting alike."""
    fpr95_by_kind: dict[str, Percent]
    error: Percent | None = None


class Choice(Frozen):
    """What was chosen, and the figures of all that there was to choose from, by name."""

    chosen: str
    candidates: dict[str, Candidate]


def select(candidates: Mapping[str, Callable[[], Scorer]], sets: ValidationSets) -> Choice:
    """Return the candidate network whose negative energy tells the validation images best from their outliers.

    candidates: by name, what trains or loads the network; called one after the other, each judged before the next.
    """
    return choose({name: validate(candidate(), sets) for name, candidate in candidates.items()})


def validate(scorer: Scorer, sets: ValidationSets) -> ValidationScores:
    """Return a network's negative energies of the validation images and outliers, and its error."""
    scored = scorer.score(sets.images)
    outliers = {kind: scorer.score(images).negative_energy for kind, images in sets.outliers.items()}
    return ValidationScores(scored.negative_energy, outliers, float((scored.class_id != sets.labels).mean()))


def choose(scores: Mapping[str, ValidationScores]) -> Choice:
    """Return the candidate of the lowest mean FPR95; of equal ones the one with fewer errors, then the first.

    scores: by the candidate's name, all on the same images.

    Raises:
        ValueError: no candidates, no outliers, other outliers for one than for another, or scores that are no finite
            real numbers (N,).
    """
    if not scores:
        raise ValueError("there are no candidates to choose from")
    kinds = {name: tuple(candidate.outliers) for name, candidate in scores.items()}
    first = next(iter(kinds.values()))
    if other := next((name for name, given in kinds.items() if given != first or not given), None):
        raise ValueError(f"{other} has validation outliers {kinds[other]}; expected {first}, at least one kind")
    candidates = {name: _figures(candidate) for name, candidate in scores.items()}
    chosen = min(candidates, key=lambda name: (candidates[name].fpr95, candidates[name].error or 0))
    return Choice(chosen=chosen, candidates=candidates)


def _figures(scores: ValidationScores) -> Candidate:
    by_kind = {
        kind: 100 * fpr95(in_distribution=scores.in_distribution, out_of_distribution=outliers)
        for kind, outliers in scores.outliers.items()
    }
    error = None if scores.error is None else 100 * scores.error
    return Candidate(fpr95=float(np.mean(list(by_kind.values()))), fpr95_by_kind=by_kind, error=error)
