"""Stage 3: a threshold for every score, from images that training did not see."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_store import calibration
from model_store.errors import CalibrationError
from model_store.images import decode
from model_store.manifest import Calibration
from model_store.predictor import CalibratedScore, Predictor, Scorer
from model_store.score_specs import ScoreName
from model_store.scores import NegativeEnergy, OnePassScore
from training import encode
from training.augment_spec import JpegShare
from training.datasets import ImageSet
from training.errors import DataError
from training.run_folder import write_json
from training.stage_specs import CalibrateSpec


@dataclass(frozen=True)
class Calibrated:
    """Every score with its threshold, negative energy first; where those come from; which score is the verdict."""

    verdict: ScoreName
    scores: Mapping[ScoreName, CalibratedScore]
    specs: Mapping[ScoreName, Calibration]

    @property
    def spec(self) -> Calibration:
        """The verdict's."""
        return self.specs[self.verdict]

    def predictor(self, scorer: Scorer) -> Predictor:
        """Return `scorer` with these scores and thresholds."""
        return Predictor(scorer, self.scores, self.verdict)


def choose_rank(spec: CalibrateSpec, held_out_images: int) -> int:
    """Return the k of the threshold, the k-th smallest of so many scores.

    Raises:
        DataError: they are too few for the method and alpha asked for.
    """
    try:
        return calibration.choose_k(spec.method, held_out_images, spec.alpha, spec.delta)
    except CalibrationError as err:
        raise DataError(f"{err}; raise data.calibration_images or calibrate.alpha in the recipe") from err


def as_sent(images: NDArray[np.uint8], jpeg: JpegShare | None, seed: int) -> NDArray[np.uint8]:
    """Return uint8 (N, H, W, 3) as they arrive where a share of the traffic is JPEG.

    Each image is sent once and draws its own form and quality, so that it is a draw from that traffic, independent of
    the others: what the thresholds' guarantees need.
    """
    if jpeg is None:
        return images
    random = np.random.default_rng(seed)
    chosen = np.flatnonzero(random.random(len(images)) < jpeg.share)
    qualities = random.integers(jpeg.quality_min, jpeg.quality_max, len(chosen), endpoint=True)
    sent = images.copy()
    for index, quality in zip(chosen, qualities.tolist(), strict=True):
        sent[index] = decode(encode.jpeg(images[index], quality))
    return sent


def calibrate(
    spec: CalibrateSpec,
    scorer: Scorer,
    held_out: ImageSet,
    seed: int,
    folder: Path,
    further: Sequence[OnePassScore] = (),
) -> Calibrated:
    """Score the held-out images and set every score's threshold; write `calibration.json` for the reader.

    seed: draws which images are sent as JPEG. further: the bundle's scores beside negative energy, fitted.

    Raises:
        DataError: too few images for the method and alpha asked for, or a score of theirs is not finite.
    """
    scored = scorer.score(as_sent(held_out.images, spec.jpeg, seed))
    k = choose_rank(spec, len(held_out))
    scores: dict[ScoreName, CalibratedScore] = {}
    specs: dict[ScoreName, Calibration] = {}
    for score in (NegativeEnergy(scorer.temperature), *further):
        try:
            values = calibration.sorted_scores(score(scored.output).numpy())
        except CalibrationError as err:
            raise DataError(f"{score.name} of the held-out images: {err}") from err
        scores[score.name] = CalibratedScore(score, values, calibration.threshold(values, k))
        specs[score.name] = _calibration(spec, values, k, scores[score.name].threshold)
    folder.mkdir(parents=True, exist_ok=True)
    found = {name: result.model_dump() for name, result in specs.items()}
    write_json(folder / "calibration.json", {"verdict": spec.verdict, "calibrations": found})
    return Calibrated(spec.verdict, scores, specs)


def _calibration(spec: CalibrateSpec, values: NDArray[np.float32], k: int, threshold: np.float32) -> Calibration:
    return Calibration(
        method=spec.method,
        alpha=spec.alpha,
        delta=spec.delta,
        n=len(values),
        k=k,
        threshold=float(threshold),
        histogram_edges=calibration.histogram_edges(values, threshold),
    )
