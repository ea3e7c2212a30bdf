"""Graphs on a GPU give what eager PyTorch gives there."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch

from model_store.bundle import BundleDraft, load_bundle
from model_store.networks import NetworkOutput
from model_store.runtimes import TorchRuntime
from model_store.runtimes.torch_graphs import TorchGraphsRuntime
from model_store.store import Store

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")


def test_auto_is_cuda_graphs_on_a_gpu_with_two_batches_in_flight(draft: BundleDraft, tmp_path: Path) -> None:
    runtime = load_bundle(Store(tmp_path).publish(draft), runtime="auto").predictor.scorer.runtime
    assert (runtime.name, runtime.in_flight) == ("torch-graphs-float32-cuda", 2)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_graphs_give_every_batch_what_eager_gives_it(network, preprocess, test_images, precision) -> None:
    """Of sizes that alternate, all started before the first is finished, and the graphs replayed anew."""
    graphs = TorchGraphsRuntime(deepcopy(network), preprocess, device=CUDA, precision=precision)
    eager = TorchRuntime(deepcopy(network), preprocess, device=CUDA, precision=precision)
    at = [(0, 1), (1, 9), (9, 10), (10, 18), (18, 50), (50, 58), (58, 59), (59, 67)]
    for _ in range(3):
        tickets = [graphs.start(test_images[begin:end]) for begin, end in at]
        for (begin, end), ticket in zip(at, tickets, strict=True):
            found, expected = graphs.finish(ticket), eager.finish(eager.start(test_images[begin:end]))
            torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(found.features, expected.features, atol=1e-5, rtol=1e-5)
            assert found.logits.dtype == found.features.dtype == torch.float32


def test_results_of_graphs_survive_later_batches(network, preprocess, test_images) -> None:
    runtime = TorchGraphsRuntime(deepcopy(network), preprocess, device=CUDA)
    first = runtime.finish(runtime.start(test_images[:8]))
    kept = NetworkOutput(first.logits.clone(), first.features.clone())
    for begin in (8, 16, 24):
        runtime.finish(runtime.start(test_images[begin : begin + 8]))
    assert torch.equal(first.logits, kept.logits)
    assert torch.equal(first.features, kept.features)


def test_sizes_beyond_the_graphs_run_eager(network, preprocess, test_images, monkeypatch) -> None:
    monkeypatch.setattr("model_store.runtimes.torch_graphs.MAX_GRAPHS", 1)
    runtime = TorchGraphsRuntime(deepcopy(network), preprocess, device=CUDA)
    expected = TorchRuntime(deepcopy(network), preprocess, device=CUDA)
    for size in (4, 7, 4):
        found, wanted = (each.finish(each.start(test_images[:size])) for each in (runtime, expected))
        torch.testing.assert_close(found.logits, wanted.logits, atol=1e-5, rtol=1e-5)


def test_starting_on_graphs_does_not_wait_for_the_device(network, preprocess, test_images) -> None:
    """While the device spins, a batch whose size is captured is started."""
    runtime = TorchGraphsRuntime(deepcopy(network), preprocess, device=CUDA)
    runtime.finish(runtime.start(test_images[:8]))
    with torch.cuda.stream(runtime._compute):
        torch.cuda._sleep(10**9)
        spun = torch.cuda.Event()
        spun.record()
    ticket = runtime.start(test_images[8:16])
    assert not spun.query()
    runtime.finish(ticket)
    assert spun.query()
