"""Every score of a bundle, measured: scores made by hand, figures worked out by hand or by scikit-learn."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.metrics import average_precision_score

from model_store import calibration, images
from model_store.evaluation import (
    Detection,
    Evaluation,
    NetworkEvaluation,
    OodSetEvaluation,
    ScoreEvaluation,
    ScoreOnOodSet,
)
from model_store.manifest import PreprocessSpec
from model_store.networks import build_network
from model_store.predictor import CalibratedScore, Predictor, Scorer, Scores
from model_store.runtimes import TorchRuntime
from model_store.scores import Knn, MaxLogit, NegativeEnergy
from training import encode
from training.config import Recipe
from training.datasets import ImageSet, load_set
from training.evaluate import NetworkScores, TestSets, evaluate, evaluate_scores, predict_files
from training.metrics import resampled_metrics
from training.progress import silent


def _scored(max_logit: np.ndarray, degrees: np.ndarray) -> Scores:
    """Return images with these greatest logits, at these angles from the one reference row of `_predictor`."""
    values = np.asarray(max_logit, np.float32)
    radians = np.deg2rad(degrees)
    return Scores(
        logits=torch.from_numpy(np.stack([values, np.full_like(values, -200)], axis=1)),
        features=torch.from_numpy(np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)),
        negative_energy=values,
        confidence=np.ones_like(values),
    )


def _predictor() -> Predictor:
    """Return one whose max logit flags 3 and below, and whose knn flags what is 25 degrees off and further."""
    knn = Knn(1, torch.tensor([[1.0, 0.0]]))
    scores = {
        "negative_energy": (NegativeEnergy(), 2.0),
        "max_logit": (MaxLogit(), 3.0),
        "knn": (knn, -2 * np.sin(np.deg2rad(12.5))),
    }
    stored = calibration.sorted_scores(np.array([-5, 5], np.float32))
    calibrated = {
        name: CalibratedScore(score, stored, np.float32(threshold)) for name, (score, threshold) in scores.items()
    }
    return Predictor(None, calibrated, "max_logit")  # without a scorer: nothing is scored again


def test_every_score_is_measured_by_hand() -> None:
    """Of 1 to 20 against 0.5 to 9.5 nineteen stay at 1.5 or above, where nine of ten OOD images are."""
    test, ood = np.arange(1, 21), np.arange(0.5, 10)
    scores = NetworkScores(
        _scored(test, np.arange(20)), {"far": _scored(ood, np.arange(30, 40)), "near": _scored(ood + 50, np.arange(10))}
    )
    found = evaluate_scores(scores, _predictor(), draws=3, seed=0)
    assert list(found) == ["negative_energy", "max_logit", "knn"]
    precision = average_precision_score([1] * 20 + [0] * 10, np.concatenate([test, ood]))
    assert found["max_logit"] == ScoreEvaluation(
        false_flags=15,  # 1, 2, 3 of twenty
        ood={
            # 1 + 2 + ... + 10 + 10 x 10 of 200 pairs are in order; 3.5 to 9.5 pass.
            "far": ScoreOnOodSet(fpr95=90, auroc=77.5, aupr=round(100 * precision, 4), missed=70),
            "near": ScoreOnOodSet(fpr95=100, auroc=0, aupr=found["max_logit"].ood["near"].aupr, missed=100),
        },
    )
    assert found["negative_energy"].false_flags == 10  # the same values, flagged from 2 on
    assert found["negative_energy"].ood["far"] == found["max_logit"].ood["far"].model_copy(update={"missed": 80})
    assert found["knn"].false_flags == 0
    assert found["knn"].ood["far"] == ScoreOnOodSet(fpr95=0, auroc=100, aupr=100, missed=0)
    assert found["knn"].ood["near"].missed == 100


def test_large_sets_are_drawn_from_as_the_protocol_has_it() -> None:
    generator = np.random.default_rng(7)
    test = _scored(generator.normal(3, 1, 600), generator.normal(0, 10, 600))
    ood = _scored(generator.normal(1, 2, 5000), generator.normal(30, 20, 5000))
    predictor = _predictor()
    found = evaluate_scores(NetworkScores(test, {"far": ood}), predictor, draws=3, seed=4)
    for name, score in predictor.scores.items():
        values = [score.score(scored.output).numpy() for scored in (test, ood)]
        metrics = resampled_metrics(
            in_distribution=values[0], out_of_distribution=values[1], sample_size=2000, draws=3, seed=4
        )
        figures = found[name].ood["far"]
        assert figures.fpr95 == pytest.approx(100 * metrics.fpr95, abs=1e-3), name
        assert figures.auroc == pytest.approx(100 * metrics.auroc, abs=1e-3), name
        assert figures.aupr == pytest.approx(100 * metrics.aupr, abs=1e-3), name
        assert figures.missed == pytest.approx(100 * (values[1] > score.threshold).mean(), abs=1e-3), name
    assert len({score.ood["far"].fpr95 for score in found.values()}) == 2  # energy is the max logit here, knn is not


def test_bundle_of_negative_energy_alone_has_no_further_figures() -> None:
    scores = NetworkScores(_scored(np.arange(3), np.arange(3)), {})
    alone = {"negative_energy": _predictor().scores["negative_energy"]}
    assert evaluate_scores(scores, Predictor(None, alone), draws=1, seed=0) == {}


def _evaluation(**scores: ScoreEvaluation) -> Evaluation:
    perfect = Detection(fpr95=0, auroc=100, aupr=100)
    ood = {
        name: OodSetEvaluation(images=10, drawn=10, softmax=perfect, energy=perfect, missed=0)
        for name in ("svhn", "places", "near")
    }
    network = NetworkEvaluation(test_error=5, ood=ood)
    return Evaluation(
        test_images=10, far_ood=("svhn", "places"), fine_tuned=network, served={}, odd_inputs={}, scores=scores
    )


def test_mean_of_a_score_is_over_the_far_sets() -> None:
    ood = {
        "svhn": ScoreOnOodSet(fpr95=10, auroc=90, aupr=80, missed=20),
        "near": ScoreOnOodSet(fpr95=90, auroc=50, aupr=50, missed=99),
        "places": ScoreOnOodSet(fpr95=30, auroc=80, aupr=70, missed=50),
    }
    found = _evaluation(gen=ScoreEvaluation(false_flags=5, ood=ood)).mean_of_score("gen")
    assert found == ScoreOnOodSet(fpr95=20, auroc=85, aupr=75, missed=35)


def test_score_of_other_sets_than_the_networks_is_refused() -> None:
    one = {"svhn": ScoreOnOodSet(fpr95=10, auroc=90, aupr=80, missed=20)}
    with pytest.raises(ValidationError, match=r"scores\.gen is of the OOD sets svhn; .* svhn, places, near"):
        _evaluation(gen=ScoreEvaluation(false_flags=5, ood=one))


def _photographs_fitted(image_sets: Path, preprocess: PreprocessSpec, **crop: int) -> tuple[np.ndarray, np.ndarray]:
    """Return test images as a crop leaves them, and as the same preprocessing makes them of their photographs."""
    spec = preprocess.model_copy(update=crop)
    fitted = load_set("cifar10/test", image_sets, spec, None).images[:50]
    sent = (encode.photograph(image, spec, 300, quality=95) for image in fitted)
    return fitted, np.stack([images.load(file, spec) for file in sent])


@pytest.mark.parametrize("crop", [{"height": 28, "width": 28}, {"height": 28, "width": 32}, {"resize_to": 37}])
def test_photograph_of_a_crop_is_fitted_to_the_same_crop(
    image_sets: Path, preprocess: PreprocessSpec, crop: dict[str, int]
) -> None:
    fitted, back = _photographs_fitted(image_sets, preprocess, **crop)
    assert np.abs(back.astype(int) - fitted).mean() < 3


def test_photograph_of_a_whole_image_adds_no_edge(train_set: ImageSet, preprocess: PreprocessSpec) -> None:
    for image in train_set.images[:5]:
        assert encode.photograph(image, preprocess, 300, quality=95) == encode.enlarged_jpeg(image, 300, quality=95)


def test_evaluation_sends_photographs_that_are_not_cropped_twice(tiny: Recipe, image_sets: Path) -> None:
    """Sent so, they are flagged as the images are, but for what JPEG does; an untrained network is enough to tell."""
    torch.manual_seed(0)
    spec = tiny.preprocess.model_copy(update={"height": 16, "width": 16})
    test = load_set("cifar10/test", image_sets, spec, None)
    runtime = TorchRuntime(build_network(tiny.network), spec, device=torch.device("cpu"))
    scorer = Scorer(runtime, spec, temperature=1.0)
    scores = scorer.score(test.images)
    threshold, stored = np.median(scores.negative_energy), calibration.sorted_scores(scores.negative_energy)
    predictor = Predictor(scorer, {"negative_energy": CalibratedScore(NegativeEnergy(), stored, threshold)})
    sets = TestSets(test, {}, {})
    found = evaluate(sets, NetworkScores(scores, {}), None, predictor, draws=1, seed=0, say=silent)
    photographs = [encode.photograph(image, spec, 300, quality=95) for image in test.images]
    flags = predict_files(predictor, photographs).is_ood
    assert found.served["300 px photograph"].false_flags == pytest.approx(100 * flags.mean(), abs=1e-4)
    assert (flags == predictor.judge(scores).is_ood).mean() > 0.9
