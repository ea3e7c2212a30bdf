"""Two processes on the CPU, under a real torchrun, against one."""

import copy
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from two_processes import CPU, energy_stage, frozen_network

from model_store.manifest import PreprocessSpec
from model_store.networks import build_network
from training.augment_spec import AugmentSpec
from training.batches import LabelledBatches
from training.config import RECIPES, Recipe
from training.datasets import ImageSet
from training.distributed import Processes, with_shared_batch_norm
from training.errors import DataError, RecipeError
from training.pipeline import Run
from training.progress import silent
from training.trainer import Figures, Stage, Trainer

ROOT = Path(__file__).parents[2]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, image_sets: Path) -> Path:
    """What two processes did and saw."""
    folder = tmp_path_factory.mktemp("two")
    script = Path(__file__).with_name("two_processes.py")
    finished = subprocess.run(
        [*TORCHRUN, script, folder, image_sets], env=_environment(), capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    return folder


@pytest.fixture(scope="module")
def seen(out: Path) -> list[dict[str, Any]]:
    return [torch.load(out / f"seen-{rank}.pt", weights_only=False) for rank in range(2)]


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def _equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def _assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Hold weights to what the order of float32 sums may change."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")


@pytest.fixture(scope="module")
def alone(
    train_set: ImageSet, outliers: ImageSet, preprocess: PreprocessSpec, tmp_path_factory: pytest.TempPathFactory
) -> tuple[nn.Module, list[Any]]:
    network = frozen_network(preprocess)
    stage = energy_stage(tmp_path_factory.mktemp("alone"), train_set, outliers, Processes())
    return network, Trainer(CPU, silent).train(network, stage)


@pytest.mark.slow
def test_two_processes_train_as_one_does(
    seen: list[dict[str, Any]], alone: tuple[nn.Module, list[Any]], preprocess: PreprocessSpec
) -> None:
    """Batch norm is frozen, images are as they are; the last batch has an odd number of images."""
    network, history = alone
    began = frozen_network(preprocess).state_dict()
    assert not torch.allclose(network.state_dict()["network.head.weight"], began["network.head.weight"], atol=1e-3)
    for process in seen:
        _assert_close(process["exact"]["weights"], network.state_dict())
    for found, expected in zip(seen[0]["exact"]["history"], history, strict=True):
        assert found.loss == pytest.approx(expected.loss, rel=1e-5)
        assert found.accuracy == expected.accuracy  # of all images, not of a share
        assert found.images_per_s * found.seconds == pytest.approx(149 + 4 * 22)


@pytest.mark.slow
def test_checkpoint_of_two_processes_is_finished_by_one(
    out: Path,
    seen: list[dict[str, Any]],
    alone: tuple[nn.Module, list[Any]],
    train_set: ImageSet,
    outliers: ImageSet,
    preprocess: PreprocessSpec,
) -> None:
    assert [process["exact"]["killed"] for process in seen] == ["KilledError: "] * 2
    epochs = set()

    def watch(stage: Stage, epoch: int, step: int, figures: Figures) -> None:
        epochs.add(epoch)

    network = frozen_network(preprocess)
    Trainer(CPU, watch).train(network, energy_stage(out / "cut", train_set, outliers, Processes()))
    assert epochs == {1}
    _assert_close(network.state_dict(), alone[0].state_dict())


@pytest.mark.slow
def test_killed_processes_resume_to_the_same_weights(seen: list[dict[str, Any]]) -> None:
    """With dropout, noise, JPEG and each process's own batch statistics: only the first one's are kept."""
    assert [process["stages"]["killed"] for process in seen] == ["KilledError: "] * 2
    first = seen[0]["stages"]["networks"]
    assert _equal(first["resumed"], first["pretrained"])
    assert not _equal(first["tuned"], first["pretrained"])


@pytest.mark.slow
def test_every_process_ends_with_the_same_parameters(seen: list[dict[str, Any]], tiny: Recipe) -> None:
    parameters = [name for name, _ in build_network(tiny.network).named_parameters()]
    first, second = (process["stages"]["networks"] for process in seen)
    for name in ("pretrained", "tuned", "resumed"):
        assert all(torch.equal(first[name][key], second[name][key]) for key in parameters)
    assert _equal(first["loaded"], second["loaded"])  # a finished stage is read by the first for both


@pytest.mark.slow
def test_first_process_alone_writes(out: Path, seen: list[dict[str, Any]]) -> None:
    files = {"inputs.json", "checkpoint.pt", "history.json", "weights.safetensors"}
    assert {path.name for path in (out / "whole-0/pretrain").iterdir()} == files
    assert {path.name for path in (out / "whole-0/finetune").iterdir()} == files
    assert _equal(load_file(out / "whole-0/finetune/weights.safetensors"), seen[0]["stages"]["networks"]["tuned"])
    assert not list(out.glob("whole-1*"))
    assert not list(out.glob("cut-1*"))
    assert not list(out.glob("bad-1*"))


@pytest.mark.slow
def test_other_processes_end_where_the_first_goes_on_alone(out: Path) -> None:
    assert [path.name for path in out.glob("left-*")] == ["left-0-1"]


@pytest.mark.slow
def test_processes_share_the_epoch_of_one(seen: list[dict[str, Any]], train_set: ImageSet, outliers: ImageSet) -> None:
    first, second = (process["draws"]["plain"] for process in seen)
    batches = LabelledBatches(train_set, 50, AugmentSpec(flip=False, crop_padding=0), CPU)
    generator = torch.Generator().manual_seed(5)
    start = int(torch.randint(len(outliers), (), generator=generator))
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    for step, (mine, others, whole) in enumerate(zip(first, second, batches(generator), strict=True)):
        assert torch.equal(torch.cat([mine.images[:25], others.images[:25]]), whole.images)
        assert torch.equal(mine.labels, whole.labels)
        assert torch.equal(others.labels, whole.labels)
        rows = order[(start + 20 * step + torch.arange(20)) % 150].numpy()
        shown = torch.cat([mine.images[25:], others.images[25:]])
        np.testing.assert_array_equal(shown.numpy(), outliers.images[rows])


@pytest.mark.slow
def test_no_two_processes_draw_the_same_noise(seen: list[dict[str, Any]]) -> None:
    shown = torch.cat([batch.images for process in seen for batch in process["draws"]["noise"]])
    noisy = shown.flatten(1)[shown.double().std(dim=(1, 2, 3)) > 1]  # a standard deviation near 0 leaves plain grey
    assert len(shown) == 280
    assert len(torch.unique(noisy, dim=0)) == len(noisy) > 250


@pytest.mark.slow
def test_gathered_rows_are_those_of_one_process_and_so_are_the_gradients(seen: list[dict[str, Any]]) -> None:
    rows = torch.arange(1.0, 19.0).reshape(9, 2).requires_grad_()
    (rows.prod(dim=1).logsumexp(dim=0) + (2 * rows).max()).backward()
    for process in seen:
        assert torch.equal(process["gathered"]["rows"], rows.detach())
        torch.testing.assert_close(process["gathered"]["gradient"], rows.grad)


def test_shared_batch_norm_leaves_weights_that_a_plain_network_takes(tiny: Recipe) -> None:
    """What can be seen of it without a GPU: the layers are others, their weights and outputs are not."""
    plain = build_network(tiny.network)
    shared = with_shared_batch_norm(copy.deepcopy(plain), torch.device("cuda"))
    assert not {type(module) for module in shared.modules()} & {nn.BatchNorm2d}
    assert sum(type(module) is nn.SyncBatchNorm for module in shared.modules()) == 7
    assert _equal(shared.state_dict(), plain.state_dict())
    plain.load_state_dict(shared.state_dict())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(shared.eval()(images).logits, plain.eval()(images).logits)
    assert with_shared_batch_norm(plain, CPU) is plain


@pytest.mark.slow
def test_what_goes_wrong_in_one_process_ends_all_and_is_told_once(seen: list[dict[str, Any]]) -> None:
    first, second = (process["failures"] for process in seen)
    assert first["first"] == "DataError: broken in 0"
    assert first["each"] == "DataError: in process 1: broken in 1"
    assert first["same"] == second["same"] == "nothing"
    assert first["different"] == "DataError: it is 1 in process 1, 0 in the first; give every machine the same"
    assert first["not finite"].startswith("DivergedError: the loss of bad is not finite at step 0 of epoch 1")
    assert {second[what] for what in ("first", "each", "different", "not finite")} == {"SystemExit: 1"}


@pytest.mark.parametrize("size", [0, 1, 7, 128])
def test_shares_are_a_partition(size: int) -> None:
    rows = list(range(size))
    shares = [rows[Processes(rank, 3).share(size)] for rank in range(3)]
    assert [row for share in shares for row in share] == rows
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("stage", "key"), [("pretrain", "batch_size"), ("finetune", "batch_size"), ("finetune", "outlier_batch_size")]
)
def test_batch_that_cannot_be_shared_evenly_is_refused_before_anything_is_read(
    tiny: Recipe, tmp_path: Path, stage: str, key: str
) -> None:
    changed = getattr(tiny, stage).model_copy(update={key: 64})
    recipe = tiny.model_copy(update={stage: changed})
    with pytest.raises(RecipeError, match=rf"{stage}\.{key} is 64, .* 5 of them .* multiple of 5, such as 60 or 65"):
        Run(recipe, tmp_path / "nowhere", tmp_path, CPU, silent, silent, processes=Processes(1, 5))
    Run(recipe, tmp_path / "nowhere", tmp_path, CPU, silent, silent, processes=Processes(1, 2))


def test_share_without_every_kind_of_synthetic_outlier_is_refused_before_anything_is_read(
    tiny: Recipe, tmp_path: Path
) -> None:
    data = tiny.data.model_copy(update={"outliers": "synthetic"})
    recipe = tiny.model_copy(
        update={"data": data, "finetune": tiny.finetuning.model_copy(update={"outlier_batch_size": 40})}
    )
    with pytest.raises(RecipeError, match=r"outlier_batch_size is 40, 8 in each of 5 processes; .* at least 45"):
        Run(recipe, tmp_path / "nowhere", tmp_path, CPU, silent, silent, processes=Processes(0, 5))
    Run(recipe, tmp_path / "nowhere", tmp_path, CPU, silent, silent, processes=Processes(0, 2))


def test_last_batch_that_leaves_a_process_without_images_is_refused(train_set: ImageSet) -> None:
    spec = AugmentSpec()
    with pytest.raises(
        DataError, match=r"last batch of an epoch has 2 of 200 images \(batch_size 66\), fewer .* \(3\)"
    ):
        LabelledBatches(train_set, 66, spec, CPU, Processes(0, 3))
    LabelledBatches(train_set, 66, spec, CPU, Processes(0, 2))
    LabelledBatches(train_set, 100, spec, CPU, Processes(0, 5))


class _FirstOfTwo(Processes):
    """The first of two processes, told of nothing by the other, which would see the same."""

    def __init__(self) -> None:
        super().__init__(0, 2)

    def first_does(self, action: Callable[[], Any]) -> Any:
        return action()

    each_does = first_does

    def require_same(self, what: str, value: object) -> None:
        pass


def test_last_batch_of_a_selection_that_leaves_a_process_without_images_is_refused_before_training(
    tiny: Recipe, image_sets: Path, tmp_path: Path
) -> None:
    """Of 150 images 49 are held out; 101 are two batches of 50, and one image for two processes."""

    def run(validation_images: int) -> Run:
        selection = {"margin_in": (-8, -6), "margin_out": (-3,), "epochs": 1, "validation_images": validation_images}
        tables = tiny.model_dump(exclude_none=True)
        tables["finetune"] |= {"objective": {"kind": "energy_bounded", "weight": 0.1}, "selection": selection}
        recipe = Recipe.model_validate(tables)
        return Run(recipe, image_sets, tmp_path, CPU, silent, silent, processes=_FirstOfTwo())

    with pytest.raises(DataError, match=r"has 1 of 101 images \(batch_size 50\), fewer than there are processes \(2\)"):
        run(validation_images=49).check()
    run(validation_images=48).check()


@pytest.mark.slow
def test_torchrun_command_is_interrupted_and_resumed(image_sets: Path, tmp_path: Path) -> None:
    """The documented command: Ctrl-C after an epoch, then again, to the end."""
    text = (RECIPES / "tiny.toml").read_text().replace("calibration_images = 50", "calibration_images = 0")
    text = text.replace("epochs = 12", "epochs = 2").replace("epochs = 3", "epochs = 1")
    (tmp_path / "short.toml").write_text(text.replace('textures = "textures/test"', "[evaluate]\ndraws = 1"))
    command = [*TORCHRUN, "-m", "training", "run", "short.toml", "--data", image_sets]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=_environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Not ignored, as it is in what a shell runs in the background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        assert any("pretrain epoch 1/2" in line for line in process.stderr)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to torchrun and what it started
        said = process.stderr.read()
    assert "interrupted: pretrain is kept up to epoch 1 of 2, in runs/short" in said
    assert "training/cli.py" not in said  # the only traceback is torchrun's own
    finished = subprocess.run(command, cwd=tmp_path, env=_environment(), capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "pretrain epoch 1/2" not in finished.stderr
    assert finished.stderr.count("pretrain epoch 2/2") == 1
    assert (tmp_path / "runs/short/evaluate/evaluation.json").exists()


def _on_two_machines(texts: tuple[str, str], data: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a recipe by two processes, each in a folder of its own, as it would be on a machine of its own."""
    for rank, text in enumerate(texts):
        (folder / str(rank)).mkdir(exist_ok=True)
        (folder / str(rank) / "short.toml").write_text(text)
    script = f"cd $RANK && exec {sys.executable} -m training run short.toml --data $0"
    command = [*TORCHRUN, "--no-python", "sh", "-c", script, data]
    return subprocess.run(command, cwd=folder, env=_environment(), capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_margins_that_the_first_machine_chose_hold_on_all(image_sets: Path, tmp_path: Path) -> None:
    text = (RECIPES / "tiny.toml").read_text().replace("epochs = 12", "epochs = 1").replace("epochs = 3", "epochs = 1")
    text = text.replace("calibration_images = 50", "calibration_images = 0")
    text = text.replace("margin_in = -8.0, margin_out = -3.0, ", "")
    selection = "margin_in = [-9.0, -6.0]\nmargin_out = [-3.0]\nepochs = 1\nvalidation_images = 20\n"
    text = text.replace("# Every score", f"[finetune.selection]\n{selection}\n# Every score")
    done = _on_two_machines((text, text), image_sets, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "0/runs/short/evaluate/evaluation.json").exists()
    assert not (tmp_path / "1/runs").exists()


@pytest.mark.slow
def test_machines_with_different_recipes_are_refused(image_sets: Path, tmp_path: Path) -> None:
    text = (RECIPES / "tiny.toml").read_text()
    other = text.replace("learning_rate = 0.1", "learning_rate = 0.2")
    done = _on_two_machines((text, other), image_sets, tmp_path)
    assert done.returncode == 1
    assert "the fingerprint of short.toml is " in done.stderr
    assert " in process 1, " in done.stderr
    assert not (tmp_path / "0/runs").exists()


@pytest.mark.parametrize("command", [("reproduce", "--out", "out"), ("optimize", "cifar10", "--precision", "bfloat16")])
def test_command_of_one_process_refuses_torchrun(
    command: tuple[str, ...],
    ood_train: Callable[..., subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("TORCHELASTIC_RUN_ID", "1"), ("WORLD_SIZE", "2"), ("RANK", "0")):
        monkeypatch.setenv(name, value)
    done = ood_train(*command)
    assert done.returncode == 1
    assert f"ood-train {command[0]} runs in one process, and torchrun started 2" in done.stderr
