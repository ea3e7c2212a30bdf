"""Stage 4: what a network is worth, in the paper's protocol and as its users meet it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_store import images
from model_store.evaluation import (
    Detection,
    Evaluation,
    NetworkEvaluation,
    OddInputEvaluation,
    OodSetEvaluation,
    ScoreEvaluation,
    ScoreOnOodSet,
    ServedEvaluation,
)
from model_store.predictor import Predictions, Predictor, Scorer, Scores, ScoreVerdicts
from model_store.score_specs import ScoreName
from training import encode
from training.datasets import ImageSet
from training.metrics import resampled_metrics
from training.odd_inputs import odd_inputs
from training.set_roles import require_one_encoding

OOD_IMAGES = 2000
"""OOD images a draw, against all test images: the paper's protocol."""
JPEG_QUALITIES = (95, 90, 75)
PHOTOGRAPH_PX = 300


@dataclass(frozen=True)
class TestSets:
    """Labelled in-distribution test images and OOD sets by name; the far ones make the mean."""

    __test__ = False

    test: ImageSet
    far_ood: dict[str, ImageSet]
    near_ood: dict[str, ImageSet]

    @property
    def ood(self) -> dict[str, ImageSet]:
        """All OOD sets."""
        return self.far_ood | self.near_ood


@dataclass(frozen=True)
class NetworkScores:
    """One network's scores of every test set, kept for tables and figures."""

    test: Scores
    ood: dict[str, Scores]


Say = Callable[[str], None]


def score_sets(scorer: Scorer, sets: TestSets, say: Say) -> NetworkScores:
    """Score the test images and every OOD set.

    Raises:
        DataError: the sets were stored in different encodings.
    """
    require_one_encoding([sets.test, *sets.ood.values()])
    say(f"scoring {sets.test.name}")
    test, ood = scorer.score(sets.test.images), {}
    for name, image_set in sets.ood.items():
        say(f"scoring {image_set.name}")
        ood[name] = scorer.score(image_set.images)
    return NetworkScores(test, ood)


def evaluate_network(
    scores: NetworkScores, labels: NDArray[np.int64], predictor: Predictor | None, draws: int, seed: int
) -> NetworkEvaluation:
    """Compare the test scores with each OOD set's, averaged over seeded draws of 2,000 OOD images.

    labels: int64 (N,) of the test images. predictor: the network with its thresholds, if it has any, for the share
    missed by its verdict.
    """
    correct = scores.test.class_id == labels
    return NetworkEvaluation(
        test_error=percent(~correct),
        ood={name: _evaluate_set(scores.test, ood, predictor, draws, seed) for name, ood in scores.ood.items()},
    )


def _evaluate_set(test: Scores, ood: Scores, predictor: Predictor | None, draws: int, seed: int) -> OodSetEvaluation:
    return OodSetEvaluation(
        images=len(ood.negative_energy),
        drawn=min(OOD_IMAGES, len(ood.negative_energy)),
        softmax=detection(test.confidence, ood.confidence, draws, seed),
        energy=detection(test.negative_energy, ood.negative_energy, draws, seed),
        missed=None if predictor is None else percent(~predictor.judge(ood).is_ood),
    )


def detection(test_scores: NDArray[np.float32], ood_scores: NDArray[np.float32], draws: int, seed: int) -> Detection:
    """Compare the test images' scores, float32 (N,), with an OOD set's, float32 (M,), over seeded draws of these."""
    metrics = resampled_metrics(
        in_distribution=test_scores, out_of_distribution=ood_scores, sample_size=OOD_IMAGES, draws=draws, seed=seed
    )
    return Detection(
        fpr95=round(100 * metrics.fpr95, 4), auroc=round(100 * metrics.auroc, 4), aupr=round(100 * metrics.aupr, 4)
    )


def evaluate_scores(
    scores: NetworkScores, predictor: Predictor, draws: int, seed: int
) -> dict[ScoreName, ScoreEvaluation]:
    """Measure every score of a bundle that carries several, on the same draws and from the same forward passes.

    Each is judged at its own threshold. Nothing is returned where negative energy is the only score.
    """
    if len(predictor.scores) == 1:
        return {}
    test = predictor.judge_by_all(scores.test)
    ood = {name: predictor.judge_by_all(scored) for name, scored in scores.ood.items()}

    def on_set(score: ScoreName, verdicts: ScoreVerdicts) -> ScoreOnOodSet:
        figures = detection(test[score].value, verdicts.value, draws, seed)
        return ScoreOnOodSet(**figures.model_dump(), missed=percent(~verdicts.is_ood))

    return {
        score: ScoreEvaluation(
            false_flags=percent(test[score].is_ood),
            ood={name: on_set(score, verdicts[score]) for name, verdicts in ood.items()},
        )
        for score in predictor.scores
    }


def evaluate(
    sets: TestSets,
    fine_tuned: NetworkScores,
    untuned: NetworkScores | None,
    predictor: Predictor | None,
    *,
    draws: int,
    seed: int,
    say: Say,
) -> Evaluation:
    """Return all figures of a network, and with a threshold those a user meets.

    untuned: the classifier before fine-tuning, for comparison. predictor: the fine-tuned network with its threshold.
    """
    labels = sets.test.labels
    return Evaluation(
        test_images=len(sets.test),
        far_ood=tuple(sets.far_ood),
        fine_tuned=evaluate_network(fine_tuned, labels, predictor, draws, seed),
        untuned=None if untuned is None else evaluate_network(untuned, labels, None, draws, seed),
        served={} if predictor is None else _served(predictor, sets.test, fine_tuned.test, say),
        odd_inputs={} if predictor is None else _odd_inputs(predictor, seed, say),
        scores={} if predictor is None else evaluate_scores(fine_tuned, predictor, draws, seed),
    )


def _served(predictor: Predictor, test: ImageSet, lossless: Scores, say: Say) -> dict[str, ServedEvaluation]:
    results = {"as they are": _as_served(predictor.judge(lossless), test.labels)}
    encoders: dict[str, Callable[[NDArray[np.uint8]], bytes]] = {
        f"JPEG quality {quality}": lambda image, quality=quality: encode.jpeg(image, quality)  # type: ignore[misc]
        for quality in JPEG_QUALITIES
    }
    spec = predictor.scorer.preprocess
    encoders[f"{PHOTOGRAPH_PX} px photograph"] = lambda image: encode.photograph(image, spec, PHOTOGRAPH_PX, quality=95)
    for name, encoder in encoders.items():
        say(f"sending {test.name} as {name}")
        results[name] = _as_served(predict_files(predictor, map(encoder, test.images)), test.labels)
    return results


def _as_served(predictions: Predictions, labels: NDArray[np.int64]) -> ServedEvaluation:
    return ServedEvaluation(
        images=len(labels),
        accuracy=percent(predictions.class_id == labels),
        false_flags=percent(predictions.is_ood),
    )


def _odd_inputs(predictor: Predictor, seed: int, say: Say) -> dict[str, OddInputEvaluation]:
    say("sending odd inputs")
    spec, results = predictor.scorer.preprocess, {}
    for name, files in odd_inputs(spec.height, spec.width, seed).items():
        predictions = predict_files(predictor, files)
        results[name] = OddInputEvaluation(
            images=len(files),
            flagged=percent(predictions.is_ood),
            mean_p_value=round(float(predictions.p_value.mean()), 4),
        )
    return results


def predict_files(predictor: Predictor, files: Iterable[bytes]) -> Predictions:
    """Send encoded images the whole way, as the service does: decode, fit, predict."""
    spec = predictor.scorer.preprocess
    return predictor.predict(np.stack([images.load(file, spec) for file in files]))


def percent(flags: NDArray[np.bool_]) -> float:
    """Return the share of flags that are set, in percent."""
    return round(100 * float(flags.mean()), 4)
