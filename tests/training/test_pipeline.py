"""The tiny recipe, whole though quick: as a library, as a command, and killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy.special import logsumexp

from model_store import images
from model_store.bundle import load_bundle
from model_store.errors import ManifestError
from model_store.manifest import TorchvisionSpec
from model_store.score_specs import KnnSpec, ScoreName, VimSpec
from model_store.scores import Head
from model_store.store import SHIPPED, BundleRef, Store
from training import encode, report
from training.augment_spec import JpegShare
from training.bundle_size import recipe_parts
from training.calibrate import calibrate
from training.cli import show_data
from training.config import RECIPES, Recipe
from training.datasets import load_set, locate
from training.errors import DataError, RecipeError, ResumeError
from training.evaluate import predict_files
from training.evaluate_bundle import evaluate_bundle
from training.metrics import auroc
from training.pipeline import Run
from training.progress import silent
from training.run_folder import require_writable
from training.stage_specs import PublishSpec

CPU = torch.device("cpu")
OodTrain = Callable[..., subprocess.CompletedProcess[str]]
OOD_TRAIN = (sys.executable, "-c", "from training.cli import main; main()")


@pytest.fixture(scope="module")
def run(quick: Recipe, image_sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(quick, image_sets, tmp_path_factory.mktemp("run"), CPU, silent, silent)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def folder(run: Run, store: Store) -> Path:
    published = run.all(store)
    assert published is not None
    return published


def test_run_publishes_a_bundle_of_what_it_trained(run: Run, store: Store, folder: Path) -> None:
    assert store.resolve(BundleRef("tiny")) == folder
    trained, published = (
        load_file(run.folder / "finetune/weights.safetensors"),
        load_file(folder / "weights.safetensors"),
    )
    assert all(torch.equal(trained[key], published[key]) for key in trained.keys() | published.keys())
    manifest = load_bundle(folder).manifest
    assert manifest.provenance.recipe == run.recipe.model_dump(mode="json")
    roles = {record.role: record.images for record in manifest.provenance.data}
    assert roles == {
        "train": 150,
        "calibration": 50,
        "outliers": 150,
        "test": 100,
        "ood svhn": 40,
        "ood textures": 38,
    }
    assert [golden.file.rpartition(".")[2] for golden in manifest.golden] == ["png", "jpg", "jpg"] * 3 + ["png"]


def test_evaluation_leaves_the_manifests_account_of_the_sets(run: Run, folder: Path) -> None:
    left = json.loads((run.folder / "evaluate/sets.json").read_text())
    assert left == [record.model_dump() for record in load_bundle(folder).manifest.provenance.data]


def test_finetuning_moved_the_energies_apart(run: Run, folder: Path) -> None:
    sets = run.sets.tests
    outliers = load_set("outliers/train", run.data_dir, run.recipe.preprocess, None)

    def gap(stage: str) -> float:
        scorer = run._scorer(stage)
        return float(
            scorer.score(sets.test.images).negative_energy.mean() - scorer.score(outliers.images).negative_energy.mean()
        )

    assert gap("finetune") > gap("pretrain")


def test_threshold_is_the_conformal_one_of_the_held_out_images(run: Run, folder: Path) -> None:
    bundle = load_bundle(folder)
    held_out = run.sets.held_out
    scores = np.sort(bundle.predictor.scorer.score(held_out.images).negative_energy)
    np.testing.assert_allclose(bundle.predictor.calibration_scores, scores, atol=1e-5)
    calibration = bundle.manifest.calibrations["negative_energy"]
    assert (calibration.n, calibration.k) == (50, 2)  # floor(0.05 * 51)
    assert int(bundle.predictor.predict(held_out.images).is_ood.sum()) == 1  # those below the second


def test_every_score_is_fitted_on_the_training_images_as_they_are(run: Run, folder: Path) -> None:
    """By the definitions, from features of the un-augmented training images: one score of each family."""
    bundle = load_bundle(folder)
    train, held_out = run.sets.train, run.sets.held_out
    scorer, head = bundle.predictor.scorer, Head.of(run._network("finetune"))
    seen, new = scorer.score(train.images), scorer.score(held_out.images)
    found = bundle.predictor.predict_by_all(held_out.images)
    assert list(found) == list(get_args(ScoreName))
    cut = np.minimum(new.features.numpy(), np.percentile(seen.features.numpy(), 90))
    expected = logsumexp(cut @ head.weight.numpy().T + head.bias.numpy(), axis=1)
    np.testing.assert_allclose(found["react"].value, expected, rtol=1e-4)
    reference = load_file(folder / "scores.safetensors")["knn.reference"].numpy()
    units = seen.features.numpy() / np.linalg.norm(seen.features.numpy(), axis=1, keepdims=True)
    nearest = np.linalg.norm(reference[:, None] - units[None], axis=2)
    assert nearest.min(axis=1).max() < 1e-4  # each is a training image's,
    rows = nearest.argmin(axis=1)
    assert np.bincount(train.labels[rows]).tolist() == [10] * 10  # ten of each class
    query = new.features.numpy() / np.linalg.norm(new.features.numpy(), axis=1, keepdims=True)
    distances = np.sort(np.linalg.norm(query[:, None] - reference[None], axis=2), axis=1)
    np.testing.assert_allclose(found["knn"].value, -distances[:, 4], atol=1e-4)
    means = np.stack([seen.features.double().numpy()[train.labels == label].mean(axis=0) for label in range(10)])
    np.testing.assert_allclose(load_file(folder / "scores.safetensors")["mahalanobis.class_means"], means, atol=1e-4)


def test_every_score_has_the_conformal_threshold_of_the_held_out_images(run: Run, folder: Path) -> None:
    bundle, held_out = load_bundle(folder), run.sets.held_out
    calibrations = bundle.manifest.calibrations
    for name, found in bundle.predictor.predict_by_all(held_out.images).items():
        assert (calibrations[name].n, calibrations[name].k) == (50, 2)
        assert bundle.predictor.scores[name].threshold < np.sort(found.value)[1]
        assert found.is_ood.sum() <= 1  # those below the second, of which ties leave none
    written = json.loads((run.folder / "calibrate/calibration.json").read_text())
    assert written["verdict"] == "negative_energy"
    assert written["calibrations"] == {name: spec.model_dump(mode="json") for name, spec in calibrations.items()}


def test_bundle_with_another_verdict_is_calibrated_evaluated_and_published_by_it(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(run.folder, tmp_path / "run")
    by_vim = run.recipe.calibrate.model_copy(update={"verdict": "vim"})
    recipe = Recipe.model_validate(run.recipe.model_copy(update={"calibrate": by_vim}).model_dump())
    published = Run(recipe, run.data_dir, tmp_path / "run", CPU, silent, silent).all(Store(tmp_path / "store"))
    assert published is not None
    bundle, usual = load_bundle(published), load_bundle(folder)
    assert bundle.manifest.verdict == "vim"
    assert bundle.manifest.calibrations == usual.manifest.calibrations
    found = usual.predictor.predict_by_all(run.sets.tests.test.images)
    np.testing.assert_array_equal(bundle.predictor.predict(run.sets.tests.test.images).is_ood, found["vim"].is_ood)
    evaluation = bundle.manifest.evaluation
    assert evaluation is not None
    assert evaluation.served["as they are"].false_flags == pytest.approx(found["vim"].is_ood.sum())
    svhn = usual.predictor.predict_by_all(run.sets.tests.far_ood["svhn"].images)["vim"]
    assert evaluation.fine_tuned.ood["svhn"].missed == pytest.approx(100 * (~svhn.is_ood).mean(), abs=1e-3)
    card = report.model_card(bundle)
    assert f"flagged means vim <= {bundle.manifest.calibrations['vim'].threshold:.4f}" in card
    assert f"negative energy <= {bundle.manifest.calibrations['negative_energy'].threshold:.4f}, max softmax <=" in card


def test_scores_that_cannot_be_fitted_are_refused_before_training(
    tiny: Recipe, image_sets: Path, tmp_path: Path
) -> None:
    for spec, message in (
        (KnnSpec(k=151, reference_rows=200), "150 training images .* k = 151"),
        (VimSpec(residual_dimension=64), "64 of 64 features"),
    ):
        run = Run(tiny.model_copy(update={"scores": (spec,)}), image_sets, tmp_path, CPU, silent, silent)
        with pytest.raises(DataError, match=message):
            run.all(Store(tmp_path / "store"))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_evaluation_counts_what_the_predictor_says(run: Run, folder: Path) -> None:
    bundle, test = load_bundle(folder), run.sets.tests.test
    evaluation = bundle.manifest.evaluation
    predictions = bundle.predictor.predict(test.images)
    assert evaluation is not None
    assert evaluation.fine_tuned.test_error == pytest.approx(100 - (predictions.class_id == test.labels).sum())
    served = evaluation.served
    assert list(served) == ["as they are", *(f"JPEG quality {q}" for q in (95, 90, 75)), "300 px photograph"]
    assert served["as they are"].accuracy == pytest.approx(100 - evaluation.fine_tuned.test_error)
    assert served["as they are"].false_flags == pytest.approx(predictions.is_ood.sum())
    svhn = bundle.predictor.predict(run.sets.tests.far_ood["svhn"].images)
    assert evaluation.fine_tuned.ood["svhn"].missed == pytest.approx(100 * (~svhn.is_ood).mean(), abs=1e-3)
    assert set(evaluation.odd_inputs) == {"black", "white", "noise", "digits", "screenshot"}
    assert evaluation.untuned is not None
    assert evaluation.untuned != evaluation.fine_tuned


def test_every_score_of_the_bundle_is_evaluated(run: Run, folder: Path) -> None:
    """By the predictor of the published files, against the figures beside it where there are any."""
    bundle, sets = load_bundle(folder), run.sets.tests
    evaluation = bundle.manifest.evaluation
    assert evaluation is not None
    assert list(evaluation.scores) == list(get_args(ScoreName))
    test = bundle.predictor.predict_by_all(sets.test.images)
    for ood, image_set in sets.ood.items():
        found = bundle.predictor.predict_by_all(image_set.images)
        for name, score in evaluation.scores.items():
            assert score.false_flags == pytest.approx(test[name].is_ood.sum()), name
            assert score.ood[ood].missed == pytest.approx(100 * (~found[name].is_ood).mean(), abs=1e-3), name
            expected = auroc(in_distribution=test[name].value, out_of_distribution=found[name].value)
            assert score.ood[ood].auroc == pytest.approx(100 * expected, abs=0.05), name
        beside = evaluation.fine_tuned.ood[ood]
        assert evaluation.scores["negative_energy"].ood[ood].missed == beside.missed
        for name, figures in (("negative_energy", beside.energy), ("max_softmax", beside.softmax)):
            assert evaluation.scores[name].ood[ood].model_dump(exclude={"missed"}) == figures.model_dump()
    card = report.model_card(bundle)
    assert report.scores_table(evaluation, "negative_energy") in card
    assert "| **negative energy (verdict)** |" in card


def test_bundle_that_was_published_before_every_score_was_evaluated_loads(folder: Path, tmp_path: Path) -> None:
    older = tmp_path / "tiny" / "1"
    shutil.copytree(folder, older)
    fields = json.loads((older / "manifest.json").read_text())
    del fields["evaluation"]["scores"]
    (older / "manifest.json").write_text(json.dumps(fields))
    loaded = load_bundle(older)
    assert loaded.manifest.evaluation is not None
    assert loaded.manifest.evaluation.scores == {}
    assert "(verdict)" not in report.model_card(loaded)
    fields["evaluation"]["scores"] = {"gen": load_bundle(folder).manifest.evaluation.scores["gen"].model_dump()}
    (older / "manifest.json").write_text(json.dumps(fields))
    with pytest.raises(ManifestError, match=r"evaluation\.scores are of gen; the scores are negative_energy, max_so"):
        load_bundle(older)


def test_published_bundle_evaluates_to_the_figures_in_its_manifest(run: Run, folder: Path) -> None:
    bundle = load_bundle(folder)
    assert bundle.manifest.evaluation is not None
    again = evaluate_bundle(bundle, run)
    assert again == bundle.manifest.evaluation.model_copy(update={"untuned": None})


def test_evaluation_leaves_tables_and_a_picture(run: Run, folder: Path) -> None:
    stage = run.folder / "evaluate"
    evaluation = json.loads((stage / "evaluation.json").read_text())
    tables = (stage / "tables.md").read_text()
    assert f"{evaluation['served']['JPEG quality 90']['false_flags']:.2f}" in tables
    with Image.open(stage / "histograms.png") as picture:
        assert picture.size == (1100, 748)
        assert len(np.unique(np.asarray(picture.convert("RGB")) @ [1 << 16, 1 << 8, 1])) > 50


def test_finished_run_repeats_nothing(run: Run, store: Store, folder: Path) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("trained again")

    again = Run(run.recipe, run.data_dir, run.folder, CPU, fail, silent)
    again.pretrain()
    again.finetune()
    assert again.publish(store) == folder
    assert len(store.refs()) == 1


def test_bundle_names_the_hardware_that_trained_it_too(run: Run, folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run.folder, tmp_path / "run")
    path = copy / "pretrain/history.json"
    first, *others = json.loads(path.read_text())
    path.write_text(json.dumps([first | {"hardware": "Some GPU"}, *others]))
    published = replace(run, folder=copy).publish(Store(tmp_path / "store"))
    here = load_bundle(folder).manifest.provenance.hardware
    assert load_bundle(published).manifest.provenance.hardware == f"Some GPU; {here}"


def test_margins_that_were_chosen_are_not_chosen_again(tiny: Recipe, image_sets: Path, tmp_path: Path) -> None:
    """A published recipe has them."""
    selection = {"margin_in": (-8,), "margin_out": (-3,), "epochs": 1, "validation_images": 20}
    chosen = {"chosen": {"margin_in": -8, "margin_out": -3}}
    tables = tiny.model_dump(exclude_none=True)
    tables["finetune"] |= {"objective": {"kind": "energy_bounded"}, "selection": selection | chosen}
    run = Run(Recipe.model_validate(tables), image_sets, tmp_path, CPU, silent, silent)
    with pytest.raises(RecipeError, match=r"has its margins chosen, in-8_out-3; take finetune\.selection\.chosen away"):
        run.select()
    assert not list(tmp_path.iterdir())


def test_publish_before_evaluate_is_refused(tiny: Recipe, image_sets: Path, tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match=r"run the stage \w+ first"):
        Run(tiny, image_sets, tmp_path, CPU, silent, silent).publish(Store(tmp_path))


def test_changed_recipe_does_not_pass_for_what_was_trained(run: Run, store: Store, folder: Path) -> None:
    def changed(**stage: Any) -> Run:
        return Run(run.recipe.model_copy(update=stage), run.data_dir, run.folder, CPU, silent, silent)

    slower = run.recipe.finetune.model_copy(update={"learning_rate": 0.5})
    with pytest.raises(ResumeError, match=r"finetune\.learning_rate = 0\.01, now 0\.5"):
        changed(finetune=slower).calibrate()
    stricter = run.recipe.calibrate.model_copy(update={"alpha": 0.1})
    with pytest.raises(ResumeError, match=r"calibrate\.alpha = 0\.05, now 0\.1"):
        changed(calibrate=stricter).publish(store)
    nearer = tuple(KnnSpec(k=4, reference_rows=100) if spec.kind == "knn" else spec for spec in run.recipe.scores)
    with pytest.raises(ResumeError, match=r"scores\.knn\.k = 5, now 4"):
        changed(scores=nearer).publish(store)
    with pytest.raises(ResumeError, match=r"scores\.energy_mahalanobis = .*now None"):
        changed(scores=run.recipe.scores[:-1]).publish(store)


def test_bundle_that_its_files_make_too_large_is_not_published(run: Run, folder: Path, tmp_path: Path) -> None:
    """What is known of it before training is just small enough, and is what was published."""
    parts = recipe_parts(run.recipe, 150, 50)
    further = parts.keys() & set(get_args(ScoreName))
    for file, counted in (("weights", {"weights"}), ("calibration", {"calibration scores"}), ("scores", further)):
        stored = load_file(folder / f"{file}.safetensors")
        assert sum(tensor.nbytes for tensor in stored.values()) == sum(parts[name] for name in counted)
    limit = PublishSpec(max_bytes=sum(parts.values()))
    limited = replace(run, recipe=run.recipe.model_copy(update={"publish": limit}))
    limited.check()
    with pytest.raises(RecipeError, match=r"above publish\.max_bytes = [\d,]+: .*golden images"):
        limited.publish(Store(tmp_path))
    assert not list(tmp_path.iterdir())


def test_too_few_calibration_images_are_refused(run: Run, folder: Path, tmp_path: Path) -> None:
    held_out = run.sets.held_out.subset(np.arange(18))
    with pytest.raises(DataError, match=r"19.*calibration_images"):
        calibrate(run.recipe.calibrate, run._scorer("finetune"), held_out, 0, tmp_path)


def test_threshold_is_of_the_images_as_they_are_sent(run: Run, folder: Path, tmp_path: Path) -> None:
    jpeg = JpegShare(share=1, quality_min=10, quality_max=10)
    spec, scorer, held_out = run.recipe.calibrate, run._scorer("finetune"), run.sets.held_out
    found = calibrate(spec.model_copy(update={"jpeg": jpeg}), scorer, held_out, 0, tmp_path)
    sent = [encode.jpeg(image, 10) for image in held_out.images]
    expected = scorer.score(np.stack([images.load(file, run.recipe.preprocess) for file in sent])).negative_energy
    np.testing.assert_array_equal(found.scores["negative_energy"].calibration_scores, np.sort(expected))


def test_recipe_without_calibration_is_evaluated_and_not_published(
    tiny: Recipe, image_sets: Path, tmp_path: Path
) -> None:
    quick = {"epochs": 1}
    recipe = tiny.model_copy(
        update={
            "data": tiny.data.model_copy(update={"calibration_images": 0}),
            "pretrain": tiny.pretrain.model_copy(update=quick),
            "finetune": tiny.finetune.model_copy(update=quick),
        }
    )
    run = Run(recipe, image_sets, tmp_path / "run", CPU, silent, silent)
    assert run.all(Store(tmp_path / "store")) is None
    evaluation = json.loads((tmp_path / "run/evaluate/evaluation.json").read_text())
    assert evaluation["served"] == {}
    assert evaluation["fine_tuned"]["ood"]["svhn"]["missed"] is None
    with pytest.raises(RecipeError, match="holds out no calibration images"):
        run.calibrate()


def test_run_without_a_set_of_outliers_publishes_what_it_chose_and_made(
    tiny: Recipe, image_sets: Path, tmp_path: Path
) -> None:
    """An epoch a stage; the folder of images has no outliers."""
    tables = tiny.model_dump(exclude_none=True)
    tables["data"] |= {"outliers": "synthetic", "far_ood": {"textures": "textures/test"}}
    tables["pretrain"] |= {"epochs": 1}
    tables["finetune"] |= {
        "epochs": 1,
        "objective": {"kind": "energy_bounded"},
        "selection": {"margin_in": (-8,), "margin_out": (-3, 1), "epochs": 1, "validation_images": 20},
    }
    recipe = Recipe.model_validate(tables)
    for source in ("cifar10/train", "cifar10/test", "textures/test"):
        found = locate(source, image_sets)
        assert found is not None
        (tmp_path / "data" / source).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / source).parent.joinpath(found.name).symlink_to(found)
    run = Run(recipe, tmp_path / "data", tmp_path / "run", CPU, silent, silent)
    folder = run.all(Store(tmp_path / "store"))
    assert folder is not None
    origin = load_bundle(folder).manifest.provenance
    records = {record.role: record for record in origin.data}
    assert records.keys() == {"train", "calibration", "synthetic outliers", "test", "ood textures"}
    made_of = records["synthetic outliers"]
    assert (made_of.name, made_of.images, made_of.sha256) == ("cifar10/train", 150, records["train"].sha256)
    assert set(origin.stage_seconds) == {"pretrain", "select", "finetune"}
    published = Recipe.model_validate(origin.recipe)
    chosen = json.loads((run.folder / "select/choice.json").read_text())["chosen"]
    assert str(published.settled().finetune.objective.margins) == chosen
    assert published.model_copy(update={"finetune": recipe.finetune}) == recipe
    assert report.model_card(load_bundle(folder)).count("synthetic outliers") == 1


def test_files_are_predicted_as_their_pixels(run: Run, folder: Path) -> None:
    predictor = load_bundle(folder).predictor
    files = sorted((run.data_dir / "cifar10/test/ship").iterdir())
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    found = predict_files(predictor, (file.read_bytes() for file in files))
    np.testing.assert_array_equal(found.negative_energy, predictor.predict(pixels).negative_energy)


ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": "200"}


@pytest.mark.slow
def test_killed_command_resumes_to_the_same_weights(
    ood_train: OodTrain, folder: Path, image_sets: Path, quick_file: Path, tmp_path: Path
) -> None:
    """A real kill -9, in the middle of an epoch of each training stage; what goes on then is another process."""
    command = ("run", quick_file, "--data", image_sets)
    for line in ("pretrain epoch 2/3", "finetune epoch 1/2"):
        with subprocess.Popen(
            [*OOD_TRAIN, *command],
            cwd=tmp_path,
            env=ENVIRONMENT,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        ) as process:
            assert process.stderr is not None
            assert any(line in printed for printed in process.stderr)
            process.send_signal(signal.SIGKILL)
    finished = ood_train(*command)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() == f"tiny@1 {Path('store/tiny/1')}"
    assert "pretrain epoch" not in finished.stderr
    assert "finetune epoch 1/2" not in finished.stderr
    again = load_file(tmp_path / "store/tiny/1/weights.safetensors")
    assert all(torch.equal(value, again[key]) for key, value in load_file(folder / "weights.safetensors").items())


@pytest.mark.slow
def test_interrupted_command_says_what_is_kept(
    image_sets: Path, tmp_path: Path, interrupted: Callable[..., tuple[int, str]]
) -> None:
    status, said = interrupted("pretrain", "tiny", "--data", image_sets, once="pretrain epoch 2/12")
    assert status == 130
    kept = len(torch.load(tmp_path / "runs/tiny/pretrain/checkpoint.pt", weights_only=True)["history"])
    assert f"interrupted: pretrain is kept up to epoch {kept} of 12, in runs/tiny; run the same command" in said
    assert "Traceback" not in said


def test_what_is_kept_is_the_last_stage_begun(run: Run, folder: Path, tmp_path: Path) -> None:
    def elsewhere() -> str:
        return replace(run, folder=tmp_path).kept()

    assert elsewhere() == "no epoch was finished"
    shutil.copytree(run.folder / "pretrain", tmp_path / "pretrain")
    assert elsewhere().startswith(f"pretrain is done, in {tmp_path / 'pretrain'}; ")
    shutil.copytree(run.folder / "finetune", tmp_path / "finetune")
    (tmp_path / "finetune/weights.safetensors").unlink()
    assert elsewhere().startswith(f"finetune is kept up to epoch 2 of 2, in {tmp_path}; ")


def test_too_few_calibration_images_are_refused_before_anything_is_read(tiny: Recipe, tmp_path: Path) -> None:
    recipe = tiny.model_copy(update={"data": tiny.data.model_copy(update={"calibration_images": 18})})
    with pytest.raises(DataError, match=r"n is 18; .*at least 19 .*raise data\.calibration_images"):
        Run(recipe, tmp_path / "nowhere", tmp_path, CPU, silent, silent)


@pytest.mark.parametrize("stage", ["check", "pretrain"])
def test_network_that_does_not_take_the_images_is_refused_before_anything_is_read(
    tiny: Recipe, tmp_path: Path, stage: str
) -> None:
    recipe = tiny.model_copy(update={"network": TorchvisionSpec(name="alexnet", num_classes=10)})
    run = Run(recipe, tmp_path / "nowhere", tmp_path, CPU, silent, silent)
    with pytest.raises(
        RecipeError, match=r"alexnet cannot be trained on images of 32x32 \(.*too small\); take another"
    ):
        getattr(run, stage)()


def test_batch_of_one_that_the_network_cannot_be_trained_on_is_refused_before_training(
    tiny: Recipe, image_sets: Path, tmp_path: Path
) -> None:
    """Batch norm over a map of one pixel, as of a ResNet on 32x32, needs two images."""
    assert tiny.pretrain is not None
    left_one = tiny.pretrain.model_copy(update={"batch_size": 149})
    network = TorchvisionSpec(name="resnet18", num_classes=10)
    recipe = tiny.model_copy(update={"network": network, "pretrain": left_one, "scores": ()})
    run = Run(recipe, image_sets, tmp_path, torch.device("cpu"), silent, silent)
    assert len(run.sets.train) == 150
    with pytest.raises(RecipeError, match=r"resnet18 .* 32x32, one of them alone .*change pretrain\.batch_size"):
        run.check()
    Run(
        tiny.model_copy(update={"pretrain": left_one}), image_sets, tmp_path, torch.device("cpu"), silent, silent
    ).check()


def test_run_command_starts_from_a_bundle_of_its_own_store(
    ood_train: OodTrain,
    store: Store,
    folder: Path,
    image_sets: Path,
    tmp_path: Path,
    further: Callable[[str], Path],
) -> None:
    shutil.copytree(store.root, tmp_path / "mine")
    finished = ood_train("run", further("tiny@1"), "--data", image_sets, "--store", "mine")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() == f"tiny@2 {Path('mine/tiny/2')}"
    assert f"starting from {Path('mine/tiny/1')}" in finished.stderr
    taken = load_file(
        tmp_path / "runs/further/pretrain/weights.safetensors"
    )  # by the file's name; the recipe's is tiny
    assert all(torch.equal(value, taken[key]) for key, value in load_file(folder / "weights.safetensors").items())


def test_pretrain_command_names_the_stores_without_the_start_bundle(
    ood_train: OodTrain, image_sets: Path, further: Callable[[str], Path]
) -> None:
    finished = ood_train("pretrain", further("tiny@7"), "--data", image_sets, "--store", "mine")
    assert finished.returncode == 1
    assert f"start is tiny@7; it is in none of mine, {SHIPPED}" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_start_bundle_may_be_one_that_ships(
    ood_train: OodTrain, image_sets: Path, further: Callable[[str], Path]
) -> None:
    """It is found, and then refused: its network is another than the tiny recipe's."""
    finished = ood_train("pretrain", further("cifar10@1"), "--data", image_sets)
    assert finished.returncode == 1
    assert "cifar10@1 has network WideResNetSpec(kind='wide_resnet', depth=16" in finished.stderr


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("run", "nothing"), ("no recipe at nothing",)),
        (("run", "tiny", "--data", "nowhere"), ("no set 'cifar10/train' in nowhere", "sub-folder")),
        (("finetune", "tiny", "--data", "IMAGES"), ("run the stage pretrain first",)),
        (("run", "tiny", "--data", "IMAGES", "--device", "cuda:99"), ("cuda:99",)),
        (("run", "tiny", "--data", "IMAGES", "--device", "abacus"), ("abacus",)),
        (("evaluate", "tiny", "--data", "IMAGES", "--bundle", "nothing@3"), ("no bundle nothing@3",)),
        (("run", "tiny", "--data", "IMAGES", "--device", "mps"), ("mps",)),
        (("card", "cifar10", "--readme", "NO-MARKERS"), ("results",)),
        (("card", "cifar10", "--readme", "missing.md"), ("missing.md",)),
        (("card", "cifar10", "--readme", "latin-1.md"), ("latin-1.md is not UTF-8", "saved as UTF-8")),
        (("card", "cifar10", "--out", "/dev/full"), ("/dev/full cannot be written (No space left on device)",)),
        (("run", "tiny", "--data", "IMAGES", "--store", "plain.md"), ("plain.md/tiny cannot be written (Not a dir",)),
        (("run", "tiny", "--data", "IMAGES", "--store", "/proc/store"), ("/proc/store/tiny cannot be written (",)),
        (("run", "tiny", "--data", "IMAGES", "--run", "plain.md"), ("plain.md cannot be written (", "another place")),
        (("run", "tiny", "--data", "IMAGES", "--run", "/proc/run"), ("/proc/run cannot be written (",)),
        (("data", "tiny", "--data", 300 * "x"), ("File name too long: 'xxx",)),
    ],
)
def test_bad_command_gets_a_message_not_a_traceback(
    ood_train: OodTrain, image_sets: Path, tmp_path: Path, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    (tmp_path / "plain.md").write_text("nothing to replace\n")
    (tmp_path / "latin-1.md").write_bytes("naïve\n".encode("latin-1"))
    named = {"IMAGES": str(image_sets), "NO-MARKERS": "plain.md"}
    finished = ood_train(*(named.get(argument, argument) for argument in arguments))
    assert finished.returncode in (1, 2)
    for part in parts:
        assert part in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not list(tmp_path.rglob("*.safetensors"))  # nothing was trained


def test_store_that_is_asked_whether_it_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    require_writable(tmp_path / "store/tiny")
    assert not list(tmp_path.iterdir())


def test_data_command_shows_what_is_there_and_what_is_not(ood_train: OodTrain, image_sets: Path) -> None:
    found = ood_train("data", "tiny", "--data", image_sets)
    assert found.returncode == 0
    assert str(image_sets / "outliers/train.npz") in found.stdout
    missing = ood_train("data", "cifar10", "--data", image_sets)
    assert missing.returncode == 1
    assert f"celeba/test: Put {image_sets / 'celeba/test'}.npz there" in missing.stdout
    assert "svhn/test:" not in missing.stdout


def test_data_command_wants_no_outliers_where_they_are_made(
    image_sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "made.toml"
    path.write_text((RECIPES / "tiny.toml").read_text().replace("outliers/train", "synthetic"))
    show_data(path, image_sets)
    shown = capsys.readouterr().out
    assert "made of cifar10/train" in shown
    assert "missing" not in shown


def test_replaced_block_leaves_the_rest() -> None:
    document = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    assert report.replace_block(document, "new") == f"before\n{report.BEGIN}\nnew\n{report.END}\nafter\n"
