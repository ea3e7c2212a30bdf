"""Stage 5: everything into one bundle."""

import importlib.metadata
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

import model_store
from model_store import images
from model_store.bundle import GOLDEN, BundleDraft, load_bundle
from model_store.errors import BundleError
from model_store.evaluation import Evaluation
from model_store.manifest import Execution, GoldenImage, ImageSetRecord, Manifest, Provenance
from model_store.predictor import Predictor, Scores
from model_store.store import BundleRef, Store
from training import encode
from training.bundle_size import require_draft_small_enough
from training.calibrate import Calibrated
from training.config import Recipe
from training.datasets import ImageSet
from training.run_folder import writing

GOLDEN_IMAGES = 12
"""At most: they travel with the bundle and are replayed at every start."""
UNSURE_IMAGES = 2
"""Of them: where the network is sure, negative energy is the greatest logit, whatever the temperature."""
LEAST_MARGIN = 1.0
"""By which the greatest logit of an unsure image leads: no rounding, not even to bfloat16, changes its class."""
TOLERANCE = 0.02
"""Float32 on other processors and compilers moves energies of 5 to 25 by some 1e-5; another decoder, by tenths."""
TOLERANCE_OF_RANGE, TOLERANCE_OF_MAGNITUDE, LEAST_TOLERANCE = 1e-3, 1e-4, 1e-6
"""Of further scores, whose units are their own: the shares of the held-out images' scores that they may stray by."""
LIBRARIES = ("torch", "torchvision", "pillow", "numpy", "safetensors")


def golden_images(predictor: Predictor, held_out: ImageSet) -> tuple[tuple[GoldenImage, ...], dict[str, bytes]]:
    """Choose a few held-out images and say what the network makes of their files.

    Of each class that has any, the one it is surest of, by turns stored as PNG, as JPEG and as an enlarged photograph,
    so that the decoder is held to account; of all, those it is least sure of, for the temperature.
    """
    scores = predictor.scorer.score(held_out.images)
    further = [name for name in predictor.scores if name != "negative_energy"]
    spec, files = predictor.scorer.preprocess, {}
    for label in np.unique(held_out.labels)[: GOLDEN_IMAGES - UNSURE_IMAGES].tolist():
        members = np.flatnonzero(held_out.labels == label)
        image = held_out.images[members[scores.logits[members, label].argmax()]]
        match label % 3:
            case 0:
                files[f"{GOLDEN}/{label:03d}.png"] = encode.png(image)
            case 1:
                files[f"{GOLDEN}/{label:03d}.jpg"] = encode.jpeg(image, quality=90)
            case _:
                shorter_side = 3 * min(spec.height, spec.width)
                files[f"{GOLDEN}/{label:03d}-enlarged.jpg"] = encode.enlarged_jpeg(image, shorter_side, quality=90)
    for number, row in enumerate(_least_sure(scores)):
        files[f"{GOLDEN}/unsure-{number}.png"] = encode.png(held_out.images[row])
    scored = predictor.scorer.score(np.stack([images.load(file, spec) for file in files.values()]))
    by_score = predictor.judge_by_all(scored)
    golden = tuple(
        GoldenImage(
            file=file,
            class_id=int(scored.class_id[row]),
            negative_energy=round(float(scored.negative_energy[row]), 5),
            scores={name: float(f"{by_score[name].value[row]:.7g}") for name in further},
        )
        for row, file in enumerate(files)
    )
    return golden, files


def _least_sure(scores: Scores) -> list[int]:
    """Return the rows of lowest confidence among those whose class is clear all the same."""
    first, second = scores.logits.topk(2).values.unbind(1)
    clear = np.flatnonzero((first - second >= LEAST_MARGIN).numpy())
    by_confidence = clear[np.argsort(scores.confidence[clear], kind="stable")]
    rows: list[int] = by_confidence[:UNSURE_IMAGES].tolist()
    return rows


def score_tolerance(calibration_scores: NDArray[np.float32]) -> float:
    """Return how far a golden image may stray in a score with these scores of the held-out images, in its units."""
    spread = float(calibration_scores.max() - calibration_scores.min())
    magnitude = float(np.abs(calibration_scores).max())
    return max(TOLERANCE_OF_RANGE * spread, TOLERANCE_OF_MAGNITUDE * magnitude, LEAST_TOLERANCE)


def provenance(
    recipe: Recipe,
    data: Sequence[ImageSetRecord],
    hardware: str,
    stage_seconds: dict[str, float],
    created: str,
) -> Provenance:
    """Return where a bundle comes from; `hardware` is what computed all of it."""
    return Provenance(
        created=created,
        code_version=code_version(),
        recipe=recipe.model_dump(mode="json"),
        seed=recipe.seed,
        data=tuple(data),
        libraries={name: importlib.metadata.version(name) for name in LIBRARIES},
        hardware=hardware,
        stage_seconds={stage: round(seconds, 1) for stage, seconds in stage_seconds.items()},
    )


def draft_bundle(
    recipe: Recipe,
    network: nn.Module,
    predictor: Predictor,
    calibrated: Calibrated,
    held_out: ImageSet,
    evaluation: Evaluation | None,
    origin: Provenance,
) -> BundleDraft:
    """Put a bundle together; its version is given by the store.

    Raises:
        RecipeError: it is larger than the recipe allows.
    """
    golden, files = golden_images(predictor, held_out)
    stored: dict[str, NDArray[np.float32]] = {
        name: score.calibration_scores for name, score in calibrated.scores.items()
    }
    tolerances = {spec.kind: score_tolerance(stored[spec.kind]) for spec in recipe.scores}
    manifest = Manifest(
        name=recipe.name,
        version=1,
        description=recipe.description,
        network=recipe.network,
        classes=held_out.classes,
        preprocess=recipe.preprocess,
        decoder=images.DECODER,
        execution=Execution(precision="float32", tolerance=TOLERANCE, score_tolerances=tolerances),
        temperature=recipe.calibrate.temperature,
        scores=recipe.scores,
        verdict=calibrated.verdict,
        calibrations=dict(calibrated.specs),
        golden=golden,
        evaluation=evaluation,
        provenance=origin,
        files={},
    )
    statistics = {name: score.score.statistics for name, score in calibrated.scores.items()}
    draft = BundleDraft(manifest, network.state_dict(), stored, files, statistics)
    require_draft_small_enough(recipe, draft)
    return draft


def publish(store: Store, draft: BundleDraft) -> Path:
    """Publish a draft, loaded whole before it is; a bundle that equals it in all but its version is found instead.

    Raises:
        BundleError: the bundle does not replay its own golden images.
        OutputError: it cannot be written.
    """
    if folder := _published(store, draft):
        return folder
    with writing(store.root):
        return store.publish(draft)


def _published(store: Store, draft: BundleDraft) -> Path | None:
    for ref in store.refs():
        if ref.name == draft.manifest.name:
            unversioned = {"version": draft.manifest.version, "files": {}}
            with suppress(BundleError):  # a damaged neighbour is not the draft
                folder = store.resolve(ref)
                if load_bundle(folder).manifest.model_copy(update=unversioned) == draft.manifest:
                    return folder
    return None


def bundle_ref(folder: Path) -> BundleRef:
    """Return the reference of a published bundle's directory."""
    return BundleRef(folder.parent.name, int(folder.name))


def code_version() -> str:
    """Return the package's version and, in a git checkout, its commit."""
    return "+".join(filter(None, (model_store.__version__, commit())))


def commit() -> str | None:
    """Return the commit of the git checkout that runs, `-dirty` if files were changed since; None outside of one."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],  # noqa: S607
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
