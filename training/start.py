"""Stage 1 for who has a classifier already: the network of a published bundle, to be fine-tuned further."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from model_store.bundle import WEIGHTS, load_bundle, read_manifest
from model_store.errors import BundleNotFoundError
from model_store.evaluation import NetworkEvaluation
from model_store.manifest import Manifest
from model_store.networks import build_network
from model_store.store import BundleRef, Store
from training.config import Recipe
from training.datasets import ImageSet
from training.errors import RecipeError
from training.evaluate import Say
from training.pretrain import pretrain_inputs
from training.run_folder import is_done, mean, open_stage, read_weights, require_inputs, write_json, write_weights

MANIFEST = "start.json"
"""The manifest of the bundle that a run started from, in the folder of its weights."""


def start(
    recipe: Recipe, train_set: ImageSet, stores: Sequence[Store], folder: Path, device: torch.device, say: Say
) -> nn.Module:
    """Return the network of the recipe's `start` bundle, from the first store that has it; keep it in `folder`.

    Of several bundles it is the mean.

    device: where the bundle's golden images are replayed.

    Raises:
        BundleError: no store has it, or it is damaged.
        RecipeError: its network, preprocessing or classes are others, or it may have been trained on the images that
            this recipe holds out for calibration.
        ResumeError: `folder` holds another classifier.
    """
    network, inputs = build_network(recipe.network), pretrain_inputs(recipe, train_set)
    if is_done(folder):
        require_inputs(folder, inputs)
        read_weights(folder, network)
        return network
    bundles = {name: load_bundle(_find(name, stores), device=device) for name in recipe.starts}
    for name, bundle in bundles.items():
        _require_same_task(name, recipe, train_set, bundle.manifest)
        _require_same_split(name, recipe, train_set, bundle.manifest)
        say(f"starting from {bundle.folder}")
    open_stage(folder, inputs)  # not earlier: a bundle that is refused leaves nothing to be refused for
    networks = [load_file(bundle.folder / WEIGHTS) for bundle in bundles.values()]
    network.load_state_dict(mean(networks, [1 / len(networks)] * len(networks)))
    write_json(folder / MANIFEST, bundles[recipe.starts[0]].manifest.model_dump(mode="json"))
    write_weights(folder, network)
    return network


def untuned_figures(recipe: Recipe, folder: Path, sets: dict[str, str]) -> NetworkEvaluation | None:
    """Return what was measured of the start bundle's classifier before any fine-tuning, if it was measured alike.

    Where the bundle is that classifier, never fine-tuned, that is what was measured of the bundle itself.

    folder: where `start` kept it. sets: fingerprints of this run's sets by role.
    """
    manifest = Manifest.model_validate_json((folder / MANIFEST).read_text())
    origin = manifest.provenance
    then = (
        _tested({record.role: record.sha256 for record in origin.data}),
        (origin.seed, origin.recipe.get("evaluate"), manifest.temperature),
    )
    now = (_tested(sets), (recipe.seed, recipe.evaluate.model_dump(mode="json"), recipe.calibrate.temperature))
    if manifest.evaluation is None or then != now:
        return None
    return manifest.evaluation.untuned or _of_a_classifier(manifest.evaluation.fine_tuned, origin.recipe)


def _of_a_classifier(found: NetworkEvaluation, recipe: dict[str, Any]) -> NetworkEvaluation | None:
    """Return the figures of a network that was only trained to classify, without those of its threshold."""
    if any(recipe.get(stage) for stage in ("start", "finetune", "average")):
        return None
    return found.model_copy(
        update={"ood": {name: figures.model_copy(update={"missed": None}) for name, figures in found.ood.items()}}
    )


def _tested(sets: dict[str, str]) -> dict[str, str]:
    return {role: sha256 for role, sha256 in sets.items() if role == "test" or role.startswith("ood ")}


def _find(name: str, stores: Sequence[Store]) -> Path:
    ref = BundleRef.parse(name)
    for store in stores:
        if ref in store.refs():
            folder = store.resolve(ref)
            origin = read_manifest(folder).provenance.recipe.get("start") or ()
            if name not in ((origin,) if isinstance(origin, str) else origin):  # a namesake that started from it
                return folder
    raise BundleNotFoundError(f"start is {name}; it is in none of {', '.join(str(store.root) for store in stores)}")


def _require_same_task(start: str, recipe: Recipe, train_set: ImageSet, found: Manifest) -> None:
    asked = {"network": recipe.network, "preprocess": recipe.preprocess, "classes": train_set.classes}
    for what, value in asked.items():
        if value != getattr(found, what):
            raise RecipeError(f"start: {start} has {what} {getattr(found, what)!r}; the recipe has {value!r}")


def _require_same_split(start: str, recipe: Recipe, train_set: ImageSet, found: Manifest) -> None:
    """Refuse a bundle that may have been trained on what this recipe holds out.

    Only the same split of the same images excludes it, for the bundle and for those that it started from in turn.
    """
    held_out, origin = recipe.data.calibration_images, found.provenance
    trained_on = next((record for record in origin.data if record.role == "train"), None)
    then = {
        "train sha256": trained_on and trained_on.sha256,
        "images of each class": trained_on and trained_on.uneven_classes,
        "seed": origin.seed,
        "calibration_images": origin.recipe.get("data", {}).get("calibration_images"),
    }
    now = {
        "train sha256": train_set.fingerprint,
        "images of each class": train_set.uneven_classes,
        "seed": recipe.seed,
        "calibration_images": held_out,
    }
    for what, value in now.items():
        if held_out and value != then[what]:
            raise RecipeError(
                f"start: {start} was made with {what} = {then[what]!r}, the recipe has {value!r}; images that "
                "this split holds out for calibration may be images that it was trained on"
            )
