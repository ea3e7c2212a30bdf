"""The bundle that ships: whole, documented, and worth what it says."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from model_store.bundle import Bundle, load_bundle
from model_store.score_specs import ScoreName
from model_store.store import SHIPPED, BundleRef, Store
from training import encode, report
from training.config import RECIPES, Recipe
from training.evaluate import evaluate_network, predict_files, score_sets
from training.pipeline import Run
from training.progress import silent

ROOT = Path(__file__).parents[1]
LATER: set[ScoreName] = {"energy_mahalanobis"}
"""What came after the bundle; fine-tuned networks are not better judged by it (docs/results)."""


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(Store(SHIPPED).resolve(BundleRef("cifar10")), device=torch.device("cpu"))


def test_shipped_bundle_is_small_and_its_verdict_conformal(bundle: Bundle) -> None:
    assert sum(path.stat().st_size for path in bundle.folder.rglob("*") if path.is_file()) <= 10_000_000
    calibration = bundle.manifest.calibrations["negative_energy"]
    assert (calibration.method, calibration.alpha, calibration.n, calibration.k) == ("conformal", 0.05, 5000, 250)


def test_readme_and_model_card_are_generated_from_the_bundle(bundle: Bundle) -> None:
    readme = (ROOT / "README.md").read_text()
    assert report.replace_block(readme, report.readme_block(bundle)) == readme
    assert report.model_card(bundle) == (ROOT / "docs/model-card-cifar10.md").read_text()


def test_notes_are_of_the_bundle_that_ships_and_of_no_namesake(bundle: Bundle) -> None:
    notes = [line for line in (RECIPES / "cifar10.md").read_text().splitlines() if line]
    namesake = report.model_card(replace(bundle, sha256=64 * "0")).splitlines()
    assert set(notes) <= set(report.model_card(bundle).splitlines())
    assert not set(notes) & set(namesake)
    assert "| network.depth | `40` |" in namesake  # the rest is there


def test_shipped_figures_are_within_what_was_promised(bundle: Bundle) -> None:
    evaluation = bundle.manifest.evaluation
    assert evaluation is not None
    assert evaluation.test_images == 10_000
    assert evaluation.fine_tuned.test_error <= 5.8
    assert evaluation.untuned is not None
    assert evaluation.untuned.ood.keys() == evaluation.fine_tuned.ood.keys()
    assert set(evaluation.far_ood) == {"svhn", "textures", "places", "scenes-crop", "scenes-resize", "celeba"}
    assert evaluation.mean_over_far_ood(evaluation.fine_tuned, "energy").fpr95 <= 12
    served = evaluation.served
    assert 4.2 <= served["as they are"].false_flags <= 5.8
    assert served["JPEG quality 90"].false_flags <= 8
    assert served["as they are"].accuracy - served["JPEG quality 90"].accuracy <= 2
    scores = evaluation.scores
    assert scores.keys() == set(get_args(ScoreName)) - LATER == set(bundle.manifest.score_names)
    assert all(3.5 <= score.false_flags <= 6 for score in scores.values())


@pytest.mark.images
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_shipped_figures_are_measured_again_from_the_shipped_files(
    bundle: Bundle, full_image_sets: Path, tmp_path: Path
) -> None:
    """All test images and OOD sets, on the runtime that a server takes; another processor flips few or none."""
    manifest, predictor = bundle.manifest, load_bundle(bundle.folder, runtime="auto").predictor
    recipe = Recipe.model_validate(manifest.provenance.recipe)
    sets = Run(recipe, full_image_sets, tmp_path, torch.device("cpu"), silent, silent).sets.tests
    scores = score_sets(predictor.scorer, sets, silent)
    assert manifest.evaluation is not None
    expected, served = manifest.evaluation.fine_tuned, manifest.evaluation.served
    found = evaluate_network(scores, sets.test.labels, predictor, recipe.evaluate.draws, recipe.seed)
    assert found.test_error == pytest.approx(expected.test_error, abs=0.05)
    for name, ood in expected.ood.items():
        assert found.ood[name].missed == pytest.approx(ood.missed, abs=0.2), name
        for score in ("energy", "softmax"):
            figures, wanted = getattr(found.ood[name], score), getattr(ood, score)
            assert figures.fpr95 == pytest.approx(wanted.fpr95, abs=0.3), name
            assert figures.auroc == pytest.approx(wanted.auroc, abs=0.05), name
            assert figures.aupr == pytest.approx(wanted.aupr, abs=0.05), name
    as_they_are = predictor.judge(scores.test).is_ood
    assert 100 * float(as_they_are.mean()) == pytest.approx(served["as they are"].false_flags, abs=0.05)
    as_jpeg = predict_files(predictor, (encode.jpeg(image, 90) for image in sets.test.images))
    assert 100 * float(as_jpeg.is_ood.mean()) == pytest.approx(served["JPEG quality 90"].false_flags, abs=0.1)
    accuracy = 100 * float((as_jpeg.class_id == sets.test.labels).mean())
    assert accuracy == pytest.approx(served["JPEG quality 90"].accuracy, abs=0.1)
