"""Runs that start from a published bundle: whole, resumed and refused."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from model_store.bundle import read_manifest
from model_store.errors import BundleNotFoundError, GoldenMismatchError, IntegrityError
from model_store.store import SHIPPED, Store
from training.config import Recipe
from training.datasets import ImageSet
from training.errors import RecipeError, ResumeError
from training.pipeline import Run
from training.progress import silent
from training.start import untuned_figures
from training.trainer import Figures, Stage

CPU = torch.device("cpu")


def _changed(recipe: Recipe, **fields: Any) -> Recipe:
    """Return the recipe with fields, or fields of its tables, replaced."""
    tables = recipe.model_dump()
    replaced = {key: tables[key] | value if isinstance(value, dict) else value for key, value in fields.items()}
    return Recipe.model_validate(tables | replaced)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "weights.safetensors")


def _equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def published(tiny: Recipe, image_sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle tiny@1, trained for an epoch a stage."""
    recipe = _changed(tiny, pretrain={"epochs": 1}, finetune={"epochs": 1})
    folder = tmp_path_factory.mktemp("first")
    path = Run(recipe, image_sets, folder / "run", CPU, silent, silent).all(Store(folder / "store"))
    assert path is not None
    return path


@pytest.fixture(scope="module")
def store(published: Path) -> Store:
    return Store(published.parents[1])


@pytest.fixture(scope="module")
def recipe(tiny: Recipe) -> Recipe:
    return _changed(tiny, pretrain=None, start="tiny@1", finetune={"epochs": 2}, augment={"noise_sd_max": 8})


@pytest.fixture(scope="module")
def run(recipe: Recipe, image_sets: Path, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(recipe, image_sets, tmp_path_factory.mktemp("run"), CPU, silent, silent, (store,))


@pytest.fixture(scope="module")
def folder(run: Run, store: Store) -> Path:
    path = run.all(store)
    assert path is not None
    return path


def test_run_from_a_bundle_publishes_its_next_version(run: Run, store: Store, published: Path, folder: Path) -> None:
    assert [str(ref) for ref in store.refs()] == ["tiny@1", "tiny@2"]
    assert folder == store.root / "tiny/2"
    assert _equal(_weights(run.folder / "pretrain"), _weights(published))
    assert _equal(_weights(run.folder / "finetune"), _weights(folder))
    assert not _equal(_weights(folder), _weights(published))
    origin = read_manifest(folder).provenance
    assert (origin.recipe["start"], origin.recipe["pretrain"]) == ("tiny@1", None)
    assert list(origin.stage_seconds) == ["finetune"]


def test_untuned_figures_are_those_of_the_bundle(run: Run, published: Path, folder: Path) -> None:
    first, second = (read_manifest(path).evaluation for path in (published, folder))
    assert first is not None
    assert second is not None
    assert first.untuned is not None
    assert second.untuned == first.untuned
    assert second.fine_tuned != first.fine_tuned
    assert f"{first.untuned.test_error:.2f} % untuned" in (run.folder / "evaluate/tables.md").read_text()


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"evaluate": {"draws": 11}},
        {"calibrate": {"temperature": 2.0}},
    ],
)
def test_untuned_figures_measured_otherwise_are_left_out(run: Run, folder: Path, changes: dict[str, Any]) -> None:
    recipe = _changed(run.recipe, **changes)
    assert untuned_figures(recipe, run.folder / "pretrain", run.sets.fingerprints()) is None


def test_untuned_figures_of_a_bundle_that_is_a_classifier_are_its_own(
    run: Run, tiny: Recipe, image_sets: Path, tmp_path: Path
) -> None:
    """It was never fine-tuned; its threshold is not what the next one's misses are compared with."""
    classifier = _changed(tiny, pretrain={"epochs": 1}, finetune=None, data={"outliers": None})
    folder = Run(classifier, image_sets, tmp_path / "run", CPU, silent, silent).all(Store(tmp_path / "store"))
    assert folder is not None
    manifest = json.loads((folder / "manifest.json").read_text())
    (tmp_path / "start.json").write_text(json.dumps(manifest))
    found, own = untuned_figures(run.recipe, tmp_path, run.sets.fingerprints()), manifest["evaluation"]["fine_tuned"]
    assert own["ood"]["svhn"]["missed"] is not None
    own["ood"] = {name: figures | {"missed": None} for name, figures in own["ood"].items()}
    assert found is not None
    assert found.model_dump() == own
    manifest["provenance"]["recipe"]["start"] = "other@1"  # which may have been fine-tuned
    (tmp_path / "start.json").write_text(json.dumps(manifest))
    assert untuned_figures(run.recipe, tmp_path, run.sets.fingerprints()) is None


@pytest.mark.parametrize("role", ["test", "ood svhn", "ood more"])
def test_untuned_figures_of_other_sets_are_left_out(run: Run, folder: Path, role: str) -> None:
    sets = run.sets.fingerprints()
    assert untuned_figures(run.recipe, run.folder / "pretrain", sets | {role: "0" * 64}) is None
    without = {name: sha256 for name, sha256 in sets.items() if name != role}
    assert (untuned_figures(run.recipe, run.folder / "pretrain", without) is None) == (role in sets)
    assert untuned_figures(run.recipe, run.folder / "pretrain", sets | {"outliers": "0" * 64}) is not None


def test_killed_run_goes_on_without_the_bundle(run: Run, folder: Path, tmp_path: Path) -> None:
    class KilledError(Exception):
        """Stands for a kill -9: nothing after it runs."""

    def kill(stage: Stage, epoch: int, step: int, figures: Figures) -> None:
        if (epoch, step) == (1, 0):
            raise KilledError

    killed = replace(run, folder=tmp_path, progress=kill)
    killed.pretrain()
    with pytest.raises(KilledError):
        killed.finetune()
    epochs = set()

    def watch(stage: Stage, epoch: int, step: int, figures: Figures) -> None:
        epochs.add(epoch)

    resumed = replace(run, folder=tmp_path, progress=watch, start_stores=())
    resumed.pretrain()
    resumed.finetune()
    assert epochs == {1}
    assert _equal(_weights(tmp_path / "finetune"), _weights(folder))


def test_bundle_may_be_trained_on_as_a_classifier_first(
    run: Run, tiny: Recipe, published: Path, tmp_path: Path
) -> None:
    """From its weights, at a rate of nothing: what is left is what it started from, kept beside the classifier."""
    still = {"epochs": 1, "batch_size": 150, "learning_rate": 1e-12, "weight_decay": 0.0}
    recipe = _changed(run.recipe, pretrain=None).model_copy(
        update={"pretrain": tiny.pretrain.model_copy(update=still), "augment": tiny.augment}
    )
    both = replace(run, recipe=recipe, folder=tmp_path)
    both.pretrain()
    trained, origin = _weights(tmp_path / "pretrain"), _weights(published)
    assert all(
        torch.allclose(trained[key], origin[key], atol=1e-6) for key in origin if ".bn" not in key and key[:2] != "bn"
    )
    assert _equal(_weights(tmp_path / "start"), origin)
    assert untuned_figures(recipe, tmp_path / "start", run.sets.fingerprints()) is not None
    both.finetune()
    assert set(both._stage_seconds()) == {"pretrain", "finetune"}


def test_start_from_two_bundles_is_the_mean_of_their_weights(
    run: Run, published: Path, folder: Path, tmp_path: Path
) -> None:
    """The second was fine-tuned further from the first."""
    replace(run, recipe=_changed(run.recipe, start=("tiny@1", "tiny@2")), folder=tmp_path).pretrain()
    taken, first, second = (_weights(path) for path in (tmp_path / "pretrain", published, folder))
    assert not _equal(first, second)
    for key, value in taken.items():
        expected = (first[key] + second[key]) / 2 if value.is_floating_point() else first[key]
        torch.testing.assert_close(value, expected)


@pytest.fixture(scope="module")
def averaged(run: Run, store: Store, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Of both bundles, evaluated and published without any training."""
    tables = run.recipe.model_dump() | {
        "name": "mean",
        "start": ("tiny@1", "tiny@2"),
        "finetune": None,
        "average": {"batch_size": 40, "outlier_batch_size": 20},
    }
    made = replace(run, recipe=Recipe.model_validate(tables), folder=tmp_path_factory.mktemp("averaged"))
    assert made.all(store) == store.root / "mean/1"
    return made


def test_average_has_the_mean_weights_and_statistics_of_its_own(
    averaged: Run, published: Path, folder: Path, train_set: ImageSet
) -> None:
    """Against the first layer worked out by hand: without augmentation, of all training images and outliers."""
    plain = {"flip": False, "crop_padding": 0, "noise_sd_max": 0, "jpeg": None}
    recipe = _changed(averaged.recipe, augment=plain, average={"batch_size": 450, "outlier_batch_size": 300})
    whole = replace(averaged, recipe=recipe, folder=averaged.folder / "plain")
    whole.pretrain()
    images, outliers = whole.sets.train.images, whole.sets.outliers
    assert outliers is not None
    recipe = _changed(recipe, average={"batch_size": len(images), "outlier_batch_size": len(outliers)})
    whole = replace(whole, recipe=recipe)
    whole.average()
    first, second, mean = (_weights(path) for path in (published, folder, whole.folder / "average"))
    shares = [key for key in mean if not key.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    for key in shares:
        torch.testing.assert_close(mean[key], (first[key] + second[key]) / 2)
    pixels = torch.from_numpy(np.concatenate([images, outliers.images])).permute(0, 3, 1, 2) / 255
    centred = (pixels - torch.tensor(recipe.preprocess.mean).view(3, 1, 1)) / torch.tensor(recipe.preprocess.std).view(
        3, 1, 1
    )
    activations = torch.nn.functional.conv2d(centred, mean["stem.weight"], padding=1)
    for what, expected in (("mean", activations.mean(dim=(0, 2, 3))), ("var", activations.var(dim=(0, 2, 3)))):
        torch.testing.assert_close(mean[f"stages.0.bn1.running_{what}"], expected, rtol=1e-3, atol=1e-4)


def test_average_is_published_with_the_figures_before_fine_tuning(averaged: Run, store: Store, published: Path) -> None:
    bundle = read_manifest(store.root / "mean/1")
    assert bundle.provenance.stage_seconds == {}
    assert bundle.evaluation is not None
    first = read_manifest(published).evaluation
    assert first is not None
    assert bundle.evaluation.untuned == first.untuned
    assert _equal(_weights(store.root / "mean/1"), _weights(averaged.folder / "average"))
    assert averaged.kept() == f"average is done, in {averaged.folder / 'average'}; run the same command to go on"


def test_average_is_made_once(averaged: Run, store: Store) -> None:
    before = (averaged.folder / "average/weights.safetensors").stat().st_mtime_ns
    assert replace(averaged, start_stores=()).all(store) == store.root / "mean/1"
    assert (averaged.folder / "average/weights.safetensors").stat().st_mtime_ns == before
    larger = _changed(averaged.recipe, average={"batch_size": 50})
    with pytest.raises(ResumeError, match=r"made with average\.batch_size = 40, now 50"):
        replace(averaged, recipe=larger).average()


def test_stage_that_the_recipe_does_not_have_is_refused(run: Run, averaged: Run, tmp_path: Path) -> None:
    """Before any set is read: here there are none."""
    with pytest.raises(RecipeError, match=r"recipe mean has no \[finetune\]: it takes the mean of tiny@1, tiny@2"):
        replace(averaged, data_dir=tmp_path).finetune()
    with pytest.raises(RecipeError, match=r"recipe tiny has no \[average\]: no mean is taken"):
        replace(run, data_dir=tmp_path).average()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"average": None}, r"the mean of bundles is no network before .*; give \[average\] or \[finetune\]"),
        ({"start": "tiny@1"}, r"\[average\] is of the bundles .* start is 'tiny@1': name two or more"),
    ],
)
def test_recipe_that_ends_in_no_network_is_refused(averaged: Run, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Recipe.model_validate(averaged.recipe.model_dump() | changes)


def test_run_killed_while_taking_the_bundle_takes_it_again(run: Run, published: Path, tmp_path: Path) -> None:
    killed = replace(run, folder=tmp_path)
    killed.pretrain()
    (tmp_path / "pretrain/weights.safetensors").unlink()  # written last
    killed.pretrain()
    assert _equal(_weights(tmp_path / "pretrain"), _weights(published))


def test_finetuning_before_taking_the_bundle_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match="run the stage pretrain first"):
        replace(run, folder=tmp_path).finetune()


def test_first_store_that_has_the_bundle_gives_it(run: Run, store: Store, published: Path, tmp_path: Path) -> None:
    shutil.copytree(published, tmp_path / "copy/tiny/1")
    said: list[str] = []
    stores = (Store(tmp_path / "nothing"), Store(tmp_path / "copy"), store)
    replace(run, folder=tmp_path / "run", say=said.append, start_stores=stores).pretrain()
    assert said[-1] == f"starting from {tmp_path / 'copy/tiny/1'}"


def test_bundle_is_not_taken_for_the_one_it_started_from(
    run: Run, store: Store, published: Path, folder: Path, tmp_path: Path
) -> None:
    other = Store(tmp_path / "store")
    assert run.publish(other) == other.root / "tiny/1"  # of the name and version that the recipe starts from
    again = replace(run, folder=tmp_path / "run", start_stores=(other, store))
    again.pretrain()
    assert _equal(_weights(tmp_path / "run/pretrain"), _weights(published))


def test_bundle_that_no_store_has_is_refused(run: Run, store: Store, tmp_path: Path) -> None:
    missing = replace(run, recipe=_changed(run.recipe, start="tiny@9"), folder=tmp_path)
    with pytest.raises(BundleNotFoundError, match=rf"start is tiny@9; it is in none of {store.root}$"):
        missing.pretrain()


def test_damaged_bundle_is_refused(run: Run, published: Path, tmp_path: Path) -> None:
    shutil.copytree(published, tmp_path / "store/tiny/1")
    weights = tmp_path / "store/tiny/1/weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"weights\.safetensors has SHA-256"):
        replace(run, folder=tmp_path / "run", start_stores=(Store(tmp_path / "store"),)).pretrain()
    assert not (tmp_path / "run/pretrain").exists()


def test_bundle_whose_weights_are_not_finite_is_refused(run: Run, tmp_path: Path) -> None:
    """Published so: its hashes are right."""
    folder = tmp_path / "store/cifar10/1"
    shutil.copytree(SHIPPED / "cifar10/1", folder)
    weights = load_file(folder / "weights.safetensors")
    weights["bn.running_var"][0] = torch.nan
    save_file(weights, folder / "weights.safetensors")
    content, manifest = (
        (folder / "weights.safetensors").read_bytes(),
        json.loads((folder / "manifest.json").read_text()),
    )
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    manifest["files"]["weights.safetensors"] = entry
    (folder / "manifest.json").write_text(json.dumps(manifest))
    starting = replace(run, recipe=_changed(run.recipe, start="cifar10@1"), folder=tmp_path / "run")
    with pytest.raises(GoldenMismatchError, match="logits that are not finite; the weights are damaged"):
        replace(starting, start_stores=(Store(tmp_path / "store"),)).pretrain()
    assert not (tmp_path / "run/pretrain").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": {"widen_factor": 2}}, r"tiny@1 has network .*widen_factor=1.*; the recipe has .*widen_factor=2"),
        (
            {"preprocess": {"interpolation": "bilinear"}},
            r"tiny@1 has preprocess .*'lanczos'.*; the recipe .*'bilinear'",
        ),
        ({"seed": 1}, r"tiny@1 was made with seed = 0, the recipe has 1; images .* calibration .* trained on"),
        ({"data": {"calibration_images": 40}}, r"tiny@1 was made with calibration_images = 50, the recipe has 40"),
    ],
)
def test_bundle_of_another_task_or_split_is_refused(
    run: Run, published: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        replace(run, recipe=_changed(run.recipe, **changes), folder=tmp_path).pretrain()
    replace(run, folder=tmp_path).pretrain()  # what was refused is not in the way of what is asked for then
    assert _equal(_weights(tmp_path / "pretrain"), _weights(published))


def _grown(train: ImageSet) -> dict[str, Any]:
    return {"images": np.concatenate([train.images, train.images[:1] ^ 1]), "labels": np.append(train.labels, 0)}


def _renamed(train: ImageSet) -> dict[str, Any]:
    return {"images": train.images, "labels": train.labels, "classes": np.array(["plane", *train.classes[1:]])}


@pytest.mark.parametrize(
    ("other", "message"),
    [(_grown, r"tiny@1 was made with train sha256"), (_renamed, r"tiny@1 has classes \('airplane', .*'plane'")],
)
def test_bundle_of_another_training_set_is_refused(
    run: Run, published: Path, train_set: ImageSet, tmp_path: Path, other: Callable[..., Any], message: str
) -> None:
    (tmp_path / "cifar10").mkdir()
    np.savez(tmp_path / "cifar10/train.npz", **({"classes": np.array(train_set.classes)} | other(train_set)))
    with pytest.raises(RecipeError, match=message):
        replace(run, data_dir=tmp_path, folder=tmp_path / "run").pretrain()


def test_run_without_calibration_may_start_from_another_split(run: Run, published: Path, tmp_path: Path) -> None:
    recipe = _changed(run.recipe, seed=1, data={"calibration_images": 0})
    replace(run, recipe=recipe, folder=tmp_path).pretrain()
    assert _equal(_weights(tmp_path / "pretrain"), _weights(published))


def test_folder_of_another_start_is_refused(run: Run, folder: Path) -> None:
    with pytest.raises(ResumeError, match=r"made with start = 'tiny@1', now 'tiny@2'"):
        replace(run, recipe=_changed(run.recipe, start="tiny@2")).pretrain()
