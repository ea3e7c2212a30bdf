"""OpenVINO on the CPU: whole networks in float32, and in a lower precision all of a network but its last layer."""

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_store.errors import RuntimeUnavailableError
from model_store.networks import NetworkOutput
from model_store.runtimes.openvino_ir import OpenVinoIr, features_only, import_openvino, read_model
from model_store.scores.score import Head
from model_store.threads import FOR_SCORES, torch_threads

# LATENCY puts all cores on one batch: measured on two cores with batches of 1, 8 and 64, THROUGHPUT ran at 0.6 of
# it, and gained nothing from two half batches at once. Nor did a graph of fixed batch size over this dynamic one,
# for which a new batch size costs some 10 ms once. Pinned threads (the default) keep to their cores when others are
# busy there: 4 to 8 % slower.
_COMPILE_OPTIONS = {"PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}
FloatHint = Literal["f32", "bf16"]


class OpenVinoRuntime:
    """Runs a converted network on the CPU in float32, whatever the batch size."""

    name = "openvino-float32-cpu"
    in_flight = 1

    def __init__(self, ir: OpenVinoIr, *, threads: int | None = None) -> None:
        """Compile `ir` for this processor; `threads` is how many CPU threads compute, None OpenVINO's own number.

        Raises:
            RuntimeUnavailableError: OpenVINO is not there, or cannot read or compile the graph.
        """
        self._graph = _Graph(read_model(ir), "f32", threads)

    def start(self, images: NDArray[np.uint8]) -> Any:
        """Have the forward pass over uint8 (N, H, W, 3), N >= 1, begun."""
        return self._graph.start(images)

    def finish(self, ticket: Any) -> NetworkOutput:
        """Wait for a batch; return logits float32 (N, K) and features float32 (N, D), copies that stay."""
        return NetworkOutput(*self._graph.finish(ticket))


class LowPrecisionOpenVinoRuntime:
    """Runs a network up to its features on the CPU in bfloat16 or int8, and its last layer in float32 after it.

    OpenVINO would compute the last layer in bfloat16, too, and has no promise that keeps a node from it; so the graph
    ends before it. What follows its last convolution OpenVINO computes in float32 on its own account: features are no
    bfloat16 values, which a test holds it to.
    """

    in_flight = 1

    def __init__(
        self, ir: OpenVinoIr, head: Head, *, precision: Literal["bfloat16", "int8"], threads: int | None = None
    ) -> None:
        """Compile `ir` for this processor.

        Args:
            ir: for bfloat16 a whole float32 network, of which the features are taken; for int8 a quantised one that
                has no other output.
            head: the network's last layer.
            precision: of the graph. What of an int8 graph is not quantised runs in float32.
            threads: how many CPU threads compute the graph, None OpenVINO's own number.

        Raises:
            RuntimeUnavailableError: OpenVINO is not there, cannot read or compile the graph, or would not compute in
                this precision on this processor.
        """
        self.name = f"openvino-{precision}-cpu"
        self._head = head
        model = features_only(read_model(ir)) if precision == "bfloat16" else read_model(ir)
        self._graph = _Graph(model, "bf16" if precision == "bfloat16" else "f32", threads)

    def start(self, images: NDArray[np.uint8]) -> Any:
        """Have the forward pass over uint8 (N, H, W, 3), N >= 1, begun."""
        return self._graph.start(images)

    def finish(self, ticket: Any) -> NetworkOutput:
        """Wait for a batch; return logits float32 (N, K) and features float32 (N, D), copies that stay."""
        (features,) = self._graph.finish(ticket)
        with torch_threads(FOR_SCORES):
            return NetworkOutput(logits=self._head.logits(features), features=features)


class _Graph:
    """A compiled model whose threads compute one batch after another, while others do other things.

    A batch under way has a request of its own; what a request leaves is copied before it takes another batch.
    """

    def __init__(self, model: Any, hint: FloatHint, threads: int | None) -> None:
        self.compiled = _compile(model, hint, threads)
        self._idle: list[Any] = []

    def start(self, images: NDArray[np.uint8]) -> Any:
        """Have a batch computed; return its request, with a copy of the images: who started it may be gone before."""
        request = self._idle.pop() if self._idle else self.compiled.create_infer_request()
        request.start_async(images, share_inputs=False)
        return request

    def finish(self, request: Any) -> list[Tensor]:
        """Wait for a batch; return copies of the model's outputs, in its order."""
        request.wait()
        found = [torch.from_numpy(tensor.data.copy()) for tensor in request.output_tensors]
        self._idle.append(request)
        return found


def _compile(model: Any, hint: FloatHint, threads: int | None) -> Any:
    """Compile a model whose floating-point operations run in just this precision.

    A processor without bfloat16 would run them in float32, unasked: thresholds are of one precision.
    """
    options = _COMPILE_OPTIONS | {"INFERENCE_PRECISION_HINT": hint}
    if threads is not None:
        options |= {"INFERENCE_NUM_THREADS": threads}
    try:
        compiled = import_openvino().Core().compile_model(model, "CPU", options)
    except RuntimeError as err:
        raise RuntimeUnavailableError(f"openvino cannot compile the converted network: {err}") from err
    found = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if found != hint:
        raise RuntimeUnavailableError(f"openvino would compute in {found} on this processor; the bundle wants {hint}")
    return compiled
