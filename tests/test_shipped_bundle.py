"""The bundle that ships: whole, documented, and worth what it says."""

from pathlib import Path

import pytest
import torch

from model_store.bundle import Bundle, load_bundle
from model_store.store import SHIPPED, BundleRef, Store
from training import report
from training.config import Recipe
from training.evaluate import score_sets
from training.pipeline import Run
from training.progress import silent

ROOT = Path(__file__).parents[1]


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


def test_shipped_figures_are_within_what_was_promised(bundle: Bundle) -> None:
    evaluation = bundle.manifest.evaluation
    assert evaluation is not None
    assert evaluation.test_images == 10_000
    assert evaluation.fine_tuned.test_error <= 9
    assert set(evaluation.far_ood) == {"svhn", "textures", "places", "scenes-crop", "scenes-resize", "celeba"}
    assert evaluation.mean_over_far_ood(evaluation.fine_tuned, "energy").fpr95 <= 12
    served = evaluation.served
    assert 4.2 <= served["as they are"].false_flags <= 5.8
    assert served["JPEG quality 90"].false_flags <= 8
    assert served["as they are"].accuracy - served["JPEG quality 90"].accuracy <= 2


@pytest.mark.images
@pytest.mark.timeout(600)
def test_shipped_figures_are_measured_again_from_the_shipped_files(
    bundle: Bundle, full_image_sets: Path, tmp_path: Path
) -> None:
    """All test images and OOD sets through the shipped predictor; another processor may flip a few of them."""
    manifest = bundle.manifest
    recipe = Recipe.model_validate(manifest.provenance.recipe)
    sets = Run(recipe, full_image_sets, tmp_path, torch.device("cpu"), silent, silent).test_sets
    scores = score_sets(bundle.predictor.scorer, sets, silent)
    assert manifest.evaluation is not None
    error = 100 * float((scores.test.class_id != sets.test.labels).mean())
    assert error == pytest.approx(manifest.evaluation.fine_tuned.test_error, abs=0.05)
    false_flags = 100 * float(bundle.predictor.judge(scores.test).is_ood.mean())
    assert false_flags == pytest.approx(manifest.evaluation.served["as they are"].false_flags, abs=0.05)
    for name, expected in manifest.evaluation.fine_tuned.ood.items():
        missed = 100 * float((~bundle.predictor.judge(scores.ood[name]).is_ood).mean())
        assert missed == pytest.approx(expected.missed, abs=0.2), name
