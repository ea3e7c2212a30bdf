"""PyTorch on CUDA with a graph a batch size: one launch instead of hundreds, pinned memory, copies beside the kernels.

start:   pixels -> pinned memory -> (upload stream) -> the lane's device buffer
         -> (compute stream) -> the graph's input, replay, the graph's outputs -> the lane's device buffers
         -> (download stream) -> the lane's pinned memory
finish:  waits for the last of it, and copies out of pinned memory
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model_store.manifest import PreprocessSpec
from model_store.networks import NetworkOutput, NormalisedNetwork
from model_store.runtimes.torch_runtime import TorchPrecision, forbid_tf32

MAX_GRAPHS = 32
"""Batch sizes that get a graph, in the order of their first use; an engine warms at most 20. Others run eager."""
_WARM_UP_RUNS = 3
"""Before a capture, as PyTorch's documentation has it: libraries choose and load their kernels in the first runs."""

_one_capture = Lock()
"""A capture empties caches and synchronises the device, which another capture of this process would not survive."""

Forward = Callable[[Tensor], NetworkOutput]
"""Device uint8 (N, H, W, 3) to outputs on the device, on the current stream."""


@dataclass(frozen=True)
class _Lane:
    """The buffers of one batch on its way, on the host (pinned) and on the device, and what its last copy signals."""

    pinned_images: Tensor
    images: Tensor
    output: NetworkOutput
    pinned_output: NetworkOutput
    uploaded: torch.cuda.Event
    computed: torch.cuda.Event
    downloaded: torch.cuda.Event


@dataclass(frozen=True)
class _Graph:
    """One captured forward pass, and the buffers that it reads and writes: good until the next replay."""

    graph: torch.cuda.CUDAGraph
    images: Tensor
    output: NetworkOutput

    def __call__(self, images: Tensor) -> NetworkOutput:
        self.images.copy_(images)
        self.graph.replay()
        return self.output


class TorchGraphsRuntime:
    """Runs a network on CUDA by replaying a graph of its forward pass, captured at the first batch of each size.

    Every batch on its way has a lane, buffers of its own that no other batch touches before it is finished; so any
    number may be started. All graphs share one memory pool: they run one after another on one stream, and what a graph
    leaves is copied out of the pool on that stream before another runs.
    """

    in_flight = 2

    def __init__(
        self,
        network: nn.Module,
        preprocess: PreprocessSpec,
        *,
        device: torch.device,
        precision: TorchPrecision = "float32",
    ) -> None:
        """Move `network` to `device`, in evaluation mode. Nothing is captured yet.

        device: CUDA.
        """
        forbid_tf32()
        self.name = f"torch-graphs-{precision}-{device.type}"
        self.precision = precision
        self._device = torch.device("cuda", torch.cuda.current_device()) if device.index is None else device
        self._network = NormalisedNetwork(network, preprocess)
        self._network.to(self._device).to(memory_format=torch.channels_last).eval()
        self._upload, self._compute, self._download = (
            torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            for _ in range(3)
        )
        self._compute.wait_stream(torch.cuda.current_stream(self._device))  # the weights have arrived
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[int, _Graph] = {}
        self._free: defaultdict[int, list[_Lane]] = defaultdict(list)

    def start(self, images: NDArray[np.uint8]) -> _Lane:
        """Launch the forward pass over uint8 (N, H, W, 3), N >= 1, without waiting for it.

        The first batch of a size waits for its capture.
        """
        with torch.inference_mode(), torch.cuda.device(self._device):
            forward, lane = self._forward(images), self._lane(images)
            lane.pinned_images.copy_(torch.from_numpy(np.require(images, requirements=["C", "W"])))
            with torch.cuda.stream(self._upload):
                lane.images.copy_(lane.pinned_images, non_blocking=True)
                lane.uploaded.record()
            with torch.cuda.stream(self._compute):
                lane.uploaded.wait()
                _copy(forward(lane.images), lane.output)
                lane.computed.record()
            with torch.cuda.stream(self._download):
                lane.computed.wait()
                _copy(lane.output, lane.pinned_output)
                lane.downloaded.record()
        return lane

    def finish(self, ticket: _Lane) -> NetworkOutput:
        """Wait for a batch; return logits float32 (N, K) and features float32 (N, D), copies that stay."""
        ticket.downloaded.synchronize()
        found = NetworkOutput(*(tensor.clone() for tensor in ticket.pinned_output))
        size = len(ticket.images)
        if size in self._graphs:
            self._free[size].append(ticket)
        return found

    def _forward(self, images: NDArray[np.uint8]) -> Forward:
        """Return the graph for batches of this size, captured now if it must be; eager where there are too many."""
        size = len(images)
        if size not in self._graphs and len(self._graphs) < MAX_GRAPHS:
            self._graphs[size] = self._captured(images.shape)
        return self._graphs.get(size, self._eager)

    def _eager(self, images: Tensor) -> NetworkOutput:
        # Without the cache of casts, which would outlive a capture and be of its pool.
        enabled = self.precision == "bfloat16"
        with torch.autocast("cuda", torch.bfloat16, enabled=enabled, cache_enabled=False):
            output: NetworkOutput = self._network(images)
        return output

    def _captured(self, shape: tuple[int, ...]) -> _Graph:
        images = torch.zeros(shape, dtype=torch.uint8, device=self._device)
        self._compute.wait_stream(torch.cuda.current_stream(self._device))
        with _one_capture:
            with torch.cuda.stream(self._compute):
                for _ in range(_WARM_UP_RUNS):
                    self._eager(images)
            graph = torch.cuda.CUDAGraph()
            # Of this thread alone: others may pin memory or wait for a stream of theirs meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._compute, capture_error_mode="thread_local"):
                output = self._eager(images)
        return _Graph(graph, images, output)

    def _lane(self, images: NDArray[np.uint8]) -> _Lane:
        """Return buffers for a batch of this size that no batch on its way uses."""
        if free := self._free[len(images)]:
            return free.pop()
        pinned_images = torch.empty(images.shape, dtype=torch.uint8, pin_memory=True)
        classes, width = self._network.network.get_parameter("head.weight").shape
        shapes = ((len(images), classes), (len(images), width))
        output = NetworkOutput(*(torch.empty(shape, device=self._device) for shape in shapes))
        pinned_output = NetworkOutput(*(torch.empty(shape, pin_memory=True) for shape in shapes))
        # Buffers of a lane are made on the current stream; another may write to them only after what used them there.
        device_images = torch.empty_like(pinned_images, device=self._device)
        for stream in (self._upload, self._compute, self._download):
            stream.wait_stream(torch.cuda.current_stream(self._device))
        uploaded, computed, downloaded = (torch.cuda.Event() for _ in range(3))  # type: ignore[no-untyped-call]
        return _Lane(pinned_images, device_images, output, pinned_output, uploaded, computed, downloaded)


def _copy(source: NetworkOutput, target: NetworkOutput) -> None:
    for found, kept in zip(source, target, strict=True):
        kept.copy_(found, non_blocking=True)
