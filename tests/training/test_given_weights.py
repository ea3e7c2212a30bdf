"""Networks that were trained elsewhere: their weights from a file, calibrated as they are or fine-tuned."""

import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model_store.bundle import load_bundle
from model_store.errors import ExportError
from model_store.manifest import OnnxSpec, TimmSpec, TorchvisionSpec
from model_store.networks import NetworkOutput, build_network
from model_store.onnx_graph import export_onnx
from model_store.predictor import Scorer
from model_store.runtimes import TorchRuntime
from model_store.store import Store
from training.config import Recipe
from training.datasets import load_set
from training.errors import DataError, RecipeError, ResumeError, WeightsError
from training.given_weights import read_given
from training.pipeline import Run
from training.progress import silent
from training.run_folder import weights_sha256

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def elsewhere(quick: Recipe) -> nn.Module:
    """The quick recipe's network, which here was not trained at all: no figure hangs on it."""
    torch.manual_seed(3)
    return build_network(quick.network).eval()


@pytest.fixture(scope="module")
def weights(elsewhere: nn.Module) -> dict[str, Tensor]:
    return dict(elsewhere.state_dict())


@pytest.fixture
def data(image_sets: Path, tmp_path: Path) -> Path:
    """The image sets, in a folder where weights may lie beside them."""
    folder = tmp_path / "data"
    folder.mkdir()
    for each in image_sets.iterdir():
        (folder / each.name).symlink_to(each)
    return folder


def _recipe(quick: Recipe, **changes: Any) -> Recipe:
    """Return the quick recipe for a network from `given.pt` as it is, with the changes."""
    plain = quick.model_dump(exclude={"pretrain", "finetune", "scores"})
    plain["data"].pop("outliers")
    return Recipe.model_validate(plain | {"weights": "given.pt"} | changes)


def test_network_of_a_checkpoint_is_calibrated_and_published_as_it_is(
    quick: Recipe, data: Path, tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    torch.save({"epoch": 3, "state_dict": weights}, data / "given.pt")
    said: list[str] = []
    run = Run(_recipe(quick), data, tmp_path / "run", CPU, silent, said.append)
    folder = run.all(Store(tmp_path / "store"))
    assert folder is not None
    published = load_file(folder / "weights.safetensors")
    assert all(torch.equal(published[name], weights[name]) for name in published.keys() | weights.keys())
    manifest = load_bundle(folder).manifest
    assert manifest.evaluation is not None
    assert manifest.evaluation.untuned is None
    assert {record.role for record in manifest.provenance.data} == {
        "train",
        "calibration",
        "test",
        "ood svhn",
        "ood textures",
    }
    assert any("holds only if" in line and "given.pt" in line for line in said)
    assert "energy, this network" in (run.folder / "evaluate/tables.md").read_text()


def test_given_network_is_fine_tuned_beside_what_it_was(
    quick: Recipe, data: Path, tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    torch.save(weights, data / "given.pt")
    sets = quick.data.model_dump()
    recipe = _recipe(quick, data=sets, finetune=quick.finetuning.model_dump() | {"epochs": 1})
    run = Run(recipe, data, tmp_path / "run", CPU, silent, silent)
    classifier, tuned = run.pretrain().state_dict(), run.finetune().state_dict()
    assert all(torch.equal(classifier[name], weights[name]) for name in weights)
    assert not torch.equal(tuned["head.weight"], weights["head.weight"])
    assert run.evaluate().untuned is not None


def test_run_goes_on_without_the_file_and_not_with_another(
    quick: Recipe, data: Path, tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    torch.save(weights, data / "given.pt")
    run = Run(_recipe(quick), data, tmp_path / "run", CPU, silent, silent)
    run.pretrain()
    kept = weights_sha256(run.folder / "pretrain")
    torch.save(weights | {"head.bias": weights["head.bias"] + 1}, data / "given.pt")
    with pytest.raises(ResumeError, match=r"other weights than those now in .*given\.pt \(head\.bias differs\)"):
        run.pretrain()
    (data / "given.pt").unlink()
    run.pretrain()
    assert weights_sha256(run.folder / "pretrain") == kept


def test_network_that_was_trained_from_other_weights_is_no_fresh_one(
    quick: Recipe, data: Path, tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    """Removing what was begun with them, as asked, leaves a trained network that no longer says so."""
    torch.save(weights, data / "given.pt")
    pretrain = {"epochs": 1, "batch_size": 50, "learning_rate": 0.01}
    run = Run(_recipe(quick, pretrain=pretrain), data, tmp_path / "run", CPU, silent, silent)
    run.pretrain()
    torch.save(weights | {"head.bias": weights["head.bias"] + 1}, data / "given.pt")
    shutil.rmtree(run.folder / "start")
    with pytest.raises(
        ResumeError, match=r"run/pretrain was begun from what was in .*start, .*remove pretrain as well"
    ):
        run.pretrain()
    shutil.rmtree(run.folder / "pretrain")
    run.pretrain()


def test_library_s_own_names_and_half_precision_are_understood(tmp_path: Path) -> None:
    torch.manual_seed(0)
    library = timm.create_model("test_resnet", num_classes=3).half()
    save_file(library.state_dict(), tmp_path / "given.safetensors")
    network = build_network(TimmSpec(name="test_resnet", num_classes=3))
    found = read_given(tmp_path / "given.safetensors", network)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32, torch.int64}
    torch.testing.assert_close(found["head.weight"], library.get_classifier().weight.float())
    network.load_state_dict(found)


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("the file's code was run",))


def _without(weights: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in weights.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: _without(w, "stem.weight"), r"stem\.weight is missing; the recipe's network has \(16, 3, 3, 3\)"),
        (lambda w: w | {"more": torch.zeros(2)}, r"more is \(2,\); the recipe's network has missing"),
        (lambda w: w | {"head.bias": torch.zeros(7)}, r"head\.bias is \(7,\); the recipe's network has \(10,\)"),
        (lambda w: w | {"head.bias": torch.full((10,), np.nan)}, "10 of 10 values of head.bias are not finite; take"),
        (lambda _: {"weights": _Code()}, "cannot be read without running what is in it"),
        (lambda _: nn.Linear(2, 2), "cannot be read without running what is in it"),
        (lambda _: [1, 2], "holds a list, not tensors by name"),
        (lambda _: {"state_dict": {"a": 1}}, "not tensors by name"),
        (lambda _: {0: torch.zeros(3), 1: torch.zeros(2)}, "holds a dict, not tensors by name"),
        (lambda w: w | {0: torch.zeros(3)}, "not tensors by name"),
    ],
    ids=["missing", "more", "shape", "nan", "code", "module", "list", "numbers", "numbered", "one numbered"],
)  # fmt: skip
def test_file_without_such_weights_is_refused(
    tmp_path: Path,
    elsewhere: nn.Module,
    weights: dict[str, Tensor],
    change: Callable[[dict[str, Tensor]], Any],
    message: str,
) -> None:
    path = tmp_path / "given.pt"
    torch.save(change(weights), path)
    with pytest.raises(WeightsError, match=message) as caught:
        read_given(path, elsewhere)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("given.pt", b"", "cannot be read"),
        ("given.pt", b"no weights", "cannot be read"),
        ("given.safetensors", b"no weights", "is no safetensors file"),
        ("given.pt", None, "No such file.*weights is a path below the data folder"),
        ("given.safetensors", None, "No such file.*weights is a path below the data folder"),
    ],
)
def test_file_that_holds_no_weights_is_refused(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        read_given(tmp_path / name, nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": "cifar10@1"}, "start is 'cifar10@1', weights 'given.pt'; a network begins with one of them"),
        ({"weights": None}, r"give \[pretrain\], .* or start, .* or weights"),
        ({"data": {"outliers": "outliers/train"}}, "data.outliers is 'outliers/train'; .* takes none"),
        ({"finetune": True}, r"data.outliers is None; \[finetune\] and \[average\] need a set"),
        ({"network": {"kind": "onnx", "graph_bytes": 9, "features": 2, "num_classes": 10}, "pretrain": True},
         r"an ONNX network cannot be trained; leave \[pretrain\] out"),
    ],
    ids=["two-beginnings", "none", "outliers-for-nothing", "no-outliers", "onnx"],
)  # fmt: skip
def test_recipe_that_asks_for_the_impossible_is_refused(quick: Recipe, changes: dict[str, Any], message: str) -> None:
    stages = {name: getattr(quick, name).model_dump() for name in ("pretrain", "finetune") if changes.get(name)}
    sets = {"data": quick.data.model_dump(exclude={"outliers"}) | changes.get("data", {})}
    with pytest.raises(ValidationError, match=message):
        _recipe(quick, **(changes | sets | stages))


def test_network_that_is_taken_as_it_is_must_classify_the_images(quick: Recipe, tmp_path: Path) -> None:
    """Said before anything is read: here there is neither a set nor a file."""
    recipe = _recipe(quick, network=TorchvisionSpec(name="alexnet", num_classes=10).model_dump())
    with pytest.raises(RecipeError, match=r"alexnet cannot classify images of 32x32 \(.*too small\); take another"):
        Run(recipe, tmp_path / "nowhere", tmp_path, CPU, silent, silent).pretrain()


@pytest.mark.filterwarnings("ignore:The default weight initialization of GoogleNet")
def test_network_that_cannot_be_trained_may_be_taken_as_it_is(quick: Recipe, tmp_path: Path) -> None:
    """In training a GoogLeNet has two more outputs; what is missed is the training set, which is read next."""
    recipe = _recipe(quick, network=TorchvisionSpec(name="googlenet", num_classes=10).model_dump())
    with pytest.raises(DataError, match="no set 'cifar10/train'"):
        Run(recipe, tmp_path / "nowhere", tmp_path, CPU, silent, silent).pretrain()


class _Logits(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        output: NetworkOutput = self.network(x)
        return output.logits


def _export(network: nn.Module, side: int, path: Path) -> None:
    """Write a network of square images, of any number of them, as ONNX."""
    torch.onnx.export(
        network.eval(),
        (torch.zeros(2, 3, side, side),),
        path,
        dynamo=True,
        verbose=False,
        opset_version=18,
        dynamic_shapes=({0: torch.export.Dim("images")},),
    )


def test_onnx_file_becomes_a_bundle_that_both_runtimes_run_like_the_network_it_was(
    quick: Recipe,
    data: Path,
    tmp_path: Path,
    elsewhere: nn.Module,
    ood_train: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    _export(_Logits(elsewhere), 32, tmp_path / "classifier.onnx")
    done = ood_train("import", tmp_path / "classifier.onnx", "--out", data / "classifier.safetensors")
    assert done.returncode == 0, done.stderr
    printed = tomllib.loads(done.stdout)
    recipe = _recipe(quick, **printed)
    assert isinstance(recipe.network, OnnxSpec)
    folder = Run(recipe, data, tmp_path / "run", CPU, silent, silent).all(Store(tmp_path / "store"))
    assert folder is not None
    test_images = load_set("cifar10/test", data, quick.preprocess, None).images
    expected = Scorer(TorchRuntime(elsewhere, quick.preprocess, device=CPU), quick.preprocess, 1.0).score(test_images)
    for runtime in ("torch-eager", "openvino", "auto"):
        found = load_bundle(folder, runtime=runtime).predictor
        assert runtime != "auto" or found.scorer.runtime.name.startswith("openvino")
        np.testing.assert_allclose(found.predict(test_images).negative_energy, expected.negative_energy, atol=1e-4)
    done = ood_train(
        "optimize", "tiny", "--precision", "bfloat16", "--data", data, "--store", "store", "--allow-flips", "1"
    )
    if done.returncode == 0:  # a processor that computes in it
        assert load_bundle(folder.parent / "2").predictor.scorer.runtime.name == "openvino-bfloat16-cpu"
    else:
        assert "openvino would compute in f32 on this processor" in done.stderr
    with pytest.raises(ExportError, match="the network of tiny@1 came as ONNX"):
        export_onnx(load_bundle(folder))


def test_onnx_graph_of_another_image_size_is_refused_before_the_run_is_begun(
    quick: Recipe, data: Path, tmp_path: Path, ood_train: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """A layer over all pixels of 64x64, and a recipe of 32x32."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 4), nn.ReLU(), nn.Linear(4, 10))
    _export(network, 64, tmp_path / "classifier.onnx")
    done = ood_train("import", tmp_path / "classifier.onnx", "--out", data / "classifier.safetensors")
    assert done.returncode == 0, done.stderr
    run = Run(_recipe(quick, **tomllib.loads(done.stdout)), data, tmp_path / "run", CPU, silent, silent)
    with pytest.raises(RecipeError, match=r"network ONNX cannot classify images of 32x32 \(.*\); take another prepr"):
        run.pretrain()
    assert not (tmp_path / "run").exists()


def test_onnx_file_that_cannot_be_read_gets_a_message(
    tmp_path: Path, ood_train: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (tmp_path / "classifier.onnx").write_bytes(b"no graph")
    done = ood_train("import", tmp_path / "classifier.onnx", "--out", tmp_path / "classifier.safetensors")
    assert done.returncode == 1
    assert done.stderr.startswith("ood-train: ")
    assert "classifier.onnx cannot be read as an ONNX classifier" in done.stderr
    assert not (tmp_path / "classifier.safetensors").exists()


@pytest.mark.parametrize("out", ["classifier.onnx", "classifier.pt", "classifier"])
def test_import_into_a_file_that_no_recipe_reads_is_refused(
    tmp_path: Path, ood_train: Callable[..., subprocess.CompletedProcess[str]], out: str
) -> None:
    """Least of all over what it imports, which stays as it is."""
    given = tmp_path / "classifier.onnx"
    given.write_bytes(b"a graph")
    done = ood_train("import", given, "--out", tmp_path / out)
    assert done.returncode == 2
    assert "--out is" in done.stderr
    assert "*.safetensors" in done.stderr
    assert given.read_bytes() == b"a graph"
    assert list(tmp_path.iterdir()) == [given]
