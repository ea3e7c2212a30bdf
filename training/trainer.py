"""The training loop of every stage: seeded epochs, a checkpoint after each, the same weights after any resume."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple, Protocol

import torch
from torch import Generator, Tensor, nn

from model_store.manifest import PreprocessSpec
from model_store.networks import NormalisedNetwork
from training.config import ExecutionSpec, OptimisationSpec
from training.errors import DivergedError, ResumeError
from training.losses import Objective
from training.run_folder import is_done, open_stage, read_weights, write_json, write_weights

FINAL_LEARNING_RATE = 1e-6
CHECK_EVERY_STEPS = 20
"""Between two looks at the loss the device is not waited for."""


class Batch(NamedTuple):
    """Pixels uint8 (N + M, H, W, 3), the N in-distribution images first, and their labels int64 (N,)."""

    images: Tensor
    labels: Tensor


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


@dataclass(frozen=True)
class Stage:
    """One stage of training: what is minimised, over which batches, how, and the folder of its results."""

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
        return self.folder / "checkpoint.pt"


class Progress(Protocol):
    """Watches a stage: called with the running figures every few steps."""

    def __call__(self, stage: Stage, epoch: int, step: int, figures: Figures) -> None:
        """Show where the stage is: `step` of `epoch` are done; all of them once the epoch is safe on disk."""
        ...


def train_or_load(
    network: nn.Module,
    preprocess: PreprocessSpec,
    stage: Stage,
    inputs: dict[str, Any],
    device: torch.device,
    progress: Progress,
) -> None:
    """Bring `network` to the end of a stage, in place: load its weights if it is done, else train or resume.

    inputs: all that the weights depend on, kept in the stage's folder.

    Raises:
        ResumeError: the folder was begun from other inputs.
        DivergedError: the loss is not finite.
    """
    open_stage(stage.folder, inputs)
    if is_done(stage.folder):
        read_weights(stage.folder, network)
        return
    history = train(NormalisedNetwork(network, preprocess), stage, device, progress)
    write_json(stage.folder / "history.json", [asdict(epoch) for epoch in history])
    write_weights(stage.folder, network)


def train(network: nn.Module, stage: Stage, device: torch.device, progress: Progress) -> list[Epoch]:
    """Train `network` (uint8 pixels to logits) in place, from the checkpoint if there is one; return all epochs.

    Each epoch draws from generators seeded by (seed, stage, epoch), so a resumed run ends in the same weights.

    Raises:
        DivergedError: the loss is not finite; the checkpoint of the last whole epoch stays.
    """
    network.to(device).to(memory_format=torch.channels_last).train()
    spec = stage.optimisation
    optimizer = torch.optim.SGD(
        network.parameters(), spec.learning_rate, spec.momentum, weight_decay=spec.weight_decay, nesterov=True
    )
    history = _restore(stage.checkpoint, network, optimizer, device)
    forward = torch.compile(network, dynamic=False) if stage.execution.compile else network
    for epoch in range(len(history), spec.epochs):
        finished = _train_epoch(forward, optimizer, stage, epoch, device, progress)
        _require_finite(network, stage, epoch)
        history.append(finished)
        _save(stage.checkpoint, network, optimizer, history)
        progress(stage, epoch, len(stage.batches), finished)
    return history


def learning_rate(step: int, steps: int, initial: float) -> float:
    """Return the rate of step 0 <= `step` < `steps`: a half cosine from `initial` to 1e-6."""
    cosine = (1 + math.cos(math.pi * step / steps)) / 2
    return FINAL_LEARNING_RATE + (initial - FINAL_LEARNING_RATE) * cosine


def _train_epoch(
    forward: Callable[[Tensor], Any],
    optimizer: torch.optim.Optimizer,
    stage: Stage,
    epoch: int,
    device: torch.device,
    progress: Progress,
) -> Epoch:
    generator = _seed_epoch(stage, epoch, device)
    running = _Running(device)
    total_steps = stage.optimisation.epochs * len(stage.batches)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=stage.execution.precision == "bfloat16")
    for step, batch in enumerate(stage.batches(generator)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(
                epoch * len(stage.batches) + step, total_steps, stage.optimisation.learning_rate
            )
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            output = forward(batch.images)
        loss = stage.objective(output, batch.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        running.add(loss.detach(), output.logits.detach()[: len(batch.labels)], batch)
        if step % CHECK_EVERY_STEPS == 0 or step == len(stage.batches) - 1:
            _check_finite(running, stage, epoch)
            progress(stage, epoch, step, running.figures())
    figures = running.figures()
    return Epoch(epoch=epoch, seconds=running.images / figures.images_per_s, **asdict(figures))


class _Running:
    """Sums over an epoch, kept on the device so that no step waits for the host."""

    def __init__(self, device: torch.device) -> None:
        self.start = time.perf_counter()
        self.steps = self.labelled = self.images = 0
        self.loss = torch.zeros((), device=device)
        self.correct = torch.zeros((), device=device)
        self.first_bad_step = torch.full((), -1, device=device)

    def add(self, loss: Tensor, logits: Tensor, batch: Batch) -> None:
        bad = ~torch.isfinite(loss) & (self.first_bad_step < 0)
        self.first_bad_step = torch.where(bad, self.steps, self.first_bad_step)
        self.loss += loss
        self.correct += (logits.argmax(dim=1) == batch.labels).sum()
        self.steps += 1
        self.labelled += len(batch.labels)
        self.images += len(batch.images)

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


def _require_finite(network: nn.Module, stage: Stage, epoch: int) -> None:
    """Keep weights that a last step blew up from replacing the last good checkpoint."""
    for name, tensor in network.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise _diverged(f"{name} is not finite after the last step", stage, epoch)


def _diverged(what: str, stage: Stage, epoch: int) -> DivergedError:
    kept = f"the checkpoint of epoch {epoch} stays at {stage.checkpoint}" if epoch else "no epoch was finished"
    return DivergedError(
        f"{what} of epoch {epoch + 1}; {kept}. "
        f"Lower the learning rate ({stage.optimisation.learning_rate}) or the weight of the regulariser"
    )


def _seed_epoch(stage: Stage, epoch: int, device: torch.device) -> Generator:
    """Seed dropout, and return the generator of order and augmentation, for this epoch of this stage alone."""
    digest = hashlib.sha256(f"{stage.seed}/{stage.name}/{epoch}".encode()).digest()
    mixed = int.from_bytes(digest[:8], "big") >> 1
    torch.manual_seed(mixed)
    return Generator(device).manual_seed(mixed)


def _save(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, history: list[Epoch]) -> None:
    state = {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "history": [asdict(epoch) for epoch in history],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _restore(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> list[Epoch]:
    if not path.exists():
        return []
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        return [Epoch(**epoch) for epoch in state["history"]]
    except (EOFError, KeyError, OSError, RuntimeError, TypeError, UnpicklingError, ValueError) as err:
        raise ResumeError(f"{path} is no checkpoint of this stage ({err}); remove it to train the stage anew") from err
