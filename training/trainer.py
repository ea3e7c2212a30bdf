"""The training loop of every stage: seeded epochs, a checkpoint after each, the same weights after any resume."""

import hashlib
import io
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from model_store.manifest import PreprocessSpec
from model_store.networks import NormalisedNetwork
from model_store.runtimes.torch_runtime import forbid_tf32
from training.distributed import ALONE, Processes
from training.errors import DivergedError, ResumeError
from training.hardware import hardware
from training.losses import Objective
from training.run_folder import (
    is_done,
    open_stage,
    read_weights,
    require_finite,
    write_bytes,
    write_json,
    write_weights,
)
from training.stage_specs import ExecutionSpec, OptimisationSpec
from training.step import Batch, Step, make_step

FINAL_LEARNING_RATE = 1e-6
CHECKPOINT = "checkpoint.pt"
CHECK_EVERY_STEPS = 20
"""Between two looks at the loss the device is not waited for."""
AVERAGE_EVERY_STEPS = 50
"""Weights of neighbouring steps are nearly the same; more of them cost time and change little."""
STATISTICS_STEPS = 100
"""Batches from which batch-norm statistics of averaged weights are measured: 12,800 images at the usual size."""


class EpochBatches(Protocol):
    """The batches of one epoch, drawn by a generator; always equally many."""

    def __len__(self) -> int:
        """Return the steps of an epoch."""
        ...

    def __call__(self, generator: Generator) -> Iterator[Batch]:
        """Yield one epoch."""
        ...


@dataclass(frozen=True)
class Figures:
    """Running means of an epoch: loss and accuracy over its steps as they were taken, images of both roles a second."""

    loss: float
    accuracy: float
    images_per_s: float


@dataclass(frozen=True)
class Epoch(Figures):
    """What one pass over the training images did; `epoch` counts from 0."""

    epoch: int
    seconds: float
    hardware: str = ""
    """Of process 0; what was written before this was kept has none."""


@dataclass(frozen=True)
class Stage:
    """One stage of training: what is minimised, over which batches, how, and where its results go."""

    name: str
    objective: Objective
    batches: EpochBatches
    optimisation: OptimisationSpec
    execution: ExecutionSpec
    seed: int
    folder: Path

    @property
    def checkpoint(self) -> Path:
        """The state after the last whole epoch."""
        return self.folder / CHECKPOINT


class Progress(Protocol):
    """Watches a stage: called with the running figures every few steps."""

    def __call__(self, stage: Stage, epoch: int, step: int, figures: Figures) -> None:
        """Show where the stage is: `step` of `epoch` are done; all of them once the epoch is safe on disk."""
        ...


@dataclass(frozen=True)
class Trainer:
    """Trains networks, whatever their stage: where, before whose eyes, and in which processes together."""

    device: torch.device
    progress: Progress
    processes: Processes = ALONE

    def train_or_load(
        self, network: nn.Module, preprocess: PreprocessSpec, stage: Stage, inputs: dict[str, Any]
    ) -> None:
        """Bring `network` to the end of a stage, in place: load its weights if it is done, else train or resume.

        inputs: all that the weights depend on, kept in the stage's folder.

        Raises:
            ResumeError: the folder was begun from other inputs.
            DivergedError: the loss is not finite.
        """
        if self.processes.first_does(lambda: _is_done(stage.folder, inputs)):
            self.processes.first_fills(network, lambda: read_weights(stage.folder, network))
            return
        history = self.train(NormalisedNetwork(network, preprocess), stage)
        self.processes.first_does(lambda: _finish(stage.folder, network, history))

    def train(self, network: nn.Module, stage: Stage) -> list[Epoch]:
        """Train `network` (uint8 pixels to logits) in place, from the checkpoint if there is one; return all epochs.

        Each epoch draws from generators seeded by (seed, stage, epoch), so a resumed run ends in the same weights.

        Raises:
            DivergedError: the loss is not finite; the checkpoint of the last whole epoch stays.
        """
        forbid_tf32()
        network.to(self.device).to(memory_format=torch.channels_last).train()
        spec = stage.optimisation
        optimizer = torch.optim.SGD(
            network.parameters(),
            spec.learning_rate,
            spec.momentum,
            weight_decay=spec.weight_decay,
            nesterov=spec.momentum > 0,  # without any PyTorch refuses it
            fused=self.device.type == "cuda",
        )
        average = AveragedModel(network) if spec.averaged_epochs else None
        history = self._restore(stage, network, optimizer, average)
        take_step = make_step(network, stage.objective, stage.execution, self.processes, self.device)
        for epoch in range(len(history), spec.epochs):
            averaging = average if epoch >= spec.epochs - (spec.averaged_epochs or 0) else None
            finished = self._train_epoch(network, take_step, optimizer, averaging, stage, epoch)
            history.append(finished)
            self.processes.first_does(lambda: _keep(stage, network, optimizer, average, history))
            self.progress(stage, epoch, len(stage.batches), finished)
        if average is not None:
            self._take_average(network, average, stage)
        return history

    def _take_average(self, network: nn.Module, average: AveragedModel, stage: Stage) -> None:
        """Give `network` the mean weights, and batch-norm statistics measured with them: those of no step would fit."""
        network.load_state_dict(average.module.state_dict())
        measure_batch_norm(network, stage.batches, self._seed_epoch(stage, stage.optimisation.epochs))

    def _train_epoch(
        self,
        network: nn.Module,
        take_step: Step,
        optimizer: torch.optim.Optimizer,
        averaging: AveragedModel | None,
        stage: Stage,
        epoch: int,
    ) -> Epoch:
        generator = self._seed_epoch(stage, epoch)
        running = _Running(self.device)
        spec, steps = stage.optimisation, len(stage.batches)
        for step, batch in enumerate(stage.batches(generator)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(epoch * steps + step, spec.epochs * steps, spec)
            output = take_step(batch)
            optimizer.step()
            if averaging is not None and (step % AVERAGE_EVERY_STEPS == 0 or step == steps - 1):
                averaging.update_parameters(network)
            running.add(output.loss, output.logits, batch.labels)
            if step % CHECK_EVERY_STEPS == 0 or step == steps - 1:
                self.processes.first_does(lambda: _check_finite(running, stage, epoch))
                self.progress(stage, epoch, step, running.figures())
        figures = running.figures()
        seconds = running.images / figures.images_per_s
        return Epoch(epoch=epoch, seconds=seconds, hardware=hardware(self.device), **asdict(figures))

    def _seed_epoch(self, stage: Stage, epoch: int) -> Generator:
        """Seed dropout, and return the generator of order and augmentation, for this epoch of this stage alone."""
        digest = hashlib.sha256(f"{stage.seed}/{stage.name}/{epoch}".encode()).digest()
        mixed = int.from_bytes(digest[:8], "big") >> 1
        torch.manual_seed(self.processes.own_seed(mixed))
        return Generator(self.device).manual_seed(mixed)

    def _restore(
        self, stage: Stage, network: nn.Module, optimizer: torch.optim.Optimizer, average: AveragedModel | None
    ) -> list[Epoch]:
        state = self.processes.first_does(lambda: read_checkpoint(stage.checkpoint))
        if state is None:
            return []
        try:
            network.load_state_dict(state["network"])
            optimizer.load_state_dict(state["optimizer"])
            if average is not None:
                average.load_state_dict(state["average"])
            require_finite(stage.checkpoint, state["network"])
            return [Epoch(**epoch) for epoch in state["history"]]
        except (KeyError, RuntimeError, TypeError, ValueError) as err:
            raise _no_checkpoint(stage.checkpoint, err) from err


def measure_batch_norm(network: nn.Module, batches: EpochBatches, generator: Generator) -> None:
    """Measure the batch-norm statistics of `network` (uint8 pixels to logits) anew, over the first batches."""
    forbid_tf32()
    update_bn(islice(batches(generator), STATISTICS_STEPS), network)  # takes the first of each batch, the images


def learning_rate(step: int, steps: int, spec: OptimisationSpec) -> float:
    """Return the rate of step 0 <= `step` < `steps`: a half cosine to 1e-6, or one rate where weights are averaged."""
    if spec.averaged_epochs is not None:
        return spec.learning_rate
    cosine = (1 + math.cos(math.pi * step / steps)) / 2
    return FINAL_LEARNING_RATE + (spec.learning_rate - FINAL_LEARNING_RATE) * cosine


class _Running:
    """Sums over an epoch, kept on the device so that no step waits for the host."""

    def __init__(self, device: torch.device) -> None:
        self.start = time.perf_counter()
        self.steps = self.labelled = self.images = 0
        self.loss = torch.zeros((), device=device)
        self.correct = torch.zeros((), device=device)
        self.first_bad_step = torch.full((), -1, device=device)

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        bad = ~torch.isfinite(loss) & (self.first_bad_step < 0)
        self.first_bad_step = torch.where(bad, self.steps, self.first_bad_step)
        self.loss += loss
        self.correct += (logits[: len(labels)].argmax(dim=1) == labels).sum()
        self.steps += 1
        self.labelled += len(labels)
        self.images += len(logits)

    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def figures(self) -> Figures:
        return Figures(
            loss=self.loss.item() / self.steps,
            accuracy=self.correct.item() / self.labelled,
            images_per_s=self.images / self.seconds(),
        )


def _check_finite(running: _Running, stage: Stage, epoch: int) -> None:
    if (step := int(running.first_bad_step)) >= 0:
        raise _diverged(f"the loss of {stage.name} is not finite at step {step}", stage, epoch)


def _keep(
    stage: Stage,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
    history: list[Epoch],
) -> None:
    """Save the state after the last epoch of `history`; weights that its last step blew up replace no good ones."""
    for name, tensor in network.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise _diverged(f"{name} is not finite after the last step", stage, history[-1].epoch)
    _save(stage.checkpoint, network, optimizer, average, history)


def _diverged(what: str, stage: Stage, epoch: int) -> DivergedError:
    kept = f"the checkpoint of epoch {epoch} stays at {stage.checkpoint}" if epoch else "no epoch was finished"
    return DivergedError(
        f"{what} of epoch {epoch + 1}; {kept}. "
        f"Lower the learning rate ({stage.optimisation.learning_rate}) or the weight of the regulariser"
    )


def _save(
    path: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
    history: list[Epoch],
) -> None:
    state = {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": None if average is None else average.state_dict(),
        "history": [asdict(epoch) for epoch in history],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()  # to a file PyTorch says of a full disk only that a position was not expected
    torch.save(state, content)
    write_bytes(path, content.getbuffer())


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """Return the state that a stage's last whole epoch left, on the CPU; None before the first.

    Raises:
        ResumeError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return state
    except (EOFError, OSError, RuntimeError, UnpicklingError, ValueError) as err:
        raise _no_checkpoint(path, err) from err


def _no_checkpoint(path: Path, err: Exception) -> ResumeError:
    return ResumeError(f"{path} is no checkpoint of this stage ({err}); remove it to train the stage anew")


def _is_done(folder: Path, inputs: dict[str, Any]) -> bool:
    open_stage(folder, inputs)
    return is_done(folder)


def _finish(folder: Path, network: nn.Module, history: list[Epoch]) -> None:
    write_json(folder / "history.json", [asdict(epoch) for epoch in history])
    write_weights(folder, network)
