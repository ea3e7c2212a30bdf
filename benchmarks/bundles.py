"""The bundles that servers are compared by: WRN-40-2, whose figures others publish, in float32 and in bfloat16.

What a forward pass takes does not depend on the weights: they are drawn from a seed, batch norm is fitted to the tests'
few images, and so is the last layer, which makes classes and energies distinct enough for golden images.
"""

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model_store import images
from model_store.bundle import BundleDraft
from model_store.manifest import Execution, PreprocessSpec
from model_store.networks import NetworkOutput, NormalisedNetwork, build_network
from model_store.predictor import Scorer
from model_store.runtimes import TorchRuntime
from model_store.store import BundleRef, Store
from training import encode
from training.calibrate import calibrate
from training.config import Recipe, read_recipe
from training.datasets import ImageSet, load_set
from training.hardware import hardware
from training.overlap import records
from training.publish import draft_bundle, provenance

IMAGES = Path(__file__).parents[1] / "tests" / "data" / "images"
RECIPE = "cifar10-wrn-40-2"
Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
LOGIT_OF_CLASS = 10.0
"""What the last layer is fitted to for an image's class, 0 for the others: energies near 10, as trained ones have."""
RIDGE = 1e-2
IMAGES_A_CLASS = 6
"""With as many as JPEG, as some golden images are, fewer in all than features, so that the last layer tells them apart
by far more than what bfloat16 rounds away."""
BFLOAT16_TOLERANCE = 1.0
"""bfloat16 has 8 significant bits: on features that were not trained, some tenths of an energy of 10."""


def bundle_name(precision: Precision) -> str:
    """Return the name that a precision's bundle has in the store."""
    return f"wrn-40-2-{precision}"


def publish_wrn_40_2(root: Path) -> Store:
    """Publish the network in both precisions, unless they are in the store below `root`."""
    store = Store(root)
    present = {ref.name for ref in store.refs()}
    missing = [precision for precision in PRECISIONS if bundle_name(precision) not in present]
    if missing:
        recipe = read_recipe(Path(RECIPE)).model_copy(update={"scores": ()})
        known = _first_of_each_class(load_set(recipe.data.train, IMAGES, recipe.preprocess, None))
        network = fitted_network(recipe, known)
        for precision in missing:
            store.publish(_draft(recipe, network, known, precision), version=1)
    return store


def reference(precision: Precision) -> BundleRef:
    """Return the reference of a precision's bundle."""
    return BundleRef(bundle_name(precision), 1)


def fitted_network(recipe: Recipe, known: ImageSet) -> nn.Module:
    """Return the recipe's network of the recipe's seed, its batch norm and last layer fitted to `known`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = build_network(recipe.network)
    pixels = torch.from_numpy(np.concatenate([known.images, _as_jpeg(known.images, recipe.preprocess)]))
    _fit_batch_norm(network, NormalisedNetwork(network, recipe.preprocess).normalise(pixels))
    with torch.inference_mode():
        output: NetworkOutput = NormalisedNetwork(network.eval(), recipe.preprocess)(pixels)
    _fit_head(network, output.features, torch.from_numpy(known.labels).repeat(2))
    return network.eval()


def _first_of_each_class(known: ImageSet) -> ImageSet:
    found = [np.flatnonzero(known.labels == label)[:IMAGES_A_CLASS] for label in range(len(known.classes))]
    return known.subset(np.concatenate(found))


def _as_jpeg(pixels: NDArray[np.uint8], spec: PreprocessSpec) -> NDArray[np.uint8]:
    """Return what comes of images that are sent as JPEG."""
    return np.stack([images.load(encode.jpeg(image, quality=90), spec) for image in pixels])


def _fit_batch_norm(network: nn.Module, images: Tensor) -> None:
    """Take each layer's statistics over `images`, float32 (N, 3, H, W), in one forward pass."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # the mean over what passes, not a moving average
            layer.reset_running_stats()
    with torch.no_grad():
        network.train()(images)


def _fit_head(network: nn.Module, features: Tensor, labels: Tensor) -> None:
    """Fit the last layer by ridge regression: features (N, D) to LOGIT_OF_CLASS at the label, 0 elsewhere."""
    head = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
    inputs = torch.cat([features, torch.ones(len(features), 1)], dim=1).double()
    wanted = LOGIT_OF_CLASS * nn.functional.one_hot(labels, head.out_features).double()
    gram = inputs.T @ inputs + RIDGE * torch.eye(inputs.shape[1], dtype=torch.float64)
    solved = torch.linalg.solve(gram, inputs.T @ wanted).float()
    with torch.no_grad():
        head.weight.copy_(solved[:-1].T)
        head.bias.copy_(solved[-1])


def _draft(recipe: Recipe, network: nn.Module, known: ImageSet, precision: Precision) -> BundleDraft:
    device = torch.device("cpu")
    described = f"WRN-40-2 of seeded weights for benchmarks, {precision}; it does not classify"
    named = recipe.model_copy(update={"name": bundle_name(precision), "description": described})
    runtime = TorchRuntime(network, recipe.preprocess, device=device, precision=precision)
    scorer = Scorer(runtime, recipe.preprocess, recipe.calibrate.temperature)
    with tempfile.TemporaryDirectory() as folder:
        calibrated = calibrate(recipe.calibrate, scorer, known, recipe.seed, Path(folder))
    origin = provenance(
        named,
        records({"calibration": known}, {}),
        hardware(device),
        {},
        datetime.now(UTC).isoformat(timespec="seconds"),
    )
    draft = draft_bundle(named, network, calibrated.predictor(scorer), calibrated, known, None, origin)
    if precision == "float32":
        return draft
    execution = Execution(precision=precision, tolerance=BFLOAT16_TOLERANCE)
    return BundleDraft(
        draft.manifest.model_copy(update={"execution": execution}),
        draft.weights,
        draft.calibration_scores,
        draft.golden,
    )
