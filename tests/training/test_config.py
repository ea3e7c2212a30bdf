import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from model_store.manifest import TorchvisionSpec
from model_store.networks import build_network
from training.augment_spec import AugmentSpec
from training.config import RECIPES, Recipe, read_recipe
from training.errors import RecipeError
from training.objective_spec import EnergyBoundedSpec
from training.recipe_network import require_fit

SHIPPED = sorted(path.stem for path in RECIPES.glob("*.toml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipe_is_whole(name: str) -> None:
    recipe = read_recipe(Path(name))
    assert build_network(recipe.network).head.out_features == recipe.network.num_classes


def test_shipped_recipes_are_the_documented_ones() -> None:
    assert SHIPPED == [
        "cifar10",
        "cifar10-averaged",
        "cifar10-balanced",
        "cifar10-restarted",
        "cifar10-robust",
        "cifar10-wrn-40-2",
        "cifar10-wrn-40-2-cutout",
        "cifar10-wrn-40-2-paper",
        "cifar10-wrn-40-2-ranked",
        "cifar10-wrn-40-2-ranked-jpeg",
        "cifar10-wrn-40-2-robust",
        "tiny",
    ]
    documented = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    assert all(f"{name}.toml" in documented for name in SHIPPED)


def test_paper_recipe_is_the_papers() -> None:
    """Against the numbers of the paper and its reference implementation, typed here a second time on purpose."""
    recipe = read_recipe(Path("cifar10-wrn-40-2-paper"))
    assert (recipe.network.depth, recipe.network.widen_factor, recipe.network.dropout) == (40, 2, 0.3)
    assert recipe.preprocess.mean == pytest.approx([125.3 / 255, 123.0 / 255, 113.9 / 255])
    assert recipe.preprocess.std == pytest.approx([63.0 / 255, 62.1 / 255, 66.7 / 255])
    assert recipe.augment == AugmentSpec(flip=True, crop_padding=4, noise_sd_max=0, jpeg=None)
    first, second = recipe.pretrain, recipe.finetune
    assert (first.epochs, first.batch_size, first.learning_rate) == (100, 128, 0.1)
    assert (first.momentum, first.weight_decay) == (second.momentum, second.weight_decay) == (0.9, 5e-4)
    assert (second.epochs, second.batch_size, second.outlier_batch_size, second.learning_rate) == (10, 128, 256, 0.001)
    assert second.objective == EnergyBoundedSpec(margin_in=-23, margin_out=-5, weight=0.1)
    assert recipe.data.calibration_images == 0
    assert recipe.evaluate.draws == 10


TINY = (RECIPES / "tiny.toml").read_text()
MARGINS = TINY[TINY.index('kind = "energy_bounded"') : TINY.index(" }\n", TINY.index("margin_in")) + 3]
SELECTION = """
[finetune.selection]
margin_in = [-9, -8]
margin_out = [-2.5, -3]
epochs = 1
validation_images = 20
"""
PRETRAIN = TINY[TINY.index("[pretrain]") : TINY.index("[finetune]")]


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("epochs = 12", "epochs = 12\nepoch = 3", ("pretrain.epoch", "Extra inputs")),
        ("epochs = 12\n", "", ("pretrain.epochs", "required")),
        ("epochs = 12", "epochs = 0", ("pretrain.epochs", "given 0")),
        ("learning_rate = 0.1\n", "learning_rate = -1\n", ("pretrain.learning_rate", "given -1")),
        ("epochs = 12", "epochs = 12\nmomentum = 1.0", ("pretrain.momentum", "given 1")),
        ("margin_in = -8.0", "margin_in = -2.0", ("margin_in is -2.0", "margin_out -3.0", "below")),
        ('kind = "energy_bounded"', 'kind = "magic"', ("finetune.objective", "magic")),
        ('name = "tiny"', 'name = "Tiny Recipe"', ("name", "Tiny Recipe")),
        ('name = "tiny"', 'name = "tiny-bytes"', ("-bytes",)),
        ("learning_rate = 0.1\n", "learning_rate = inf\n", ("pretrain.learning_rate", "finite")),
        ("margin_in = -8.0", "margin_in = nan", ("margin_in", "finite")),
        ("depth = 10", "depth = 18", ("depth is 18", "10, 16, 22")),
        (
            'kind = "wide_resnet"\ndepth = 10\nwiden_factor = 1',
            'kind = "torchvision"\nname = "resnet1018"',
            ("resnet1018",),
        ),
        ("[augment]", '[data.near_ood]\nsvhn = "svhn/test"\n\n[augment]', ("svhn", "far_ood and near_ood")),
        ("quality_min = 50", "quality_min = 101", ("quality_min", "given 101")),
        ("quality_max = 100", "quality_max = 40", ("quality_min is 50", "quality_max 40")),
        ("[execution]", '[calibrate]\nmethod = "pac"\n\n[execution]', ("'pac'", "delta None")),
        ("[augment]", "[augment]\nnoise_sd_max = -1", ("augment.noise_sd_max", "given -1")),
        ("[augment]", "[augment]\nnoise_sd_max = nan", ("augment.noise_sd_max", "finite")),
        (PRETRAIN, "", ("recipe: ", "give [pretrain]", "or start")),
        ("epochs = 12", "epochs = 12\naveraged_epochs = 13", ("pretrain", "averaged_epochs is 13", "12 epochs")),
        ("seed = 0", 'seed = 0\nstart = "cifar10"', ("start: ", "start is 'cifar10'", "as in cifar10@1")),
        ("seed = 0", 'seed = 0\nstart = "cifar10@0"', ("start is 'cifar10@0'",)),
        ("seed = 0", "seed = 0\nstart = []", ("start is []", "name each once, or leave it out")),
        ("seed = 0", 'seed = 0\nstart = ["a@1", "a@1"]', ("start is ['a@1', 'a@1']", "of different bundles")),
        ("seed = 0", 'seed = 0\nstart = "a@b@1"', ("start is 'a@b@1'",)),
        (", margin_out = -3.0", "", ("margin_in is -8.0, margin_out None", "both or neither")),
        ("margin_in = -8.0, margin_out = -3.0, ", "", ("finetune: ", "or [finetune.selection]")),
        ("[execution]", SELECTION + "\n[execution]", ("finetune: ", "or [finetune.selection]")),
        (MARGINS, 'kind = "outlier_exposure" }\n' + SELECTION + "#", ("outlier_exposure has none",)),
        (MARGINS, 'kind = "ranked_exposure" }\n' + SELECTION + "#", ("ranked_exposure has none",)),
        (
            MARGINS,
            f"kind = 'energy_bounded' }}\n{SELECTION.replace('-9', '-2')}#",
            ("margin_in is -2.0, margin_out -2.5",),
        ),
        (MARGINS, f"kind = 'energy_bounded' }}\n{SELECTION.replace('-9', '-8')}#", ("each value is tried once",)),
        (
            MARGINS,
            f"kind = 'energy_bounded' }}\naveraged_epochs = 2\n{SELECTION}#",
            ("averaged_epochs is 2", "selection.epochs, by which margins are tried, is 1"),
        ),
        (
            "outlier_batch_size = 50",
            "outlier_batch_size = 50\nmining = { clusters = 51 }",
            ("clusters is 51", "size 50"),
        ),
        (
            "outlier_batch_size = 50",
            "outlier_batch_size = 50\nmining = { clusters = 0 }",
            ("mining.clusters", "given 0"),
        ),
        ("[augment]", "[augment]\nresize = { share = 1, scale_min = 0.9, scale_max = 0.8 }", ("scale_min is 0.9",)),
        ("[execution]", "[calibrate]\nalpha = 1.5\n\n[execution]", ("calibrate.alpha", "given 1.5")),
        ('kind = "gen"', 'kind = "odin"', ("scores: ", "odin is offline only", "second forward pass")),
        ('kind = "gen"', 'kind = "perturbed_mahalanobis"', ("perturbed_mahalanobis is offline only",)),
        ('kind = "gen"', 'kind = "magic"', ("scores.2", "magic", "'max_logit'")),
        ('kind = "gen"', 'kind = "vim"', ("scores holds max_softmax, max_logit, vim", "once")),
        ('kind = "gen"', 'kind = "negative_energy"', ("negative_energy", "leave it out")),
        ('kind = "gen"', 'kind = "gen"\nk = 3', ("scores.2.gen.k", "Extra inputs")),
        ("k = 5\n", "k = 101\n", ("k is 101", "reference_rows = 100")),
        ("[execution]", '[calibrate]\nverdict = "softmax"\n\n[execution]', ("calibrate.verdict", "softmax")),
        (
            '[[scores]]\nkind = "gen"\n',
            '[calibrate]\nverdict = "gen"\n',
            ("calibrate.verdict is 'gen'", "negative_energy, max_softmax", "[[scores]]"),
        ),
    ],
)
def test_recipe_that_cannot_be_is_refused(tmp_path: Path, old: str, new: str, parts: tuple[str, ...]) -> None:
    assert old in TINY
    path = tmp_path / "recipe.toml"
    path.write_text(TINY.replace(old, new, 1))
    with pytest.raises(RecipeError) as caught:
        read_recipe(path)
    for part in (str(path), *parts):
        assert part in str(caught.value)
    assert "given {" not in str(caught.value)  # a message, not the recipe over again


@pytest.mark.parametrize("content", [b"name = ", b"\xff\xfe\x00", b""])
def test_file_that_is_no_recipe_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"recipe\.toml"):
        read_recipe(path)


def test_recipe_that_starts_from_a_bundle_trains_no_classifier(further: Callable[[str], Path]) -> None:
    recipe = read_recipe(further("cifar10@12"))
    assert (recipe.start, recipe.pretrain) == ("cifar10@12", None)


def test_synthetic_outliers_need_a_batch_for_every_kind(tmp_path: Path) -> None:
    text = TINY.replace('"outliers/train"', '"synthetic"')
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    assert read_recipe(path).data.sources().keys() == {"train", "test", "ood svhn", "ood textures"}
    path.write_text(text.replace("outlier_batch_size = 50", "outlier_batch_size = 8"))
    with pytest.raises(RecipeError, match="outlier_batch_size is 8; synthetic outliers are of 9 kinds"):
        read_recipe(path)


def test_selection_settles_the_margins_and_is_published_with_them(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(TINY.replace(MARGINS, 'kind = "energy_bounded", weight = 0.2 }\n' + SELECTION))
    recipe = read_recipe(path)
    pairs = recipe.selection.pairs
    assert [str(pair) for pair in pairs] == ["in-9_out-2.5", "in-9_out-3", "in-8_out-2.5", "in-8_out-3"]
    with pytest.raises(RecipeError, match="run the stage select first"):
        recipe.settled()
    expected = EnergyBoundedSpec(margin_in=-9, margin_out=-3, weight=0.2)
    published = Recipe.model_validate(recipe.with_chosen(pairs[1]).model_dump(mode="json"))
    assert published.settled().finetune.objective == expected
    trial = recipe.trial(pairs[1]).finetune
    assert (trial.objective, trial.epochs, trial.selection) == (expected, 1, None)
    assert recipe.trial(pairs[0]).finetune.objective.margins.margin_out == -2.5


def test_unknown_recipe_names_those_there_are() -> None:
    with pytest.raises(RecipeError, match=r"no recipe at imagenet .*; the package has cifar10, "):
        read_recipe(Path("imagenet"))


def test_recipe_file_goes_before_a_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny").write_text(TINY.replace("seed = 0", "seed = 99"))
    monkeypatch.chdir(tmp_path)
    assert read_recipe(Path("tiny")).seed == 99
    assert tomllib.loads(TINY)["seed"] == 0


@pytest.mark.parametrize("name", ["resnet18", "regnet_y_400mf"])  # a RegNet needs values to be built
def test_recipe_of_a_torchvision_network_is_read(tiny: Recipe, name: str) -> None:
    network = {"kind": "torchvision", "name": name, "num_classes": 10}
    recipe = Recipe.model_validate(tiny.model_dump() | {"network": network})
    assert recipe.network == TorchvisionSpec(name=name, num_classes=10)
    require_fit(recipe.network, recipe.preprocess)


@pytest.mark.filterwarnings("ignore:The default weight initialization of GoogleNet")
def test_network_that_is_not_trained_need_only_classify(tiny: Recipe) -> None:
    """Three losses are what a GoogLeNet trains by: one more than a forward pass of ours has."""
    spec = TorchvisionSpec(name="googlenet", num_classes=10)
    require_fit(spec, tiny.preprocess, trained=False)
    with pytest.raises(RecipeError, match="googlenet cannot be trained on images of 32x32"):
        require_fit(spec, tiny.preprocess)
