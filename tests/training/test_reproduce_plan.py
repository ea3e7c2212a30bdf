"""What the experiments consist of: sets, sizes, methods, and the paper's own figures."""

import ast
import json
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from model_store.score_specs import ScoreName
from training import selection, validation_outliers
from training.augment_spec import AugmentSpec
from training.datasets import ImageSet
from training.errors import RecipeError, ResumeError
from training.objective_spec import Margins
from training.progress import silent
from training.reproduce import choices
from training.reproduce.benchmark import Benchmark, find, read_benchmark, require
from training.reproduce.methods import methods, read_only, slug
from training.reproduce.networks import Lab, Setting
from training.reproduce.published import read_published
from training.reproduce.size import SIZES, Size, read_size
from training.run_folder import INPUTS, write_json
from training.selection import Choice

SHIPPED = sorted(path.stem for path in SIZES.glob("*.toml"))


@pytest.fixture(scope="module")
def benchmark() -> Benchmark:
    return read_benchmark()


@pytest.fixture(scope="module")
def paper() -> Size:
    return read_size(Path("paper"))


def test_paper_size_is_the_papers_recipe(paper: Size) -> None:
    assert (paper.network.label, paper.network.dropout) == ("WRN-40-2", 0.3)
    assert (paper.pretrain.epochs, paper.pretrain.batch_size, paper.pretrain.learning_rate) == (100, 128, 0.1)
    spec = paper.finetune_spec(paper.finetunings["energy_finetuned"], Margins(margin_in=-23, margin_out=-5))
    assert (spec.epochs, spec.batch_size, spec.outlier_batch_size, spec.learning_rate) == (10, 128, 256, 0.001)
    assert spec.objective.model_dump() == {
        "kind": "energy_bounded",
        "margin_in": -23.0,
        "margin_out": -5.0,
        "weight": 0.1,
    }
    exposed = paper.finetune_spec(paper.finetunings["outlier_exposure"], None)
    assert exposed.objective.model_dump() == {"kind": "outlier_exposure", "weight": 0.5}
    assert len(paper.seeds) == 3
    assert [(pair.margin_in, pair.margin_out) for pair in paper.margins.pairs()] == [
        (i, o) for i in (-15, -19, -23, -27) for o in (-3, -5, -7)
    ]
    assert paper.odin.temperatures == (1, 10, 100, 1000)
    assert len(paper.odin.epsilons) == 10
    assert paper.temperature.temperatures == (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
    assert paper.validation.share == 0.1


@pytest.mark.parametrize("name", SHIPPED)
def test_methods_of_a_size_have_names_and_folders_of_their_own(name: str) -> None:
    planned = methods(read_size(Path(name)))
    assert len({slug(method.name) for method in planned}) == len(planned)
    networks = [method.network for method in planned]
    changes = sum(first != second for first, second in pairwise(networks))
    assert changes == len(set(networks)) - 1  # those of one network stand together
    names = {method.name for method in planned if method.experiment == "table"}
    assert {"softmax", "energy", "odin", "mahalanobis", "outlier_exposure", "energy_finetuned", "ours"} < names
    for method in planned:
        assert set(slug(method.name)) <= set("abcdefghijklmnopqrstuvwxyzT0123456789_+-.")


def test_all_scores_of_every_fine_tuned_network_are_planned(paper: Size) -> None:
    scores = [method.score for method in methods(paper) if method.network == "outlier_exposure"]
    assert len(scores) == len(set(scores)) == len(get_args(ScoreName))


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["cifar10"], {"softmax", "odin", "ours", "ours+knn", "energy T=2", "energy_bounded m_in=-15 m_out=-3"}),
        (["odin", "cifar10"], {"odin"}),
        (["ours"], {"ours"}),
        (["ours+*"], {"ours+knn"}),
        (["ours*", "odin"], {"ours", "ours+knn", "odin"}),
        (["temperature"], {"energy T=2"}),
        (["ours+knn", "margins"], {"ours+knn", "energy_bounded m_in=-15 m_out=-3"}),
    ],
)
def test_only_names_sets_experiments_and_methods(
    names: list[str], wanted: set[str], paper: Size, benchmark: Benchmark
) -> None:
    only = read_only(names, paper, benchmark)
    assert only.in_distribution == (frozenset({"cifar10"}) if "cifar10" in names else None)
    looked_at = {"softmax", "odin", "ours", "ours+knn", "energy T=2", "energy_bounded m_in=-15 m_out=-3"}
    assert {method.name for method in methods(paper) if only.wants(method)} & looked_at == wanted


def test_only_refuses_what_there_is_not(paper: Size, benchmark: Benchmark) -> None:
    with pytest.raises(RecipeError, match=r"imagenet, ours-\*; there are the in-distribution sets cifar10, .*odin"):
        read_only(["odin", "imagenet", "ours-*"], paper, benchmark)


@pytest.mark.parametrize("name", ["odin", "chosen", "energy", "classifier", "margins", "cifar10"])
def test_fine_tuning_that_is_called_as_something_else_is_refused(name: str, paper: Size, benchmark: Benchmark) -> None:
    size = paper.model_copy(update={"finetunings": {name: paper.finetunings["ours"]}})
    with pytest.raises(RecipeError, match=f"finetunings are called {name}, which names a method, an experiment or"):
        read_only([], size, benchmark)


def _changed(size: str, **changes: object) -> str:
    text = (SIZES / f"{size}.toml").read_text()
    for old, new in changes.items():
        text = text.replace(f"{old} = ", f"{old} = {new} # ", 1)
    return text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_changed("tests", seeds="[1, 1]"), "seeds are .1, 1.; each must be another"),
        (_changed("tests", draws="0"), r"draws: .*greater than or equal to 1 \(given 0\)"),
        (_changed("tests", share="1.0"), "validation.share"),
        (_changed("tests", temperatures="[0.0]"), r"^[^\n]*odin.temperatures.0: [^\n]*greater than 0 \(given 0.0\)"),
        (_changed("tests", epsilons="[-0.1]"), r"^[^\n]*odin.epsilons.0: [^\n]*or equal to 0 \(given -0.1\)"),
        (
            _changed("tests").replace("[0.0, 0.002]", "[0.0, -0.002]"),
            r"mahalanobis.epsilons.1: .*equal to 0 \(given -0.002\)",
        ),
        (
            _changed("tests").replace("[1.0, 10.0, 1000.0]", "[1.0, -1.0]"),
            r"temperature.temperatures.1: .*greater than 0 \(given -1.0\)",
        ),
        (
            _changed("tests", share="0.2\nown_network = false", seeds="[1, 2]"),
            r"seeds are \(1, 2\); 0, that of validation, must be one of them",
        ),
        (_changed("tests", margin_in="[-1.0]"), "margin_in must be below margin_out"),
        (_changed("tests", margin_in="[-4.0, -1.0]"), r"^[^\n]*margins: [^\n]*margin_in must be below margin_out"),
        (_changed("tests", depth="4"), r"^[^\n]*network.depth: [^\n]*greater than or equal to 10 \(given 4\)"),
        (_changed("tests", objective='{ kind = "hope" }'), "^[^\n]*finetunings.outlier_exposure: .*hope"),
        (
            _changed("tests", seeds="[2147483648]"),
            "seeds are .2147483648,.; each must be another, from 0 to 2147483647",
        ),
        (_changed("tests", depth="20"), r"network: .*depth is 20; a WideResNet has 6 n \+ 4 layers"),
        (_changed("tests").replace("[finetunings.ours]", '[finetunings."../ours"]'), r"finetunings.*\.\./ours"),
        (
            _changed("tests").replace("\noutlier_batch_size", "\n# ", 1),
            "finetune: outlier_batch_size: Field required",
        ),
        (
            _changed("tests")
            .replace("\nmargins = ", '\noutliers = "synthetic"\nmargins = ', 1)
            .replace("outlier_batch_size = ", "outlier_batch_size = 8 # ", 1),
            "finetunings.energy_finetuned has an outlier_batch_size of 8; synthetic outliers are of 9 kinds",
        ),
        (_changed("tests") + "\nfast = true\n", "fast"),
        ("seeds = [", "is not TOML"),
    ],
)
def test_size_that_cannot_be_run_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        read_size(path)


def test_size_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(RecipeError, match="the package has cpu, paper, paper-short, robust, tests"):
        read_size(Path("huge"))


def test_own_size_is_named_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text((SIZES / "tests.toml").read_text())
    assert read_size(tmp_path / "mine.toml").name == "mine"


def test_sources_are_taken_in_order(tmp_path: Path) -> None:
    for name in ("second", "third"):
        (tmp_path / name).mkdir()
    assert find(("first", "second", "third"), tmp_path) == "second"
    assert require(("third", "second"), tmp_path) == "third"


def test_benchmark_has_the_sets_of_the_paper_or_what_stands_for_them(benchmark: Benchmark) -> None:
    for name in ("cifar10", "cifar100"):
        spec = benchmark.in_distribution[name]
        assert len(spec.far_ood) == 6
        assert name not in (*spec.far_ood, *spec.near_ood)
    assert benchmark.in_distribution["svhn"].published_margins is None
    margins = benchmark.in_distribution["cifar100"].published_margins
    assert margins is not None
    assert (margins.margin_in, margins.margin_out) == (-27, -5)
    figures = read_published().figures["cifar10"]["softmax"].ood
    mapped = {name: spec.published for name, spec in benchmark.ood.items() if spec.published in figures}
    assert mapped == {
        "textures": "textures",
        "svhn": "svhn",
        "places": "places",
        "scenes-crop": "lsun-crop",
        "scenes-resize": "lsun-resize",
    }


def test_published_means_are_those_of_their_sets() -> None:
    """The paper's tables agree with each other: a figure typed wrongly would not."""
    published = read_published()
    assert {name: len(found) for name, found in published.figures.items()} == {"cifar10": 6, "cifar100": 6, "svhn": 4}
    for found in published.figures.values():
        for method in found.values():
            assert len(method.ood) == 6
            np.testing.assert_allclose(np.mean(list(method.ood.values()), axis=0), method.mean, atol=0.007)


def test_published_figures_by_hand() -> None:
    published = read_published()
    energy = published.method("cifar10", "energy_finetuned")
    assert energy is not None
    assert (energy.mean, energy.test_error) == ((3.32, 98.92, 99.75), 4.87)
    errors = [found.test_error for found in published.figures["cifar10"].values()]
    assert errors == [5.16, 5.16, 5.16, 5.16, 5.32, 4.87]
    assert published.method("cifar100", "knn") is None
    assert published.table3["JEM-softmax"] == {"svhn": 0.89, "cifar100": 0.87, "celeba": 0.79}


def test_selection_code_imports_nothing_that_reads_sets() -> None:
    """What chooses is given images; it has no way of its own to any, test sets among them."""
    readers = {"load_set", "TestSets", "open_torchvision", "read_benchmark", "evaluate"}
    for module in (selection, validation_outliers, choices):
        tree = ast.parse(Path(str(module.__file__)).read_text())
        imported = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        assert not imported & readers, module.__name__


def test_choice_made_with_another_augmentation_is_refused(
    paper: Size, benchmark: Benchmark, train_set: ImageSet, outliers: ImageSet, tmp_path: Path
) -> None:
    def chosen(augment: AugmentSpec | None) -> float:
        size = paper.model_copy(update={"augment": augment})
        spec = benchmark.in_distribution["cifar10"]
        setting = Setting("cifar10", spec, size, benchmark.preprocess, augment or benchmark.augment)
        lab = Lab(setting, 0, train_set, outliers, tmp_path / "lab", torch.device("cpu"), silent, silent)
        return choices.Validation(lab, train_set, tmp_path).odin().epsilon

    made = Choice(chosen="T=1 eps=0.0014", candidates={})
    (tmp_path / "odin").mkdir()
    write_json(tmp_path / "odin" / choices.CHOICE, made.model_dump())
    assert chosen(None) == 0.0014
    inputs = json.loads((tmp_path / "odin" / INPUTS).read_text())
    write_json(tmp_path / "odin" / INPUTS, {key: value for key, value in inputs.items() if key != "augment"})
    assert chosen(None) == 0.0014  # begun before there was such a key
    with pytest.raises(ResumeError, match=r"augment = None, now .*'cutout': 8"):
        chosen(AugmentSpec(cutout=8))
    assert not (tmp_path / "lab").exists()


def test_sizes_say_every_count() -> None:
    for name in SHIPPED:
        given = tomllib.loads((SIZES / f"{name}.toml").read_text())
        assert {"seeds", "fit_images", "draws", "resamples", "network", "pretrain", "validation"} <= given.keys()
