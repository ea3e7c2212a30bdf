"""One step of training up to its gradients: eager, compiled, or on a GPU replayed as one CUDA graph."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from model_store.networks import NetworkOutput
from training.distributed import Processes
from training.losses import Objective
from training.stage_specs import ExecutionSpec

_WARM_UP_STEPS = 3
"""Before a capture, as PyTorch's documentation has it: compilers and libraries choose their kernels in the first."""


class Batch(NamedTuple):
    """Pixels uint8 (N + M, H, W, 3), the N in-distribution images first, and their labels int64 (N,).

    Of several processes each has its share of the pixels, and the labels of all.
    """

    images: Tensor
    labels: Tensor


class StepOutput(NamedTuple):
    """The loss, a scalar, and logits float32 (N + M, K), both detached; good until the next step."""

    loss: Tensor
    logits: Tensor


class Step(Protocol):
    """Runs a batch forward and backward."""

    def __call__(self, batch: Batch) -> StepOutput:
        """Leave the gradients of this batch's loss in the parameters, in place of those of the last."""
        ...


def make_step(
    network: nn.Module, objective: Objective, execution: ExecutionSpec, processes: Processes, device: torch.device
) -> Step:
    """Return what runs the steps of `network` (uint8 pixels to logits) as fast as its device and execution allow.

    Compiled code and graphs are of one size of batch, the first that comes; an epoch's last, if smaller, runs eager.

    network: on `device`, in training mode.
    """
    parallel = processes.parallel(network, device)

    def step_of(forward: Callable[[Tensor], NetworkOutput]) -> EagerStep:
        return EagerStep(network, forward, objective, execution.precision == "bfloat16", processes, device)

    eager = step_of(parallel)
    usual = step_of(torch.compile(parallel, dynamic=False)) if execution.compile else eager
    captured = device.type == "cuda" and processes.count == 1  # collectives of several do without
    fast = CapturedStep(usual, device) if captured else usual
    return eager if fast is eager else UsualSizeStep(fast, eager)


@dataclass(frozen=True)
class EagerStep:
    """Launches every kernel by itself."""

    network: nn.Module
    forward: Callable[[Tensor], NetworkOutput]
    objective: Objective
    bfloat16: bool
    processes: Processes
    device: torch.device

    def __call__(self, batch: Batch) -> StepOutput:
        """Run `forward` in the precision, objective and last layer in float32, and backward."""
        self.network.zero_grad(set_to_none=True)
        # Without the cache of casts, which would outlive a capture; weights are cast once a step anyway.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16, cache_enabled=False):
            output = self.processes.gather(self.forward(batch.images), len(batch.labels))
        loss = self.objective(output, batch.labels)
        self.processes.backward(loss)
        return StepOutput(loss.detach(), output.logits.detach())


class UsualSizeStep:
    """Takes batches of the size of the first by one step, all others by another."""

    def __init__(self, usual: Step, other: Step) -> None:
        self._usual = usual
        self._other = other
        self._size: tuple[int, int] | None = None

    def __call__(self, batch: Batch) -> StepOutput:
        """Run the step of the batch's size."""
        size = len(batch.images), len(batch.labels)
        self._size = self._size or size
        return (self._usual if size == self._size else self._other)(batch)


class CapturedStep:
    """A step on CUDA, captured at the first batch and replayed from then on: one launch instead of a thousand.

    A 128-image step is so short that launching its kernels one by one takes longer than they do. Gradients lie where
    the capture put them; between replays other steps may leave theirs in the parameters.
    """

    def __init__(self, step: EagerStep, device: torch.device) -> None:
        self._step = step
        self._device = device
        self._parameters = [each for each in step.network.parameters() if each.requires_grad]
        self._replay: Callable[[Batch], StepOutput] | None = None

    def __call__(self, batch: Batch) -> StepOutput:
        """Copy the batch to where the graph reads it, and replay."""
        with torch.cuda.device(self._device):
            if self._replay is None:
                self._replay = self._captured(batch)
            return self._replay(batch)

    def _captured(self, like: Batch) -> Callable[[Batch], StepOutput]:
        batch = Batch(*(tensor.clone() for tensor in like))
        graph = torch.cuda.CUDAGraph()
        with _untouched(self._step.network, self._device), _fastest_convolutions():
            self._warm_up(batch)
            with torch.cuda.graph(graph):
                output = self._step(batch)
        gradients = [parameter.grad for parameter in self._parameters]

        def replay(given: Batch) -> StepOutput:
            for kept, new in zip(batch, given, strict=True):
                kept.copy_(new)
            graph.replay()
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                parameter.grad = gradient
            return output

        return replay

    def _warm_up(self, batch: Batch) -> None:
        current = torch.cuda.current_stream(self._device)
        aside = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UP_STEPS):
                self._step(batch)
        current.wait_stream(aside)


@contextmanager
def _untouched(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Leave the network's buffers and the device's random numbers as they were: running means, dropout's place."""
    buffers, random = [(each, each.clone()) for each in network.buffers()], torch.cuda.get_rng_state(device)
    yield
    for buffer, before in buffers:
        buffer.copy_(before)
    torch.cuda.set_rng_state(random, device)


@contextmanager
def _fastest_convolutions() -> Iterator[None]:
    """Let cuDNN try its algorithms for every new shape and keep the fastest; worth it where shapes stay."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
