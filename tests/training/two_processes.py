"""What test_distributed.py has two processes do: `torchrun --nproc-per-node 2 two_processes.py OUT IMAGES`.

Each leaves what it saw in `OUT/seen-<rank>.pt`.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model_store.manifest import PreprocessSpec
from model_store.networks import NetworkOutput, NormalisedNetwork
from model_store.networks.wide_resnet import WideResNet
from training.augment_spec import AugmentSpec
from training.batches import LabelledBatches, OutlierBatches
from training.config import Recipe, read_recipe
from training.datasets import ImageSet, load_set
from training.distributed import Processes, joined
from training.errors import DataError
from training.finetune import finetune
from training.losses import make_objective
from training.objective_spec import EnergyBoundedSpec
from training.pretrain import pretrain
from training.progress import silent
from training.stage_specs import ExecutionSpec, OptimisationSpec
from training.trainer import Figures, Stage, Trainer

CPU = torch.device("cpu")
PLAIN = AugmentSpec(flip=False, crop_padding=0)
IMAGES = 149
"""Of batches of 44 the last has 17: shares of 8 and 9."""


class Frozen(WideResNet):
    """A network whose batch norm keeps its statistics while it trains."""

    def train(self, mode: bool = True) -> "Frozen":
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


class KilledError(Exception):
    """Stands for a kill -9: nothing after it runs."""


def frozen_network(preprocess: PreprocessSpec) -> NormalisedNetwork:
    torch.manual_seed(3)
    return NormalisedNetwork(Frozen(10, 1, 0.0, 10), preprocess)


def energy_stage(folder: Path, train_set: ImageSet, outliers: ImageSet, processes: Processes) -> Stage:
    """Two epochs of energy fine-tuning on images as they are: every draw is the order's."""
    some = train_set.subset(torch.arange(IMAGES).numpy())
    labelled = LabelledBatches(some, 44, PLAIN, CPU, processes)
    return Stage(
        name="energy",
        objective=make_objective(EnergyBoundedSpec(margin_in=-8.0, margin_out=-3.0)),
        batches=OutlierBatches(labelled, outliers, 22, seed=0),
        optimisation=OptimisationSpec(epochs=2, batch_size=44, learning_rate=0.01),
        execution=ExecutionSpec(precision="float32"),
        seed=0,
        folder=folder,
    )


def kill_at(epoch: int, step: int) -> Callable[..., None]:
    def progress(stage: Stage, at_epoch: int, at_step: int, figures: Figures) -> None:
        if (at_epoch, at_step) == (epoch, step):
            raise KilledError

    return progress


def attempt(action: Callable[[], Any]) -> str:
    """Return what went wrong."""
    try:
        action()
    except (Exception, SystemExit) as err:
        return f"{type(err).__name__}: {err}"
    return "nothing"


def exact(out: Path, train_set: ImageSet, outliers: ImageSet, preprocess: PreprocessSpec, processes: Processes) -> dict:
    network = frozen_network(preprocess)
    history = Trainer(CPU, silent, processes).train(
        network, energy_stage(out / "exact", train_set, outliers, processes)
    )
    cut = energy_stage(out / "cut", train_set, outliers, processes)
    killed = attempt(lambda: Trainer(CPU, kill_at(1, 0), processes).train(frozen_network(preprocess), cut))
    return {"weights": network.state_dict(), "history": history, "killed": killed}


def every_draw(tiny: Recipe) -> Recipe:
    """Dropout, flips, crops, noise and JPEG, an epoch or two of each stage."""
    augment = AugmentSpec(noise_sd_max=8.0, jpeg=tiny.augment.jpeg)
    return tiny.model_copy(
        update={
            "network": tiny.network.model_copy(update={"dropout": 0.3}),
            "augment": augment,
            "pretrain": tiny.pretrain.model_copy(update={"epochs": 2}),
            "finetune": tiny.finetune.model_copy(update={"epochs": 1}),
        }
    )


def stages(out: Path, recipe: Recipe, train_set: ImageSet, outliers: ImageSet, processes: Processes) -> dict:
    """Both stages whole, and pre-training killed and resumed; each process is told another folder."""
    whole, cut = out / f"whole-{processes.rank}", out / f"cut-{processes.rank}"
    pretrained = pretrain(recipe, train_set, whole / "pretrain", Trainer(CPU, silent, processes))
    tuned = finetune(
        recipe, train_set, outliers, whole / "pretrain", whole / "finetune", Trainer(CPU, silent, processes)
    )
    killed = attempt(lambda: pretrain(recipe, train_set, cut, Trainer(CPU, kill_at(1, 0), processes)))
    resumed = pretrain(recipe, train_set, cut, Trainer(CPU, silent, processes))
    loaded = pretrain(recipe, train_set, whole / "pretrain", Trainer(CPU, kill_at(0, 0), processes))
    networks = {"pretrained": pretrained, "tuned": tuned, "resumed": resumed, "loaded": loaded}
    return {"killed": killed, "networks": {name: network.state_dict() for name, network in networks.items()}}


def draws(train_set: ImageSet, outliers: ImageSet, processes: Processes) -> dict:
    """One epoch as it is, and one of grey images, where all that differs is the noise."""

    def epoch(spec: AugmentSpec, grey: bool) -> list:
        labelled = LabelledBatches(train_set, 50, spec, CPU, processes)
        batches = OutlierBatches(labelled, outliers, 20, seed=0)
        if grey:
            for placed in (labelled.images, batches.images):
                placed.pixels = torch.full_like(placed.pixels, 128)
        return list(batches(torch.Generator().manual_seed(5)))

    return {"plain": epoch(PLAIN, False), "noise": epoch(PLAIN.model_copy(update={"noise_sd_max": 32.0}), True)}


class Linear(nn.Module):
    """Logits linear in the first pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, -1.0]]))

    def forward(self, images: Tensor) -> NetworkOutput:
        logits = images[:, 0, 0, :1].float() @ self.weight
        return NetworkOutput(logits=logits, features=logits)


def gathered(processes: Processes) -> dict:
    """A loss of the whole batch that is no mean over images: rows of 5 labelled images and 4 outliers."""
    whole = torch.arange(1.0, 19.0).reshape(9, 2).requires_grad_()
    mine = torch.cat([whole[:5][processes.share(5)], whole[5:][processes.share(4)]])
    output = processes.gather(NetworkOutput(mine, 2 * mine), 5)
    processes.backward(output.logits.prod(dim=1).logsumexp(dim=0) + output.features.max())
    torch.distributed.all_reduce(whole.grad)
    return {"rows": output.logits.detach(), "gradient": whole.grad / processes.count}  # as DDP averages


def failures(out: Path, train_set: ImageSet, processes: Processes) -> dict:
    def fail_in(rank: int) -> None:
        if processes.rank == rank:
            raise DataError(f"broken in {rank}")

    class NotFiniteInSecond(Linear):
        def forward(self, images: Tensor) -> NetworkOutput:
            output = super().forward(images)
            return output if processes.rank == 0 else NetworkOutput(output.logits * torch.nan, output.features)

    stage = Stage(
        "bad",
        lambda output, _: (output if isinstance(output, Tensor) else output.logits).sum(),
        LabelledBatches(train_set, 50, PLAIN, CPU, processes),
        OptimisationSpec(epochs=1, batch_size=50, learning_rate=0.1),
        ExecutionSpec(precision="float32"),
        0,
        out / f"bad-{processes.rank}",
    )
    return {
        "first": attempt(lambda: processes.first_does(lambda: fail_in(0))),
        "each": attempt(lambda: processes.each_does(lambda: fail_in(1))),
        "same": attempt(lambda: processes.require_same("it", "alike")),
        "different": attempt(lambda: processes.require_same("it", str(processes.rank))),
        "not finite": attempt(lambda: Trainer(CPU, silent, processes).train(NotFiniteInSecond(), stage)),
    }


def main(out: Path, images: Path) -> None:
    tiny = read_recipe(Path("tiny"))
    train_set, outliers = (load_set(f"{name}/train", images, tiny.preprocess, None) for name in ("cifar10", "outliers"))
    with joined() as processes:
        seen = {
            "count": processes.count,
            "exact": exact(out, train_set, outliers, tiny.preprocess, processes),
            "stages": stages(out, every_draw(tiny), train_set, outliers, processes),
            "draws": draws(train_set, outliers, processes),
            "gathered": gathered(processes),
            "failures": failures(out, train_set, processes),
        }
        torch.save(seen, out / f"seen-{processes.rank}.pt")
        processes.leave_to_first()
        (out / f"left-{processes.rank}-{processes.count}").touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
