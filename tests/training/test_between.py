"""The network between a classifier and what it was fine-tuned to."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from model_store.bundle import read_manifest
from model_store.store import Store
from training.augment_spec import AugmentSpec
from training.config import Recipe
from training.errors import RecipeError, ResumeError
from training.pipeline import Run
from training.progress import silent

AVERAGE = {"batch_size": 40, "outlier_batch_size": 20, "fine_tuned": 0.25}


def changed(recipe: Recipe, **tables: Any) -> Recipe:
    known = recipe.model_dump()
    merged = {
        name: known[name] | table if isinstance(table, Mapping) and known[name] else table
        for name, table in tables.items()
    }
    return Recipe.model_validate(known | merged)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "weights.safetensors")


@pytest.fixture(scope="module")
def run(tiny: Recipe, image_sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Whole, published."""
    recipe = changed(tiny, pretrain={"epochs": 1}, finetune={"epochs": 1}, average=AVERAGE)
    folder = tmp_path_factory.mktemp("between")
    made = Run(recipe, image_sets, folder / "run", torch.device("cpu"), silent, silent)
    assert made.all(Store(folder / "store")) is not None
    return made


@pytest.fixture(scope="module")
def bundle(run: Run) -> Path:
    return run.folder.parent / "store/tiny/1"


def test_weights_lie_between_those_of_the_two(run: Run, bundle: Path) -> None:
    first, second, found = (weights(run.folder / stage) for stage in ("pretrain", "finetune", "average"))
    assert found.keys() == first.keys()
    measured = ("running_mean", "running_var")
    for name, value in found.items():
        if name.endswith("num_batches_tracked"):
            continue
        expected = 0.75 * first[name] + 0.25 * second[name]
        if not name.endswith(measured):
            torch.testing.assert_close(value, expected)
    statistics = [name for name in found if name.endswith(measured)]
    assert any(not torch.allclose(found[name], first[name], rtol=0.01) for name in statistics)
    published = weights(bundle)
    assert all(torch.equal(published[name], value) for name, value in found.items())


def test_its_figures_stand_beside_the_classifiers(run: Run, bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert manifest.evaluation is not None
    assert manifest.evaluation.untuned is not None
    assert manifest.evaluation.untuned != manifest.evaluation.fine_tuned
    assert list(manifest.provenance.stage_seconds) == ["pretrain", "finetune"]
    assert manifest.provenance.recipe["average"] == AVERAGE | {"augment": None}


def test_another_share_needs_no_training(run: Run, tmp_path: Path) -> None:
    """Nor does a run that ended with the fine-tuning go stale."""
    plain = replace(run, recipe=changed(run.recipe, average=None))
    before = (run.folder / "finetune/weights.safetensors").stat().st_mtime_ns
    plain.finetune()
    assert (run.folder / "finetune/weights.safetensors").stat().st_mtime_ns == before
    other = replace(run, recipe=changed(run.recipe, average={"fine_tuned": 0.5}))
    with pytest.raises(ResumeError, match=r"average\.fine_tuned = 0\.25, now 0\.5"):
        other.average()


def test_statistics_are_of_the_augmentation_that_it_names(run: Run, tmp_path: Path) -> None:
    """Noise makes what the first convolution gives more varied; weights stay as they are."""
    shutil.copytree(run.folder, tmp_path / "run", ignore=shutil.ignore_patterns("average"))
    noisy = AugmentSpec(noise_sd_max=64.0)
    recipe = changed(run.recipe, average={"augment": noisy.model_dump()})
    replace(run, recipe=recipe, folder=tmp_path / "run").average()
    found, plain = (weights(folder / "average") for folder in (tmp_path / "run", run.folder))
    after_first = "stages.0.bn1.running_var"
    assert found[after_first].mean() > 1.1 * plain[after_first].mean()
    assert all(torch.equal(found[name], value) for name, value in plain.items() if "running" not in name)


def test_statistics_do_not_depend_on_what_this_process_drew_before(
    tiny: Recipe, image_sets: Path, tmp_path: Path
) -> None:
    """Dropout draws from PyTorch's one generator, which a fine-tuning in the same process leaves elsewhere."""
    recipe = changed(tiny, network={"dropout": 0.3}, pretrain={"epochs": 1}, finetune={"epochs": 1}, average=AVERAGE)
    run = Run(recipe, image_sets, tmp_path, torch.device("cpu"), silent, silent)
    run.pretrain()
    run.finetune()
    run.average()
    found = weights(tmp_path / "average")
    shutil.rmtree(tmp_path / "average")
    torch.manual_seed(5)
    run.average()
    again = weights(tmp_path / "average")
    assert all(torch.equal(again[name], value) for name, value in found.items())


def test_a_mean_of_what_is_not_trained_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match="run the stage pretrain first"):
        replace(run, folder=tmp_path).average()
    with pytest.raises(RecipeError, match="no \\[average\\]"):
        replace(run, recipe=changed(run.recipe, average=None)).average()


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"average": AVERAGE | {"fine_tuned": None}}, "average.fine_tuned is None"),
        ({"average": AVERAGE | {"fine_tuned": 1.0}}, "less than 1"),
        ({"finetune": None, "average": AVERAGE}, "is of the bundles that start names"),
        ({"finetune": None, "average": AVERAGE, "pretrain": None, "start": ("a@1", "b@1")}, "and not without"),
        ({"average": AVERAGE | {"outlier_batch_size": 1}, "data": {"outliers": "synthetic"}}, "every batch"),
    ],
)
def test_recipes_that_mean_nothing_are_refused(tiny: Recipe, tables: dict[str, Any], said: str) -> None:
    known = tiny.model_dump()
    if "data" in tables:
        tables = tables | {"data": known["data"] | tables["data"]}
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate(known | tables)
    assert said in str(caught.value)
