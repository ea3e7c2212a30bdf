"""A small bundle of an untrained network: whole in every part, made in a second."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model_store import calibration, images
from model_store.bundle import BundleDraft
from model_store.manifest import (
    Calibration,
    Execution,
    GoldenImage,
    ImageSetRecord,
    Manifest,
    PreprocessSpec,
    Provenance,
    WideResNetSpec,
)
from model_store.networks import build_network
from model_store.predictor import Scorer
from model_store.runtimes import TorchRuntime
from model_store.score_specs import (
    EnergyMahalanobisSpec,
    GenSpec,
    KnnSpec,
    MahalanobisSpec,
    MaxLogitSpec,
    MaxSoftmaxSpec,
    ReactSpec,
    RelativeMahalanobisSpec,
    ScaleSpec,
    ScoreSpec,
    VimSpec,
)
from model_store.scores import Head
from model_store.store import Store
from training.fit_scores import fit_score

FURTHER: tuple[ScoreSpec, ...] = (
    MaxSoftmaxSpec(),
    MaxLogitSpec(),
    GenSpec(),
    ReactSpec(),
    ScaleSpec(),
    KnnSpec(k=5, reference_rows=60),
    MahalanobisSpec(ridge=1e-4),
    RelativeMahalanobisSpec(ridge=1e-4),
    VimSpec(),
    EnergyMahalanobisSpec(ridge=1e-4),
)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.fixture(scope="session")
def preprocess() -> PreprocessSpec:
    return PreprocessSpec(
        height=32,
        width=32,
        resize="shorter_side",
        resize_to=32,
        interpolation="lanczos",
        mean=(0.49, 0.48, 0.45),
        std=(0.25, 0.24, 0.26),
    )


@pytest.fixture(scope="session")
def test_images(image_sets: Path) -> np.ndarray:
    files = sorted((image_sets / "cifar10" / "test").rglob("*.png"))
    return np.stack([np.asarray(Image.open(file)) for file in files])


@pytest.fixture(scope="session")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network(WideResNetSpec(depth=10, widen_factor=1, num_classes=10)).eval()


@pytest.fixture(scope="session")
def scorer(network: torch.nn.Module, preprocess: PreprocessSpec) -> Scorer:
    return Scorer(TorchRuntime(network, preprocess, device=torch.device("cpu")), preprocess, temperature=1.0)


@pytest.fixture(scope="session")
def draft(network: torch.nn.Module, preprocess: PreprocessSpec, scorer: Scorer, image_sets: Path) -> BundleDraft:
    files = sorted((image_sets / "cifar10" / "train").rglob("*.png"))
    encoded = [file.read_bytes() for file in files]
    scored = scorer.score(np.stack([images.load(content, preprocess) for content in encoded]))
    scores = calibration.sorted_scores(scored.negative_energy)
    k = calibration.conformal_k(len(scores), 0.05)
    threshold = calibration.threshold(scores, k)
    golden = tuple(
        GoldenImage(
            file=f"golden/{row}.png",
            class_id=int(scored.class_id[row]),
            negative_energy=float(scored.negative_energy[row]),
        )
        for row in range(3)
    )
    manifest = Manifest(
        name="untrained",
        version=1,
        description="an untrained network",
        network=WideResNetSpec(depth=10, widen_factor=1, num_classes=10),
        classes=CLASSES,
        preprocess=preprocess,
        decoder=images.DECODER,
        execution=Execution(tolerance=0.001),
        temperature=1.0,
        verdict="negative_energy",
        calibrations={
            "negative_energy": Calibration(
                method="conformal",
                alpha=0.05,
                n=len(scores),
                k=k,
                threshold=float(threshold),
                histogram_edges=calibration.histogram_edges(scores, threshold),
            )
        },
        golden=golden,
        evaluation=None,
        provenance=Provenance(
            created="2026-01-01T00:00:00+00:00",
            code_version="0",
            recipe={},
            seed=0,
            data=(ImageSetRecord(role="train", name="none", images=1, encoding="lossless", sha256="0" * 64),),
            libraries={},
            hardware="none",
            stage_seconds={},
        ),
        files={},
    )
    return BundleDraft(
        manifest,
        network.state_dict(),
        {"negative_energy": scores},
        {golden[row].file: encoded[row] for row in range(3)},
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def bundle_folder(store: Store, draft: BundleDraft) -> Path:
    return store.publish(draft)


@pytest.fixture(scope="session")
def scored_draft(draft: BundleDraft, network: torch.nn.Module, scorer: Scorer, image_sets: Path) -> BundleDraft:
    """The same bundle with every further score, fitted on half of the training images, calibrated on the others."""
    files = sorted((image_sets / "cifar10" / "train").rglob("*.png"))
    scored = scorer.score(np.stack([images.load(file.read_bytes(), scorer.preprocess) for file in files]))
    labels = torch.tensor([CLASSES.index(file.parent.name) for file in files])
    fitted = [fit_score(spec, scored.features[::2], labels[::2], Head.of(network)) for spec in FURTHER]
    held_out = {score.name: calibration.sorted_scores(score(scored.output).numpy()[1::2]) for score in fitted}
    calibrations = {
        name: Calibration(
            method="conformal",
            alpha=0.1,
            n=len(values),
            k=10,
            threshold=float(calibration.threshold(values, 10)),
            histogram_edges=calibration.histogram_edges(values, calibration.threshold(values, 10)),
        )
        for name, values in held_out.items()
    }
    golden = tuple(
        image.model_copy(update={"scores": {score.name: float(score(scored.output)[row]) for score in fitted}})
        for row, image in enumerate(draft.manifest.golden)
    )
    tolerances = {name: 0.001 * float(values[-1] - values[0]) for name, values in held_out.items()}
    manifest = draft.manifest.model_copy(
        update={
            "scores": FURTHER,
            "calibrations": draft.manifest.calibrations | calibrations,
            "golden": golden,
            "execution": draft.manifest.execution.model_copy(update={"score_tolerances": tolerances}),
        }
    )
    return replace(
        draft,
        manifest=Manifest.model_validate(manifest.model_dump()),
        calibration_scores=draft.calibration_scores | held_out,
        statistics={score.name: score.statistics for score in fitted},
    )
