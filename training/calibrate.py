"""Stage 3: the threshold, from images that training did not see."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_store import calibration
from model_store.errors import CalibrationError
from model_store.manifest import Calibration
from model_store.predictor import Predictor, Scorer
from training.config import CalibrateSpec
from training.datasets import ImageSet
from training.errors import DataError
from training.run_folder import write_json


@dataclass(frozen=True)
class Calibrated:
    """A threshold and the sorted calibration scores float32 (n,) that it is one of."""

    spec: Calibration
    scores: NDArray[np.float32]

    def predictor(self, scorer: Scorer) -> Predictor:
        """Return `scorer` with this threshold."""
        return Predictor(scorer, self.scores, np.float32(self.spec.threshold))


def choose_rank(spec: CalibrateSpec, held_out_images: int) -> int:
    """Return the k of the threshold, the k-th smallest of so many scores.

    Raises:
        DataError: they are too few for the method and alpha asked for.
    """
    try:
        return calibration.choose_k(spec.method, held_out_images, spec.alpha, spec.delta)
    except CalibrationError as err:
        raise DataError(f"{err}; raise data.calibration_images or calibrate.alpha in the recipe") from err


def calibrate(spec: CalibrateSpec, scorer: Scorer, held_out: ImageSet, folder: Path) -> Calibrated:
    """Score the held-out images and set the threshold; write `calibration.json` for the reader.

    Raises:
        DataError: too few images for the method and alpha asked for.
    """
    scores = calibration.sorted_scores(scorer.score(held_out.images).negative_energy)
    k = choose_rank(spec, len(scores))
    threshold = calibration.threshold(scores, k)
    result = Calibration(
        method=spec.method,
        alpha=spec.alpha,
        delta=spec.delta,
        n=len(scores),
        k=k,
        threshold=float(threshold),
        histogram_edges=calibration.histogram_edges(scores, threshold),
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "calibration.json", result.model_dump())
    return Calibrated(result, scores)
