"""The one path from pixels to verdicts, for training and service alike."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_store import calibration
from model_store.manifest import PreprocessSpec
from model_store.networks import NetworkOutput
from model_store.runtimes import Runtime
from model_store.score_specs import ScoreName
from model_store.scores import OnePassScore, on_arrays
from model_store.threads import FOR_SCORES, torch_threads

BATCH_SIZE = 256
"""Longer arrays are scored in pieces; enough to fill a device, little memory."""


@dataclass(frozen=True)
class Scores:
    """What a network says of N images, before any threshold.

    logits float32 (N, K), features float32 (N, D), negative_energy float32 (N,), confidence float32 (N,) in (0, 1].
    """

    logits: Tensor
    features: Tensor
    negative_energy: NDArray[np.float32]
    confidence: NDArray[np.float32]

    @property
    def output(self) -> NetworkOutput:
        """What every score is computed from."""
        return NetworkOutput(self.logits, self.features)

    @property
    def class_id(self) -> NDArray[np.int64]:
        """The most probable class of each image, int64 (N,)."""
        classes: NDArray[np.int64] = self.logits.numpy().argmax(axis=1)
        return classes


@dataclass(frozen=True)
class Predictions:
    """Verdicts on N images.

    class_id int64 (N,), confidence float32 (N,), negative_energy float32 (N,), p_value float64 (N,) in (0, 1],
    is_ood bool (N,). The last two are of the verdict's score, negative energy unless the bundle says otherwise.
    """

    class_id: NDArray[np.int64]
    confidence: NDArray[np.float32]
    negative_energy: NDArray[np.float32]
    p_value: NDArray[np.float64]
    is_ood: NDArray[np.bool_]


@dataclass(frozen=True)
class ScoreVerdicts:
    """What one score says of N images: value float32 (N,), p_value float64 (N,) in (0, 1], is_ood bool (N,)."""

    value: NDArray[np.float32]
    p_value: NDArray[np.float64]
    is_ood: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class CalibratedScore:
    """A score, its sorted calibration scores float32 (n,) and the threshold that follows from them."""

    score: OnePassScore
    calibration_scores: NDArray[np.float32]
    threshold: np.float32

    def __post_init__(self) -> None:
        """Refuse calibration scores that no p-value can be read from.

        Raises:
            CalibrationError: they are not sorted or not finite.
        """
        calibration.require_sorted(self.calibration_scores)

    @torch_threads(FOR_SCORES)
    def judge(self, output: NetworkOutput) -> ScoreVerdicts:
        """Score N images and judge them: is_ood == (value <= threshold) == (p_value <= k / (n + 1)).

        Raises:
            ValueError: a score is NaN, so no verdict can be given.
        """
        value: NDArray[np.float32] = self.score(output).numpy()
        return ScoreVerdicts(
            value=value,
            p_value=calibration.p_values(value, self.calibration_scores),
            is_ood=calibration.is_ood(value, self.threshold),
        )


class Scorer:
    """Normalise, network, scores: all that comes before the threshold, so all that calibration needs."""

    def __init__(self, runtime: Runtime, preprocess: PreprocessSpec, temperature: float) -> None:
        self.runtime = runtime
        self.preprocess = preprocess
        self.temperature = temperature

    def start(self, images: NDArray[np.uint8]) -> Any:
        """Begin scoring one batch uint8 (N, H, W, 3), N >= 1.

        Raises:
            ValueError: another dtype or shape.
        """
        height, width = self.preprocess.height, self.preprocess.width
        if images.dtype != np.uint8 or images.shape[1:] != (height, width, 3) or len(images) == 0:
            raise ValueError(
                f"images are {images.dtype} {images.shape}; expected uint8 (N, {height}, {width}, 3), N >= 1"
            )
        return self.runtime.start(images)

    def finish(self, ticket: Any) -> Scores:
        """Wait for a batch and score it.

        Raises:
            FloatingPointError: as `from_output`.
        """
        return self.from_output(self.runtime.finish(ticket))

    def from_output(self, output: NetworkOutput) -> Scores:
        """Score logits and features that are on the host.

        Raises:
            FloatingPointError: some are not finite, so no verdict can be given.
        """
        for name, tensor in output._asdict().items():
            if not on_arrays.all_finite(tensor.numpy()):
                raise FloatingPointError(
                    f"{self.runtime.name} returned {name} that are not finite; the weights are damaged"
                )
        logits = output.logits.numpy()
        return Scores(
            logits=output.logits,
            features=output.features,
            negative_energy=on_arrays.negative_energy(logits, self.temperature),
            confidence=on_arrays.max_softmax(logits),
        )

    def score(self, images: NDArray[np.uint8]) -> Scores:
        """Score N >= 1 images uint8 (N, H, W, 3), in batches."""
        pieces = [
            self.runtime.finish(self.start(images[at : at + BATCH_SIZE]))
            for at in range(0, max(len(images), 1), BATCH_SIZE)
        ]
        return self.from_output(
            NetworkOutput(
                logits=torch.cat([piece.logits for piece in pieces]),
                features=torch.cat([piece.features for piece in pieces]),
            )
        )


class Predictor:
    """A scorer and its calibrated scores, one of them the verdict; the others are computed only when asked for."""

    def __init__(
        self, scorer: Scorer, scores: Mapping[ScoreName, CalibratedScore], verdict: ScoreName = "negative_energy"
    ) -> None:
        """Put them together.

        Args:
            scorer: what runs the network.
            scores: all that can be asked for, by name.
            verdict: the one of them that p-value and flag of a prediction are of.
        """
        self.scorer = scorer
        self.scores = scores
        self.verdict = verdict

    @property
    def calibration_scores(self) -> NDArray[np.float32]:
        """The verdict's, sorted, float32 (n,)."""
        return self.scores[self.verdict].calibration_scores

    @property
    def threshold(self) -> np.float32:
        """The verdict's."""
        return self.scores[self.verdict].threshold

    def start(self, images: NDArray[np.uint8]) -> Any:
        """Begin predicting one batch uint8 (N, H, W, 3), N >= 1."""
        return self.scorer.start(images)

    def finish(self, ticket: Any) -> Predictions:
        """Wait for a batch and judge it."""
        return self.judge(self.scorer.finish(ticket))

    def judge(self, scored: Scores) -> Predictions:
        """Turn scores into verdicts: is_ood == (the verdict's score <= threshold) == (p_value <= k / (n + 1))."""
        found = self.scores[self.verdict].judge(scored.output)
        return Predictions(
            class_id=scored.class_id,
            confidence=scored.confidence,
            negative_energy=scored.negative_energy,
            p_value=found.p_value,
            is_ood=found.is_ood,
        )

    def judge_by_all(self, scored: Scores) -> dict[ScoreName, ScoreVerdicts]:
        """Judge by every score, each with its own threshold, from the forward pass that `scored` comes from."""
        return {name: score.judge(scored.output) for name, score in self.scores.items()}

    def predict(self, images: NDArray[np.uint8]) -> Predictions:
        """Predict N >= 1 images uint8 (N, H, W, 3), in batches."""
        return self.judge(self.scorer.score(images))

    def predict_by_all(self, images: NDArray[np.uint8]) -> dict[ScoreName, ScoreVerdicts]:
        """Judge N >= 1 images uint8 (N, H, W, 3) by every score, in batches, each image in one forward pass."""
        return self.judge_by_all(self.scorer.score(images))
