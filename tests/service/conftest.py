"""Real servers on real sockets, with the shipped bundle and two made from it."""

import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from live import BUNDLE, Gate, Process, Running, running, serving
from PIL import Image
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors

import service.engine
import service.models
from model_store import calibration, images
from model_store.bundle import WEIGHTS, load_bundle
from model_store.networks import build_network
from model_store.score_specs import ScoreName
from model_store.scores import Head
from model_store.store import Store
from service.settings import Settings
from training.calibrate import calibrate
from training.config import Recipe
from training.datasets import load_set
from training.fit_scores import fit_scores
from training.publish import draft_bundle


@pytest.fixture(scope="session")
def cache_dir(openvino_cache: Path) -> Path:
    return openvino_cache


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of cifar10@1, the shipped one; strict@2, which flags half of all; broken@1, whose weights are cut."""
    store = tmp_path_factory.mktemp("store")
    for name, version in (("cifar10", 1), ("strict", 2), ("broken", 1)):
        folder = store / name / str(version)
        shutil.copytree(BUNDLE, folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest |= {"name": name, "version": version}
        if name == "strict":
            spec = manifest["calibrations"]["negative_energy"]
            scores = load_file(folder / "calibration.safetensors")["negative_energy"]
            k = calibration.choose_k(spec["method"], len(scores), 0.5)
            threshold = calibration.threshold(scores, k)
            edges = calibration.histogram_edges(scores, threshold)
            spec |= {"alpha": 0.5, "k": k, "threshold": float(threshold), "histogram_edges": edges}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    weights = store / "broken" / "1" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return store


@pytest.fixture(scope="session")
def scored_bundles(tmp_path_factory: pytest.TempPathFactory, image_sets: Path) -> Path:
    """A store of the shipped network with further scores: every@1 has all, by-knn@1 a few, and KNN is its verdict."""
    shipped, store = load_bundle(BUNDLE, device=torch.device("cpu")), Store(tmp_path_factory.mktemp("scored"))
    origin, scorer = shipped.manifest.provenance, shipped.predictor.scorer
    network = build_network(shipped.manifest.network).eval()
    network.load_state_dict(load_tensors(BUNDLE / WEIGHTS))
    images = load_set("cifar10/train", image_sets, shipped.manifest.preprocess, None)
    train, held_out = images.subset(np.arange(0, 200, 2)), images.subset(np.arange(1, 200, 2))
    specs = [{"kind": kind} for kind in get_args(ScoreName) if kind not in ("negative_energy", "knn")]
    knn = {"kind": "knn", "k": 5, "reference_rows": 100}
    for name, scores, verdict in (
        ("every", [*specs, knn], "negative_energy"),
        ("by-knn", [specs[0], knn], "knn"),
    ):
        chosen = {"name": name, "scores": scores, "calibrate": {"alpha": 0.2, "verdict": verdict}}
        recipe = Recipe.model_validate(origin.recipe | chosen)
        further = fit_scores(recipe.scores, scorer, train, Head.of(network))
        calibrated = calibrate(recipe.calibrate, scorer, held_out, recipe.seed, store.root / "calibrate", further)
        predictor = calibrated.predictor(scorer)
        store.publish(draft_bundle(recipe, network, predictor, calibrated, held_out, None, origin))
    return store.root


@pytest.fixture(scope="session")
def settings(cache_dir: Path) -> Callable[..., Settings]:
    """Settings for a test: small batches, so that the start is quick, and a bundle with one score."""
    ours = {"cache_dir": cache_dir, "max_batch_size": 4, "decode_threads": 2, "models": ("cifar10@1",)}
    return lambda **changes: Settings(**(ours | changes))


@pytest.fixture(scope="session")
def server(settings: Callable[..., Settings]) -> Iterator[Running]:
    """A server of cifar10@1 with default limits."""
    with running(settings()) as started:
        yield started


@pytest.fixture(scope="session")
def pngs(image_sets: Path) -> list[bytes]:
    """All 100 in-distribution test images, encoded."""
    return [path.read_bytes() for path in sorted((image_sets / "cifar10" / "test").rglob("*.png"))]


@pytest.fixture(scope="session")
def pixels(pngs: list[bytes]) -> np.ndarray:
    """The test images as the model takes them."""
    spec = load_bundle(BUNDLE).manifest.preprocess
    return np.stack([images.load(png, spec) for png in pngs])


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Bundles loaded from now on run behind this gate: it is open for warm-up and must be cleared to hold.

    Every batch size is used, whatever it took on this machine.
    """
    made = Gate()
    made.open.set()

    def load(*args: Any, **kwargs: Any) -> Any:
        bundle = load_bundle(*args, **kwargs)
        made.install(bundle.predictor.scorer.runtime)
        return bundle

    monkeypatch.setattr(service.models, "load_bundle", load)
    monkeypatch.setattr(service.engine, "worthwhile", tuple)
    yield made
    made.open.set()


@pytest.fixture
def serve(tmp_path: Path, cache_dir: Path) -> Callable[..., AbstractContextManager[Process]]:
    """Start `ood-serve`, or another command, on a free port, and wait for its greeting."""
    return partial(serving, tmp_path / "log", cache_dir)


@pytest.fixture(scope="session")
def image_of() -> Callable[[int], bytes]:
    """Encode a plain grey image."""

    def make(level: int) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (32, 32), (level, level, level)).save(file, "PNG")
        return file.getvalue()

    return make
