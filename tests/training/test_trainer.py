import json
import math
import os
import resource
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from model_store.networks import NetworkOutput, NormalisedNetwork, build_network
from training import outlier_classes
from training.augment_spec import AugmentSpec
from training.batches import LabelledBatches, OutlierBatches, SyntheticOutlierBatches
from training.config import Recipe
from training.datasets import ImageSet
from training.errors import DivergedError, OutputError, ResumeError, WeightsError
from training.finetune import finetune
from training.objective_spec import BalancedEnergySpec
from training.outlier_classes import outlier_pieces
from training.pretrain import pretrain
from training.progress import silent
from training.run_folder import exclusive, open_stage
from training.stage_specs import ExecutionSpec, MiningSpec, OptimisationSpec
from training.step import Batch
from training.synthetic_outliers import KINDS
from training.trainer import Figures, Stage, Trainer, learning_rate, read_checkpoint

CPU = torch.device("cpu")
PLAIN = AugmentSpec(flip=False, crop_padding=0)


class KilledError(Exception):
    """Stands for a kill -9: nothing after it runs."""


def _kill_at(epoch: int, step: int):
    def progress(stage: Stage, at_epoch: int, at_step: int, figures: Figures) -> None:
        if (at_epoch, at_step) == (epoch, step):
            raise KilledError

    return progress


@pytest.fixture(scope="module")
def recipe(tiny: Recipe) -> Recipe:
    """Three epochs of pre-training with dropout and two of fine-tuning, so that every source of chance is in play."""
    return tiny.model_copy(
        update={
            "network": tiny.network.model_copy(update={"dropout": 0.3}),
            "pretrain": tiny.pretrain.model_copy(update={"epochs": 3, "batch_size": 25}),
            "finetune": tiny.finetune.model_copy(update={"epochs": 2, "batch_size": 25}),
        }
    )


@pytest.fixture(scope="module")
def few(train_set: ImageSet) -> ImageSet:
    """Half of the training images: four steps of the recipe's batches are an epoch."""
    return train_set.subset(np.arange(0, len(train_set), 2))


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "weights.safetensors")


def _equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def uninterrupted(recipe: Recipe, few: ImageSet, outliers: ImageSet, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    pretrain(recipe, few, folder / "pretrain", Trainer(CPU, silent))
    finetune(recipe, few, outliers, folder / "pretrain", folder / "finetune", Trainer(CPU, silent))
    return folder


@pytest.mark.parametrize(("epoch", "step"), [(0, 0), (1, 0), (1, 3), (1, 4), (2, 3)])
def test_killed_pretraining_resumes_to_the_same_weights(
    recipe: Recipe, few: ImageSet, uninterrupted: Path, tmp_path: Path, epoch: int, step: int
) -> None:
    with pytest.raises(KilledError):
        pretrain(recipe, few, tmp_path, Trainer(CPU, _kill_at(epoch, step)))
    seen = set()

    def watch(stage: Stage, at_epoch: int, at_step: int, figures: Figures) -> None:
        seen.add(at_epoch)

    pretrain(recipe, few, tmp_path, Trainer(CPU, watch))
    assert seen == set(range(epoch + (step == 4), 3))  # after step 4 of 4 the epoch is on disk
    assert _equal(_weights(tmp_path), _weights(uninterrupted / "pretrain"))


def test_killed_finetuning_resumes_to_the_same_weights(
    recipe: Recipe, few: ImageSet, outliers: ImageSet, uninterrupted: Path, tmp_path: Path
) -> None:
    with pytest.raises(KilledError):
        finetune(recipe, few, outliers, uninterrupted / "pretrain", tmp_path, Trainer(CPU, _kill_at(1, 0)))
    finetune(recipe, few, outliers, uninterrupted / "pretrain", tmp_path, Trainer(CPU, silent))
    assert _equal(_weights(tmp_path), _weights(uninterrupted / "finetune"))


def test_training_is_in_float32_whatever_ran_in_the_process_before(
    recipe: Recipe, few: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TF32, cuDNN's default, is off for the process once a bundle has run; a resumed stage would go on otherwise."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    pretrain(recipe, few, tmp_path, Trainer(CPU, silent))
    assert not torch.backends.cudnn.allow_tf32


def test_without_momentum_a_step_is_the_gradient_s_alone(recipe: Recipe, few: ImageSet, tmp_path: Path) -> None:
    plain = {"epochs": 1, "momentum": 0.0, "weight_decay": 0.0}
    unmoved = recipe.model_copy(update={"pretrain": recipe.pretrain.model_copy(update=plain)})
    taken: list[tuple[torch.Tensor, torch.Tensor]] = []

    def take(optimizer: torch.optim.Optimizer, *_: object) -> None:
        (group,) = optimizer.param_groups
        weight = group["params"][0]
        taken.append((weight.detach().clone(), group["lr"] * weight.grad))

    hook = register_optimizer_step_post_hook(take)
    try:
        pretrain(unmoved, few, tmp_path, Trainer(CPU, silent))
    finally:
        hook.remove()
    assert len(taken) == 4
    for (before, _), (after, step) in pairwise(taken):
        torch.testing.assert_close(after, before - step)


def test_averaged_stage_leaves_the_mean_of_its_steps_and_its_statistics(
    recipe: Recipe, few: ImageSet, tmp_path: Path
) -> None:
    """Of the weights after the first and the last of four steps of each averaged epoch, at a rate that stays."""
    averaged = recipe.model_copy(
        update={
            "network": recipe.network.model_copy(update={"dropout": 0.0}),
            "pretrain": recipe.pretrain.model_copy(update={"averaged_epochs": 2}),
            "augment": PLAIN,
        }
    )
    taken: list[torch.Tensor] = []

    def take(optimizer: torch.optim.Optimizer, *_: object) -> None:
        (group,) = optimizer.param_groups
        assert group["lr"] == 0.1
        taken.append(group["params"][0].detach().clone())

    hook = register_optimizer_step_post_hook(take)
    try:
        network = pretrain(averaged, few, tmp_path, Trainer(CPU, silent))
    finally:
        hook.remove()
    steps = len(taken) // 3
    kept = [taken[epoch * steps + step] for epoch in (1, 2) for step in (0, steps - 1)]
    torch.testing.assert_close(network.stem.weight, torch.stack(kept).mean(dim=0))
    pixels = torch.from_numpy(few.images).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(getattr(recipe.preprocess, name)).view(1, 3, 1, 1) for name in ("mean", "std"))
    expected = network.stem((pixels - mean) / std).mean(dim=(0, 2, 3))
    torch.testing.assert_close(network.stages[0].bn1.running_mean, expected, atol=1e-4, rtol=0)
    assert network.stages[0].bn1.num_batches_tracked == steps


def test_killed_averaging_resumes_to_the_same_weights(recipe: Recipe, few: ImageSet, tmp_path: Path) -> None:
    averaged = recipe.model_copy(update={"pretrain": recipe.pretrain.model_copy(update={"averaged_epochs": 2})})
    whole = pretrain(averaged, few, tmp_path / "whole", Trainer(CPU, silent))
    with pytest.raises(KilledError):
        pretrain(averaged, few, tmp_path / "killed", Trainer(CPU, _kill_at(2, 0)))
    pretrain(averaged, few, tmp_path / "killed", Trainer(CPU, silent))
    assert _equal(whole.state_dict(), _weights(tmp_path / "killed"))


# This little trained, energies lie at -2; a margin above them puts the outliers' hinges to work.
BALANCED = {"objective": BalancedEnergySpec(margin_in=-8.0, margin_out=1.0), "mining": MiningSpec(clusters=10)}


def _tuned(recipe: Recipe, **fields: object) -> Recipe:
    return recipe.model_copy(update={"finetune": recipe.finetune.model_copy(update=fields)})


def test_killed_balanced_mined_and_synthetic_finetuning_resumes_to_the_same_weights(
    recipe: Recipe, few: ImageSet, uninterrupted: Path, tmp_path: Path
) -> None:
    def tune(name: str, progress=silent) -> dict[str, torch.Tensor]:
        tuned = _tuned(recipe, **BALANCED)
        finetune(tuned, few, None, uninterrupted / "pretrain", tmp_path / name, Trainer(CPU, progress))
        return _weights(tmp_path / name)

    with pytest.raises(KilledError):
        tune("killed", _kill_at(1, 0))
    assert _equal(tune("killed"), tune("whole"))


def test_outlier_classes_are_the_starting_networks_and_remembered(
    recipe: Recipe, few: ImageSet, outliers: ImageSet, uninterrupted: Path, tmp_path: Path
) -> None:
    tuned = _tuned(recipe, epochs=1, **BALANCED)
    with pytest.raises(KilledError):
        finetune(tuned, few, outliers, uninterrupted / "pretrain", tmp_path, Trainer(CPU, _kill_at(0, 0)))
    network = build_network(recipe.network)
    network.load_state_dict(_weights(uninterrupted / "pretrain"))
    with torch.inference_mode():
        logits = NormalisedNetwork(network, recipe.preprocess).eval()(torch.from_numpy(outliers.images)).logits
    counts = json.loads((tmp_path / "outlier_classes.json").read_text())
    assert counts == torch.bincount(logits.argmax(dim=1), minlength=10).tolist()
    assert len(set(counts)) > 2  # uneven, so that remembering others makes a difference
    (tmp_path / "outlier_classes.json").write_text(json.dumps([*counts[1:], counts[0]]))
    finetune(tuned, few, outliers, uninterrupted / "pretrain", tmp_path, Trainer(CPU, silent))
    finetune(tuned, few, outliers, uninterrupted / "pretrain", tmp_path / "whole", Trainer(CPU, silent))
    assert not _equal(_weights(tmp_path), _weights(tmp_path / "whole"))


def test_outliers_are_counted_piece_by_piece(train_set: ImageSet, outliers: ImageSet, monkeypatch) -> None:
    monkeypatch.setattr(outlier_classes, "PIECE", 40)
    whole = np.concatenate(list(outlier_pieces(outliers, train_set, seed=0)))
    np.testing.assert_array_equal(whole, outliers.images)
    made = list(outlier_pieces(None, train_set, seed=0))
    assert [len(piece) for piece in made] == [40] * 5
    assert [len(piece) for piece in outlier_pieces(None, train_set.subset(np.arange(3)), seed=0)] == [9]  # of each kind


def test_folder_from_before_there_was_a_key_goes_on(tmp_path: Path) -> None:
    open_stage(tmp_path, {"augment": {"flip": True}, "seed": 1})
    open_stage(tmp_path, {"augment": {"flip": True, "resize": None}, "seed": 1})
    with pytest.raises(ResumeError, match=r"augment\.resize = None, now 3"):
        open_stage(tmp_path, {"augment": {"flip": True, "resize": 3}, "seed": 1})


def test_another_seed_gives_other_weights(recipe: Recipe, few: ImageSet, uninterrupted: Path, tmp_path: Path) -> None:
    pretrain(recipe.model_copy(update={"seed": 1}), few, tmp_path, Trainer(CPU, silent))
    assert not _equal(_weights(tmp_path), _weights(uninterrupted / "pretrain"))


def test_finished_stage_is_loaded_not_repeated(recipe: Recipe, few: ImageSet, uninterrupted: Path) -> None:
    network = pretrain(recipe, few, uninterrupted / "pretrain", Trainer(CPU, _kill_at(0, 0)))
    assert _equal(network.state_dict(), _weights(uninterrupted / "pretrain"))


def test_folder_of_another_recipe_is_refused(recipe: Recipe, few: ImageSet, uninterrupted: Path) -> None:
    other = recipe.model_copy(update={"pretrain": recipe.pretrain.model_copy(update={"learning_rate": 0.2})})
    with pytest.raises(ResumeError, match=r"pretrain\.learning_rate = 0\.1, now 0\.2"):
        pretrain(other, few, uninterrupted / "pretrain", Trainer(CPU, silent))


def test_finetuning_before_pretraining_is_refused(
    recipe: Recipe, few: ImageSet, outliers: ImageSet, tmp_path: Path
) -> None:
    with pytest.raises(ResumeError, match="run the stage pretrain first"):
        finetune(recipe, few, outliers, tmp_path / "pretrain", tmp_path / "finetune", Trainer(CPU, silent))


class Linear(nn.Module):
    """Logits linear in the first pixel: what training does to it can be worked out by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, -1.0]]))

    def forward(self, images: torch.Tensor) -> NetworkOutput:
        logits = images[:, 0, 0, :1].float() @ self.weight
        return NetworkOutput(logits=logits, features=logits)


class OneBatch:
    """The same batch, so many times an epoch."""

    def __init__(self, steps: int, value: int = 1) -> None:
        self.steps = steps
        self.batch = Batch(torch.full((2, 1, 1, 3), value, dtype=torch.uint8), torch.tensor([0, 1]))

    def __len__(self) -> int:
        return self.steps

    def __call__(self, _: torch.Generator) -> Iterator[Batch]:
        return iter([self.batch] * self.steps)


def _stage(folder: Path, objective, batches, **optimisation: float) -> Stage:
    spec = {"epochs": 1, "batch_size": 2, "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.01} | optimisation
    return Stage("test", objective, batches, OptimisationSpec(**spec), ExecutionSpec(precision="float32"), 0, folder)


def test_steps_are_nesterov_sgd_with_weight_decay_on_a_cosine(tmp_path: Path) -> None:
    network = Linear()
    Trainer(CPU, silent).train(network, _stage(tmp_path, lambda output, _: output.logits.sum(), OneBatch(3)))
    weight, velocity = [1.0, -1.0], [0.0, 0.0]
    for step in range(3):
        rate = 1e-6 + (0.1 - 1e-6) * (1 + math.cos(math.pi * step / 3)) / 2
        for i in range(2):
            gradient = 2.0 + 0.01 * weight[i]
            velocity[i] = 0.9 * velocity[i] + gradient
            weight[i] -= rate * (gradient + 0.9 * velocity[i])
    torch.testing.assert_close(network.weight.detach(), torch.tensor([weight]))


def test_learning_rate_is_a_half_cosine() -> None:
    spec = OptimisationSpec(epochs=1, batch_size=2, learning_rate=0.1)
    assert learning_rate(0, 100, spec) == pytest.approx(0.1)
    assert learning_rate(50, 100, spec) == pytest.approx((0.1 + 1e-6) / 2)
    assert learning_rate(100, 100, spec) == pytest.approx(1e-6)


def test_loss_that_is_not_finite_names_the_step_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    calls = []

    def objective(output: NetworkOutput, labels: torch.Tensor) -> torch.Tensor:
        calls.append(None)
        return output.logits.sum() * (math.nan if len(calls) == 47 else 1.0)  # step 6 of the second epoch of 40

    with pytest.raises(DivergedError, match=r"not finite at step 6 of epoch 2.*epoch 1 stays at .*checkpoint\.pt"):
        Trainer(CPU, silent).train(Linear(), _stage(tmp_path, objective, OneBatch(40), epochs=3))
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert len(state["history"]) == 1
    assert torch.isfinite(state["network"]["weight"]).all()


def test_weights_that_the_last_step_blew_up_do_not_replace_the_checkpoint(tmp_path: Path) -> None:
    calls = []

    def objective(output: NetworkOutput, _: torch.Tensor) -> torch.Tensor:
        calls.append(None)
        # The last step of the second epoch: zero, with a gradient that is not finite.
        return (output.logits.sum() * 0).sqrt() if len(calls) == 10 else output.logits.sum()

    with pytest.raises(DivergedError, match=r"weight is not finite after the last step of epoch 2"):
        Trainer(CPU, silent).train(Linear(), _stage(tmp_path, objective, OneBatch(5), epochs=3))
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert len(state["history"]) == 1
    assert torch.isfinite(state["network"]["weight"]).all()


def test_checkpoint_takes_the_last_ones_place_when_it_is_safe_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = _stage(tmp_path, lambda output, _: output.logits.sum(), OneBatch(1), epochs=2)
    epochs: list[tuple[int, int]] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        fsync(descriptor)
        kept = read_checkpoint(stage.checkpoint)
        incoming = read_checkpoint(Path(f"/proc/self/fd/{descriptor}"))
        assert incoming is not None
        epochs.append((len(kept["history"]) if kept else 0, len(incoming["history"])))

    monkeypatch.setattr("os.fsync", watched)
    Trainer(CPU, silent).train(Linear(), stage)
    assert epochs == [(0, 1), (1, 2)]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_checkpoint_that_cannot_be_written_is_named_and_the_last_one_stays(tmp_path: Path) -> None:
    """What a full disk does to a file, a limit on its size does to every one of this process."""
    stage = _stage(tmp_path, lambda output, _: output.logits.sum(), OneBatch(1), epochs=2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(_: Stage, epoch: int, step: int, __: Figures) -> None:
        if (epoch, step) == (0, 1):
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))

    try:
        with pytest.raises(OutputError, match=rf"^{stage.checkpoint} cannot be written \(File too large\); make room"):
            Trainer(CPU, fill).train(Linear(), stage)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    kept = read_checkpoint(stage.checkpoint)
    assert kept is not None
    assert len(kept["history"]) == 1


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04"])
def test_damaged_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(ResumeError, match=r"checkpoint\.pt is no checkpoint"):
        Trainer(CPU, silent).train(Linear(), _stage(tmp_path, lambda output, _: output.logits.sum(), OneBatch(1)))


def test_stage_that_holds_weights_that_are_not_finite_is_refused(
    recipe: Recipe, few: ImageSet, outliers: ImageSet, uninterrupted: Path, tmp_path: Path
) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    path = tmp_path / "run/pretrain/weights.safetensors"
    weights = load_file(path)
    weights["stem.weight"].view(-1)[:2] = torch.tensor([math.nan, math.inf])
    save_file(weights, path)
    message = rf"{path}: 2 of 432 values of stem\.weight are not finite; remove the folder {path.parent}"
    with pytest.raises(WeightsError, match=message):
        pretrain(recipe, few, path.parent, Trainer(CPU, silent))
    (tmp_path / "run/finetune/inputs.json").unlink()
    with pytest.raises(WeightsError, match=message):
        finetune(recipe, few, outliers, path.parent, tmp_path / "run/finetune", Trainer(CPU, silent))


def test_checkpoint_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    stage = _stage(tmp_path, lambda output, _: output.logits.sum(), OneBatch(1), epochs=2)
    Trainer(CPU, silent).train(Linear(), stage)
    state = torch.load(stage.checkpoint, weights_only=True)
    state["network"]["weight"][0, 1] = math.nan
    torch.save(state, stage.checkpoint)
    with pytest.raises(WeightsError, match=r"checkpoint\.pt: 1 of 2 values of weight are not finite"):
        Trainer(CPU, silent).train(Linear(), stage)


def test_run_folder_takes_one_process_at_a_time(tmp_path: Path) -> None:
    with exclusive(tmp_path), pytest.raises(ResumeError, match="another process"), exclusive(tmp_path):
        pass
    with exclusive(tmp_path):
        assert tmp_path.exists()


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_stages_run_on_cuda(recipe: Recipe, few: ImageSet, outliers: ImageSet, tmp_path: Path, name: str) -> None:
    device = torch.device(name)
    pretrain(recipe, few, tmp_path / "pretrain", Trainer(device, silent))
    finetune(recipe, few, outliers, tmp_path / "pretrain", tmp_path / "finetune", Trainer(device, silent))
    assert all(torch.isfinite(value).all() for value in _weights(tmp_path / "finetune").values())


def test_history_counts_what_was_trained(tmp_path: Path) -> None:
    history = Trainer(CPU, silent).train(
        Linear(), _stage(tmp_path, lambda output, _: output.logits.sum() * 0 + 2, OneBatch(4))
    )
    assert (history[0].epoch, history[0].loss) == (0, 2.0)
    assert history[0].accuracy == 0.5  # logits (1, -1) are class 0 for both; the labels are 0 and 1
    assert history[0].images_per_s * history[0].seconds == pytest.approx(8)


def test_labelled_batches_show_every_image_once_in_a_new_order(train_set: ImageSet) -> None:
    batches = LabelledBatches(train_set, 64, PLAIN, CPU)
    generator = torch.Generator().manual_seed(0)
    first, second = list(batches(generator)), list(batches(generator))
    assert [len(batch.images) for batch in first] == [64, 64, 64, 8]
    assert len(batches) == 4
    expected = sorted(
        (image.tobytes(), int(label)) for image, label in zip(train_set.images, train_set.labels, strict=True)
    )
    for epoch in (first, second):
        pairs = [(i.numpy().tobytes(), int(label)) for b in epoch for i, label in zip(b.images, b.labels, strict=True)]
        assert sorted(pairs) == expected
    assert not torch.equal(first[0].images, second[0].images)


def test_batches_that_are_augmented_together_are_the_same_batches(
    train_set: ImageSet, outliers: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a GPU does, three at once of four, the last of them short; nothing is drawn by a plain augmentation."""
    labelled = LabelledBatches(train_set, 64, PLAIN, CPU)
    kinds = labelled, OutlierBatches(labelled, outliers, 32, seed=0)
    one_by_one = [list(batches(torch.Generator().manual_seed(0))) for batches in kinds]
    monkeypatch.setattr("training.batches.AT_ONCE", {"cpu": 3})
    calls = []
    monkeypatch.setattr("training.batches.augment", lambda images, *_: calls.append(len(images)) or images)
    together = [list(batches(torch.Generator().manual_seed(0))) for batches in kinds]
    assert calls == [192, 8, 192, 96, 8, 32]
    for expected, found in zip(one_by_one, together, strict=True):
        for one, other in zip(expected, found, strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.labels, other.labels)


def test_outliers_follow_the_labelled_images_round_and_round(train_set: ImageSet, outliers: ImageSet) -> None:
    labelled = LabelledBatches(train_set, 50, PLAIN, CPU)
    batches = OutlierBatches(labelled, outliers, 100, seed=0)
    generator = torch.Generator().manual_seed(5)
    epoch = list(batches(generator))
    assert [(len(b.images), len(b.labels)) for b in epoch] == [(150, 50)] * 4 == [(150, 50)] * len(batches)
    shown = torch.cat([b.images[50:] for b in epoch]).numpy()  # 400 of 150 outliers
    rows = {image.tobytes(): row for row, image in enumerate(outliers.images[batches.order.numpy()])}
    order = [rows[image.tobytes()] for image in shown]
    assert order == [(order[0] + step) % 150 for step in range(400)]
    again = next(iter(batches(generator))).images[50:]
    assert rows[again[0].numpy().tobytes()] != order[0]  # another epoch, another offset


def test_synthetic_outliers_follow_the_images_they_are_made_of(train_set: ImageSet) -> None:
    """Of images of one level each: what is inverted in green alone keeps the level of its image in red."""
    flat = np.full_like(train_set.pixels, 1) * np.arange(20, 220, dtype=np.uint8)[:, None, None, None]
    flat = replace(train_set, pixels=flat)
    labelled = LabelledBatches(flat, 50, PLAIN, CPU)
    batches = SyntheticOutlierBatches(labelled, 90)
    epoch, again = (list(batches(torch.Generator().manual_seed(5))) for _ in range(2))
    assert [(len(b.images), len(b.labels)) for b in epoch] == [(140, 50)] * 4 == [(140, 50)] * len(batches)
    assert all(torch.equal(a.images, b.images) for a, b in zip(epoch, again, strict=True))
    for batch in epoch:
        own = set(batch.images[:50, 0, 0, 0].tolist())
        inverted = batch.images[50:].split(10)[KINDS.index("inversion")][:, 0, 0]
        assert set(inverted[:, 0].tolist()) <= own
        assert torch.equal(inverted[:, 1], 255 - inverted[:, 0])


@pytest.mark.slow
def test_compiled_step_trains_as_the_eager_one(recipe: Recipe, train_set: ImageSet, tmp_path: Path) -> None:
    once = recipe.model_copy(
        update={
            "network": recipe.network.model_copy(update={"dropout": 0.0}),
            "pretrain": recipe.pretrain.model_copy(update={"epochs": 1, "batch_size": 200}),
        }
    )
    compiled = once.model_copy(update={"execution": ExecutionSpec(precision="float32", compile=True)})
    eager = pretrain(once, train_set, tmp_path / "eager", Trainer(CPU, silent))
    other = pretrain(compiled, train_set, tmp_path / "compiled", Trainer(CPU, silent))
    for key, value in eager.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value, rtol=1e-3, atol=1e-4)
