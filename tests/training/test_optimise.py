"""A float32 bundle in a lower precision: what is compared by hand, and the whole way on the tiny recipe's bundle."""

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from model_store.bundle import Bundle, load_bundle, read_manifest
from model_store.errors import BundleNotFoundError
from model_store.networks import NetworkOutput
from model_store.optimisation import Compared, Optimisation
from model_store.predictor import CalibratedScore, Predictor, Scorer, Scores
from model_store.score_specs import ScoreName
from model_store.scores import NegativeEnergy
from model_store.store import SHIPPED, BundleRef, Store
from training import comparison, report, throughput
from training.augment_spec import JpegShare
from training.comparison import Comparison, Measured, compare
from training.config import Recipe
from training.datasets import ImageSet
from training.distributed import ALONE
from training.errors import DataError, OptimisationError
from training.evaluate import NetworkScores, TestSets
from training.optimise import Optimiser, Target, find_source, recipe_of, require_few_flips
from training.pipeline import Run
from training.progress import silent
from training.quantise import quantisation_sample
from training.run_sets import RunSets

CPU = torch.device("cpu")
OodTrain = Callable[..., subprocess.CompletedProcess[str]]


class _Clockwork:
    """A runtime of which every batch takes the same time, on a clock of its own."""

    def __init__(self, name: str, batch_s: float, clock: list[float], in_flight: int = 1) -> None:
        self.name, self.batch_s, self.clock, self.in_flight = name, batch_s, clock, in_flight
        self.started = self.finished = self.most_in_flight = 0

    def start(self, images: np.ndarray) -> int:
        assert images.shape == (64, 2, 2, 3)
        self.started += 1
        self.most_in_flight = max(self.most_in_flight, self.started - self.finished)
        return self.started

    def finish(self, ticket: int) -> None:
        self.finished += 1
        assert ticket == self.finished
        self.clock[0] += self.batch_s


def test_images_per_second_by_hand(monkeypatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: clock[0])
    slow, fast = _Clockwork("slow", 0.125, clock), _Clockwork("fast", 0.0625, clock, in_flight=2)
    speeds = throughput.images_per_second([slow, fast], np.zeros((3, 2, 2, 3), np.uint8))
    assert speeds == (64 / 0.125, 64 / 0.0625)
    assert (slow.most_in_flight, fast.most_in_flight) == (1, 2)
    assert slow.started == slow.finished == 1 + throughput.ROUNDS * 4  # half a second a round


def _scores(energies: list[float], classes: list[int]) -> Scores:
    """Three classes, of which one has all of the energy."""
    logits = torch.full((len(energies), 3), -200.0)
    logits[torch.arange(len(energies)), torch.tensor(classes)] = torch.tensor(energies, dtype=torch.float32)
    return Scorer(None, None, 1.0).from_output(NetworkOutput(logits, torch.zeros(len(energies), 1)))  # type: ignore[arg-type]


def _predictor(name: str, threshold: float) -> Predictor:
    score = CalibratedScore(NegativeEnergy(1.0), np.array([0, 9], np.float32), np.float32(threshold))
    return Predictor(Scorer(_Clockwork(name, 1, [0.0]), None, 1.0), {"negative_energy": score})  # type: ignore[arg-type]


def _images(count: int, labels: list[int]) -> ImageSet:
    pixels = np.zeros((count, 2, 2, 3), np.uint8)
    return ImageSet("set", pixels, np.arange(count), np.array(labels), ("a", "b", "c"), "lossless", "0" * 64)


@pytest.fixture
def figures(monkeypatch) -> Optimisation:
    """Four test images of classes 0, 1, 2, 2, and two OOD images."""
    before = NetworkScores(_scores([9, 8, 3, 7], [0, 1, 2, 2]), {"far": _scores([2, 6], [0, 0])})
    after = NetworkScores(_scores([9, 8.5, 4.5, 7], [0, 1, 1, 2]), {"far": _scores([2.25, 3.75], [1, 0])})
    test = _images(4, [0, 1, 2, 2])
    sets = TestSets(test, {"far": _images(2, [0, 0])}, {})
    monkeypatch.setattr(comparison, "images_per_second", lambda *_: (100.04, 400.06))
    by = Comparison(load_bundle(SHIPPED / "cifar10" / "1", device=CPU), sets, CPU, draws=2, seed=0)
    return compare(Measured(_predictor("eager", 5), before), Measured(_predictor("fast", 4), after), by)


def test_comparison_by_hand(figures: Optimisation) -> None:
    # Flags of float32 at 5: 3 and 2. Of the other at 4: 2.25 and 3.75. At 5: 4.5, 2.25 and 3.75.
    assert (figures.images, figures.runtime, figures.source) == (6, "fast", "cifar10@1")
    manifest = (SHIPPED / "cifar10" / "1" / "manifest.json").read_bytes()
    assert figures.source_sha256 == hashlib.sha256(manifest).hexdigest()
    assert figures.flipped == pytest.approx(100 * 2 / 6, abs=1e-3)  # the third test image, the second OOD image
    assert figures.flipped_uncalibrated == pytest.approx(100 * 1 / 6, abs=1e-3)
    assert figures.changed_classes == pytest.approx(100 * 2 / 6, abs=1e-3)
    assert figures.max_logit_difference == pytest.approx(204.5)  # class 1 of the third, from -200 to 4.5
    assert figures.accuracy == Compared(float32=100, optimised=75)
    # Of the test images all are kept at the least of them, 3 and 4.5, and 6 of the OOD images is above it, then none.
    assert figures.fpr95 == Compared(float32=50, optimised=0)
    assert figures.images_per_second == Compared(float32=100.0, optimised=400.1)
    assert figures.libraries["openvino"]


def _optimisation(**changes: object) -> Optimisation:
    fields = {
        "source": "cifar10@1",
        "source_sha256": "0" * 64,
        "runtime": "openvino-int8-cpu",
        "created": "2026-01-01",
        "code_version": "1",
        "libraries": {},
        "hardware": "a processor, 2 cores",
        "images": 43_200,
        "max_logit_difference": 8.25,
        "changed_classes": 1.5,
        "flipped": 0.5,
        "flipped_uncalibrated": 0.75,
        "accuracy": {"float32": 91.03, "optimised": 91.0},
        "fpr95": {"float32": 8.9, "optimised": 9.25},
        "images_per_second": {"float32": 400.0, "optimised": 3500.0},
        "batch_size": 64,
    }
    return Optimisation.model_validate(fields | changes)


def test_more_flips_than_allowed_are_refused() -> None:
    require_few_flips(_optimisation(flipped=0.5), 0.005)
    with pytest.raises(OptimisationError, match=r"0.51 % of 43,200 verdicts flip .* 0.5 % are allowed: .*flips 0.0051"):
        require_few_flips(_optimisation(flipped=0.51), 0.005)
    require_few_flips(_optimisation(flipped=0.51), 0.0051)


def test_table_of_an_optimisation_by_hand() -> None:
    assert report.optimisation_table(_optimisation()).splitlines() == [
        "|  | cifar10@1, eager float32 | openvino-int8-cpu |",
        "| --- | --- | --- |",
        "| accuracy, % | 91.03 | 91.00 |",
        "| FPR95 of the verdict, mean, % | 8.90 | 9.25 |",
        "| images/s, batches of 64 | 400 | 3,500 |",
        "",
        "Of 43,200 test and OOD images 0.50 % get another verdict, each bundle at its own threshold, 0.75 % had the "
        "threshold stayed, and 1.50 % another class; logits differ by at most 8.25. Timed on a processor, 2 cores.",
    ]
    assert "FPR95" not in report.optimisation_table(_optimisation(fpr95=None))


def test_int8_on_pytorch_is_refused_at_once() -> None:
    with pytest.raises(OptimisationError, match="int8 runs on openvino alone, not on torch-eager"):
        Target("torch-eager", "int8")


def test_quantisation_sees_no_calibration_image(tiny: Recipe, image_sets: Path) -> None:
    sets = RunSets(tiny, image_sets, silent, ALONE)
    sample = quantisation_sample(sets.train, tiny.seed)
    assert len(sample) == 150
    assert not set(sample.rows) & set(sets.held_out.rows)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def folder(quick: Recipe, image_sets: Path, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quick recipe's bundle, tiny@1."""
    published = Run(quick, image_sets, tmp_path_factory.mktemp("run"), CPU, silent, silent).all(store)
    assert published is not None
    return published


@pytest.fixture(scope="module")
def optimiser(folder: Path, store: Store, quick: Recipe, image_sets: Path, tmp_path_factory) -> Optimiser:
    source = find_source("tiny@1", (store,), CPU)
    sets = RunSets(recipe_of(source), image_sets, silent, ALONE)
    return Optimiser(source, sets, Target("openvino", "int8"), CPU, tmp_path_factory.mktemp("int8"), silent)


@pytest.fixture(scope="module")
def int8(optimiser: Optimiser, store: Store, tmp_path_factory) -> Bundle:
    """tiny@1 in int8, published beside others that are as they were."""
    copies = Store(tmp_path_factory.mktemp("copies"))
    shutil.copytree(store.root, copies.root, dirs_exist_ok=True)
    published = copies.publish(optimiser.draft(allowed_flips=1), newer_than=6)
    return load_bundle(published, runtime="auto", device=CPU)


@pytest.mark.slow
def test_int8_bundle_is_the_next_version_and_runs_on_openvino(int8: Bundle, optimiser: Optimiser) -> None:
    manifest = int8.manifest
    assert (manifest.schema_version, manifest.name, manifest.version) == (3, "tiny", 7)
    assert int8.predictor.scorer.runtime.name == "openvino-int8-cpu"
    assert manifest.execution.quantised is not None
    assert manifest.execution.quantised.images == 150
    assert manifest.provenance == optimiser.source.manifest.provenance
    assert manifest.optimisation is not None
    assert manifest.optimisation.source == "tiny@1"
    assert manifest.optimisation.images == 100 + 40 + 38
    assert {"openvino/features.xml", "openvino/features.bin"} <= manifest.files.keys()


@pytest.mark.slow
def test_int8_graph_holds_int8_weights(int8: Bundle) -> None:
    """Of 77,850 parameters but for the last layer's those of convolutions take a byte each."""
    graph = (int8.folder / "openvino/features.xml").read_text()
    assert 'element_type="i8"' in graph
    ours, floats = ((int8.folder / name).stat().st_size for name in ("openvino/features.bin", "weights.safetensors"))
    assert ours < 0.4 * floats


@pytest.mark.slow
def test_every_threshold_follows_from_the_held_out_images_in_int8(int8: Bundle, optimiser: Optimiser) -> None:
    found = int8.predictor.predict_by_all(optimiser.sets.held_out.images)
    source = optimiser.source.manifest
    moved = 0
    for name, verdicts in found.items():
        values, calibration = np.sort(verdicts.value), int8.manifest.calibrations[name]
        np.testing.assert_allclose(int8.predictor.scores[name].calibration_scores, values, rtol=1e-5, atol=1e-5)
        assert (calibration.n, calibration.k) == (50, 2)
        assert calibration.threshold == pytest.approx(np.nextafter(values[1], -np.inf), rel=1e-5, abs=1e-5)
        moved += calibration.threshold != source.calibrations[name].threshold
    assert moved == len(found) == len(get_args(ScoreName))


@pytest.mark.slow
def test_what_is_not_of_the_precision_stays(int8: Bundle, folder: Path) -> None:
    for name in ("weights.safetensors", "scores.safetensors"):
        assert (int8.folder / name).read_bytes() == (folder / name).read_bytes()
    before, after = (load_file(each / "calibration.safetensors") for each in (folder, int8.folder))
    assert before.keys() == after.keys()


@pytest.mark.slow
def test_figures_are_those_of_the_int8_bundle(int8: Bundle, optimiser: Optimiser) -> None:
    tests, manifest = optimiser.sets.tests, int8.manifest
    predictions = int8.predictor.predict(tests.test.images)
    accuracy = 100 * float((predictions.class_id == tests.test.labels).mean())
    assert manifest.optimisation is not None
    assert manifest.evaluation is not None
    assert manifest.optimisation.accuracy.optimised == manifest.evaluation.served["as they are"].accuracy == accuracy
    assert manifest.evaluation.fine_tuned.test_error == pytest.approx(100 - accuracy)
    assert manifest.evaluation.served["as they are"].false_flags == 100 * float(predictions.is_ood.mean())
    missed = 100 * float((~int8.predictor.predict(tests.ood["svhn"].images).is_ood).mean())
    assert manifest.evaluation.fine_tuned.ood["svhn"].missed == pytest.approx(missed)
    before = optimiser.source.predictor.scorer.score(tests.test.images).logits
    difference = (int8.predictor.scorer.score(tests.test.images).logits - before).abs().max()
    assert 0.01 < difference <= manifest.optimisation.max_logit_difference + 1e-5
    source = optimiser.source.manifest.evaluation
    assert source is not None
    assert manifest.evaluation.untuned == source.untuned
    assert manifest.optimisation.accuracy.float32 == pytest.approx(100 - source.fine_tuned.test_error)


@pytest.mark.slow
def test_card_states_the_precision_and_its_figures(int8: Bundle, optimiser: Optimiser) -> None:
    card = report.model_card(int8)
    assert "- Precision: int8, ranges measured on 150 training images; the last layer and all scores float32." in card
    assert "| accuracy, % |" in card
    assert "Precision:" not in report.model_card(optimiser.source)


@pytest.mark.slow
def test_a_draft_with_too_many_flips_is_none(optimiser: Optimiser, int8: Bundle) -> None:
    with pytest.raises(OptimisationError, match="verdicts flip on openvino-int8-cpu"):
        optimiser.draft(allowed_flips=-1)


@pytest.mark.slow
def test_other_images_are_refused(optimiser: Optimiser, image_sets: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(image_sets, data)
    archive = dict(np.load(data / "svhn" / "test.npz"))
    archive["images"][3, 5, 7, 1] ^= 1
    np.savez(data / "svhn" / "test.npz", **archive)
    sets = RunSets(optimiser.sets.recipe, data, silent, ALONE)
    with pytest.raises(DataError, match=r"svhn/test in .* has fingerprint [0-9a-f]{64}; .* as ood svhn"):
        replace(optimiser, sets=sets).draft(1)


@pytest.mark.slow
def test_calibration_images_sent_otherwise_are_refused(optimiser: Optimiser, image_sets: Path) -> None:
    """Another split, or JPEG where there was none, has the same fingerprints, and other scores."""
    recipe = optimiser.sets.recipe
    jpeg = recipe.calibrate.model_copy(update={"jpeg": JpegShare(share=1.0, quality_min=50, quality_max=60)})
    for changes in ({"calibrate": jpeg}, {"seed": 1}):
        sets = RunSets(recipe.model_copy(update=changes), image_sets, silent, ALONE)
        with pytest.raises(DataError, match=r"\w+ of the 50 calibration images differs by .* is another here"):
            replace(optimiser, sets=sets).draft(1)


@pytest.mark.slow
def test_command_publishes_bfloat16_for_both_runtimes(
    ood_train: OodTrain, store: Store, folder: Path, image_sets: Path, tmp_path: Path
) -> None:
    """Of a network that knows little, some verdicts hang on the last bit: all may flip."""
    copies = Store(tmp_path / "copies")
    shutil.copytree(store.root, copies.root)
    finished = ood_train(
        *("optimize", "tiny", "--precision", "bfloat16", "--runtime", "torch-eager", "--allow-flips", "1"),
        *("--data", image_sets, "--store", copies.root, "--device", "cpu"),
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[-1] == f"tiny@2 {copies.root / 'tiny' / '2'}"
    assert (tmp_path / "runs/tiny@1-torch-eager-bfloat16/optimisation.json").exists()
    manifest = read_manifest(copies.resolve(BundleRef("tiny")))
    assert manifest.execution.precision == "bfloat16"
    names = [
        load_bundle(copies.resolve(BundleRef("tiny", 2)), runtime=runtime, device=CPU).predictor.scorer.runtime.name
        for runtime in ("torch-eager", "auto")
    ]
    assert names[0] == "torch-eager-bfloat16-cpu"
    assert names[1] in ("openvino-bfloat16-cpu", "torch-eager-bfloat16-cpu")
    again = ood_train("optimize", "tiny", "--precision", "int8", "--data", image_sets, "--store", copies.root)
    assert again.returncode == 1
    assert "tiny@2 is in bfloat16 already, made of tiny@1: name that" in again.stderr


def test_bundle_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError, match="no bundle nothing in "):
        find_source("nothing", (Store(tmp_path),), CPU)
