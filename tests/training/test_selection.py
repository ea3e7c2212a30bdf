import ast
import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import training
from model_store.networks import NormalisedNetwork, build_network
from training import select_margins
from training.config import Recipe
from training.datasets import ImageSet
from training.errors import RecipeError, ResumeError
from training.metrics import fpr95
from training.pipeline import Run
from training.progress import silent
from training.selection import ValidationScores, ValidationSets, choose
from training.splits import split_validation
from training.trainer import Figures, Stage
from training.validation_outliers import validation_outliers

CPU = torch.device("cpu")

HUNDRED = np.arange(100.0)  # the score of rank 95 is 5: what is at least 5 is accepted


def _scores(accepted: dict[str, float], error: float = 0.0) -> ValidationScores:
    """Outliers of which those percentages are accepted with 95 of the 100 validation images."""
    outliers = {kind: np.where(np.arange(200) < 2 * share, 5.0, 3.5) for kind, share in accepted.items()}
    return ValidationScores(HUNDRED, outliers, error)


def test_lowest_mean_fpr95_is_chosen_each_kind_counting_alike() -> None:
    mostly = ValidationScores(
        HUNDRED, {"noise": np.full(1000, 3.5), "jigsaw": np.array([5.0, 3.5])}
    )  # 0 % and 50 %, though of 1,002 outliers one is accepted
    choice = choose({"a": _scores({"noise": 30, "jigsaw": 30}), "b": mostly, "c": _scores({"noise": 40, "jigsaw": 0})})
    assert choice.chosen == "c"
    assert [choice.candidates[name].fpr95 for name in "abc"] == pytest.approx([30, 25, 20])
    assert choice.candidates["c"].fpr95_by_kind == pytest.approx({"noise": 40, "jigsaw": 0})


def test_ties_go_to_the_candidate_with_fewer_errors_then_to_the_first() -> None:
    alike = {"noise": 10.0}
    choice = choose({"a": _scores(alike, 0.2), "b": _scores(alike, 0.1), "c": _scores(alike, 0.1)})
    assert choice.chosen == "b"
    assert choice.candidates["a"].error == pytest.approx(20)
    worse = choose({"a": _scores({"noise": 11}, 0.0), "b": _scores(alike, 0.9)})
    assert worse.chosen == "b"


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ({}, "no candidates"),
        ({"a": ValidationScores(HUNDRED, {})}, r"a has validation outliers \(\)"),
        ({"a": _scores({"noise": 1}), "b": _scores({"jigsaw": 1})}, r"b has validation outliers \('jigsaw',\)"),
        ({"a": ValidationScores(HUNDRED, {"noise": np.array([np.nan])})}, "not finite"),
    ],
)
def test_choice_that_cannot_be_made_is_refused(candidates: dict[str, ValidationScores], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose(candidates)


def _training_imports(module: str) -> set[str]:
    tree = ast.parse((Path(training.__file__).parent / f"{module}.py").read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "training":
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("training."):
            found.add(node.module.removeprefix("training."))
        elif isinstance(node, ast.Import):
            found |= {name.name.removeprefix("training.") for name in node.names if name.name.startswith("training")}
    return found


def test_selection_can_reach_nothing_that_loads_or_names_test_sets() -> None:
    """Not through what it imports either: sets come from `datasets`, their names from `config`, test sets to
    `evaluate` and `pipeline`.
    """
    reached, ahead = set(), {"selection"}
    while ahead:
        reached |= ahead
        ahead = set().union(*(_training_imports(module) for module in ahead)) - reached
    assert reached == {"selection", "metrics", "validation_outliers", "synthetic_outliers"}


def test_the_stage_of_margins_imports_no_way_to_load_or_evaluate_sets() -> None:
    tree = ast.parse(Path(select_margins.__file__).read_text())
    names = {name.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names}
    assert not {name for name in names if "load" in name.lower() or "test" in name.lower() or "evaluat" in name.lower()}
    words = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not words & {"data", "sets", "test", "tests", "test_sets", "far_ood", "near_ood", "ood"}


def test_validation_sets_take_no_outliers(train_set: ImageSet) -> None:
    assert [field.name for field in fields(ValidationSets)] == ["images", "labels", "seed"]
    sets = ValidationSets(train_set.images[:20], train_set.labels[:20], seed=4)
    expected = validation_outliers(train_set.images[:20], seed=4)
    assert sets.outliers.keys() == expected.keys()
    assert all(np.array_equal(sets.outliers[kind], expected[kind]) for kind in expected)


@pytest.fixture(scope="module")
def recipe(tiny: Recipe) -> Recipe:
    """An epoch of pre-training, four trials of an epoch, one of fine-tuning, outliers made of the training images."""
    tables = tiny.model_dump(exclude_none=True)
    tables["data"] |= {"outliers": "synthetic"}
    tables["pretrain"] |= {"epochs": 1}
    selection = {"margin_in": (-9, -4), "margin_out": (-3, 1), "epochs": 1, "validation_images": 20}
    tables["finetune"] |= {
        "epochs": 1,
        "objective": {"kind": "balanced_energy"},
        "mining": {"clusters": 20},
        "selection": selection,
    }
    return Recipe.model_validate(tables)


@pytest.fixture(scope="module")
def run(recipe: Recipe, image_sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The stages up to the fine-tuning, in a data folder that holds the training images and nothing else."""
    data = tmp_path_factory.mktemp("data")
    shutil.copytree(image_sets / "cifar10/train", data / "cifar10/train")
    run = Run(recipe, data, tmp_path_factory.mktemp("run"), CPU, silent, silent)
    run.pretrain()
    run.select()
    run.finetune()
    return run


def _choice(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.folder / "select/choice.json").read_text())
    return found


def test_margins_are_chosen_without_any_test_set_on_disk(run: Run) -> None:
    choice = _choice(run)
    assert list(choice["candidates"]) == ["in-9_out-3", "in-9_out1", "in-4_out-3", "in-4_out1"]
    lowest = min(figures["fpr95"] for figures in choice["candidates"].values())
    assert choice["candidates"][choice["chosen"]]["fpr95"] == lowest
    assert all(len(figures["fpr95_by_kind"]) == 8 for figures in choice["candidates"].values())


def test_choice_is_the_same_beside_test_sets_and_after_a_kill(
    recipe: Recipe, run: Run, image_sets: Path, tmp_path: Path
) -> None:
    trained = []

    def kill_in_the_third(stage: Stage, epoch: int, step: int, figures: Figures) -> None:
        trained.append(step)
        if len(trained) == 8:
            raise KeyboardInterrupt

    shutil.copytree(run.folder / "pretrain", tmp_path / "pretrain")
    with pytest.raises(KeyboardInterrupt):
        Run(recipe, image_sets, tmp_path, CPU, kill_in_the_third, silent).select()
    assert sum(path.exists() for path in (tmp_path / "select").glob("*/weights.safetensors")) == 2
    again = Run(recipe, image_sets, tmp_path, CPU, silent, silent)
    again.select()
    assert _choice(again) == _choice(run)

    def fail(*_: object) -> None:
        raise AssertionError("trained again")

    Run(recipe, image_sets, tmp_path, CPU, fail, silent).select()


def test_fine_tuning_uses_the_chosen_margins(run: Run) -> None:
    inputs = json.loads((run.folder / "finetune/inputs.json").read_text())
    chosen = inputs["finetune"]["selection"]["chosen"]
    assert f"in{chosen['margin_in']:g}_out{chosen['margin_out']:g}" == _choice(run)["chosen"]
    assert inputs["outliers"] == "synthetic"
    assert inputs["train"]["images"] == 150  # the validation images are trained on now


def test_trials_see_neither_validation_nor_calibration_images(run: Run) -> None:
    for pair in run.recipe.selection.pairs:
        inputs = json.loads((run.folder / "select" / str(pair) / "inputs.json").read_text())
        assert inputs["validation_images"] == 20
        history = json.loads((run.folder / "select" / str(pair) / "history.json").read_text())
        images = sum(epoch["seconds"] * epoch["images_per_s"] for epoch in history)
        assert images == pytest.approx(130 + 3 * 50)  # 130 in batches of 50, each with 50 outliers


def test_figures_are_those_of_the_trial_on_the_validation_images(recipe: Recipe, run: Run) -> None:
    pair = recipe.selection.pairs[2]
    network = build_network(recipe.network)
    network.load_state_dict(load_file(run.folder / "select" / str(pair) / "weights.safetensors"))
    logits_of = NormalisedNetwork(network, recipe.preprocess).eval()
    held_out = split_validation(run.sets.train, 20, recipe.seed)[1]

    def energies(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return logits_of(torch.from_numpy(images)).logits.logsumexp(dim=1).numpy()

    figures = _choice(run)["candidates"][str(pair)]
    made = validation_outliers(held_out.images, recipe.seed)
    by_kind = {
        kind: 100 * fpr95(in_distribution=energies(held_out.images), out_of_distribution=energies(images))
        for kind, images in made.items()
    }
    assert figures["fpr95_by_kind"] == pytest.approx(by_kind, abs=5.1)  # one of 20 outliers, where scores are close
    assert np.mean(list(by_kind.values())) == pytest.approx(figures["fpr95"], abs=1.5)
    with torch.inference_mode():
        wrong = logits_of(torch.from_numpy(held_out.images)).logits.argmax(dim=1).numpy() != held_out.labels
    assert figures["error"] == pytest.approx(100 * wrong.mean())


def test_selection_before_the_classifier_and_fine_tuning_before_the_selection_are_refused(
    recipe: Recipe, run: Run, tmp_path: Path
) -> None:
    fresh = Run(recipe, run.data_dir, tmp_path, CPU, silent, silent)
    with pytest.raises(ResumeError, match="run the stage pretrain first"):
        fresh.select()
    shutil.copytree(run.folder / "pretrain", tmp_path / "pretrain")
    with pytest.raises(ResumeError, match="run the stage select first"):
        fresh.finetune()


def test_recipe_with_margins_selects_none(tiny: Recipe, run: Run, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="its margins are given"):
        Run(tiny, run.data_dir, tmp_path, CPU, silent, silent).select()
