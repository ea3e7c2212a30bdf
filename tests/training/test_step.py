"""Steps that are captured, and those of an unusual size, leave what an eager step leaves."""

import copy
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from model_store.manifest import WideResNetSpec
from model_store.networks import NetworkOutput, NormalisedNetwork, build_network
from training.config import read_recipe
from training.distributed import ALONE
from training.losses import make_objective
from training.objective_spec import EnergyBoundedSpec
from training.stage_specs import ExecutionSpec
from training.step import Batch, EagerStep, Step, StepOutput, UsualSizeStep, make_step

OBJECTIVE = make_objective(EnergyBoundedSpec(kind="energy_bounded", margin_in=-5.0, margin_out=-2.0, weight=0.1))
FLOAT32 = ExecutionSpec(precision="float32")


def _network(device: torch.device, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    spec = WideResNetSpec(depth=10, widen_factor=1, dropout=dropout, num_classes=10)
    preprocess = read_recipe(Path("tiny")).preprocess
    network = NormalisedNetwork(build_network(spec), preprocess)
    return network.to(device).to(memory_format=torch.channels_last).train()


def _batch(device: torch.device, labelled: int, outliers: int, seed: int) -> Batch:
    generator = torch.Generator(device).manual_seed(seed)
    shape = (labelled + outliers, 32, 32, 3)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator, device=device)
    return Batch(images, torch.randint(10, (labelled,), generator=generator, device=device))


def _gradients(network: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in network.parameters()]


def _eager(network: nn.Module, device: torch.device) -> EagerStep:
    return EagerStep(network, network, OBJECTIVE, False, ALONE, device)


def test_batches_of_the_first_size_take_the_usual_step() -> None:
    taken: list[str] = []

    def named(name: str) -> Step:
        def step(batch: Batch) -> StepOutput:
            taken.append(f"{name} {len(batch.images)}")
            return StepOutput(torch.zeros(()), torch.zeros(len(batch.images), 10))

        return step

    step = UsualSizeStep(named("usual"), named("other"))
    for labelled, outliers in ((4, 2), (4, 2), (3, 2), (4, 2), (3, 3)):  # the last has as many images as the first
        step(_batch(torch.device("cpu"), labelled, outliers, 0))
    assert taken == ["usual 6", "usual 6", "other 5", "usual 6", "other 6"]


def test_a_step_leaves_the_gradients_of_its_batch_alone() -> None:
    cpu = torch.device("cpu")
    network = _network(cpu)
    step = make_step(network, OBJECTIVE, FLOAT32, ALONE, cpu)
    batch = _batch(cpu, 6, 4, seed=1)
    step(_batch(cpu, 6, 4, seed=0))
    found = step(batch)
    network.zero_grad()
    output: NetworkOutput = network(batch.images)
    loss = OBJECTIVE(output, batch.labels)
    expected = torch.autograd.grad(loss, list(network.parameters()))
    torch.testing.assert_close(found.loss, loss.detach())
    step(batch)
    torch.testing.assert_close(_gradients(network), list(expected))


@pytest.mark.parametrize(("precision", "dtype"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)])
def test_a_step_computes_in_its_precision_and_ends_in_float32(
    precision: Literal["bfloat16", "float32"], dtype: torch.dtype
) -> None:
    cpu = torch.device("cpu")
    network = _network(cpu)
    found: dict[type[nn.Module], set[torch.dtype]] = {nn.Conv2d: set(), nn.Linear: set()}
    for module in network.modules():
        if type(module) in found:
            module.register_forward_hook(lambda module, _, output: found[type(module)].add(output.dtype))
    output = make_step(network, OBJECTIVE, ExecutionSpec(precision=precision), ALONE, cpu)(_batch(cpu, 6, 4, seed=0))
    assert found == {nn.Conv2d: {dtype}, nn.Linear: {torch.float32}}
    assert (output.loss.dtype, output.logits.dtype) == (torch.float32, torch.float32)
    assert {gradient.dtype for gradient in _gradients(network)} == {torch.float32}


@pytest.mark.gpu
def test_captured_steps_leave_what_eager_ones_leave() -> None:
    cuda = torch.device("cuda")
    network = _network(cuda)
    other = copy.deepcopy(network)
    captured, eager = make_step(network, OBJECTIVE, FLOAT32, ALONE, cuda), _eager(other, cuda)
    sizes = [(8, 4), (8, 4), (5, 4), (8, 4)]  # one that is run eager in between
    for seed, (labelled, outliers) in enumerate(sizes):
        batch = _batch(cuda, labelled, outliers, seed)
        found, expected = captured(batch), eager(batch)
        torch.testing.assert_close(found.loss, expected.loss, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found.logits, expected.logits, rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(_gradients(network), _gradients(other), rtol=2e-2, atol=2e-2)
    for name, buffer in other.named_buffers():  # warm-up and capture are no steps
        torch.testing.assert_close(network.get_buffer(name), buffer, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
def test_captured_dropout_is_drawn_anew_each_step_and_again_by_the_same_seed() -> None:
    cuda = torch.device("cuda")
    network = _network(cuda, dropout=0.5)
    step = make_step(network, OBJECTIVE, FLOAT32, ALONE, cuda)
    batch = _batch(cuda, 8, 4, seed=0)
    torch.manual_seed(3)
    first, second = step(batch).loss.item(), step(batch).loss.item()
    assert first != second
    torch.manual_seed(3)
    again = [step(batch).loss.item() for _ in range(2)]
    assert again == pytest.approx([first, second], rel=1e-4)
