"""OpenVINO on the CPU, in float32."""

import numpy as np
import torch
from numpy.typing import NDArray

from model_store.errors import RuntimeUnavailableError
from model_store.networks import NetworkOutput
from model_store.runtimes.openvino_ir import OpenVinoIr, import_openvino

# LATENCY puts all cores on one batch: measured on two cores with batches of 1, 8 and 64, THROUGHPUT ran at 0.6 of
# it, and gained nothing from two half batches at once. Nor did a graph of fixed batch size over this dynamic one,
# for which a new batch size costs some 10 ms once. Pinned threads (the default) keep to their cores when others are
# busy there: 4 to 8 % slower.
_COMPILE_OPTIONS = {
    "PERFORMANCE_HINT": "LATENCY",
    "ENABLE_CPU_PINNING": False,
    "INFERENCE_PRECISION_HINT": "f32",
}


class OpenVinoRuntime:
    """Runs a converted network on the CPU, whatever the batch size."""

    name = "openvino-float32-cpu"
    in_flight = 1

    def __init__(self, ir: OpenVinoIr, *, threads: int | None = None) -> None:
        """Compile `ir` for this processor; `threads` is how many CPU threads compute, None OpenVINO's own number.

        Raises:
            RuntimeUnavailableError: OpenVINO is not there, or cannot read or compile the graph.
        """
        core = import_openvino().Core()
        options = _COMPILE_OPTIONS if threads is None else _COMPILE_OPTIONS | {"INFERENCE_NUM_THREADS": threads}
        try:
            compiled = core.compile_model(core.read_model(ir.graph, ir.weights), "CPU", options)
        except RuntimeError as err:
            raise RuntimeUnavailableError(f"openvino cannot compile the converted network: {err}") from err
        self._request = compiled.create_infer_request()

    def start(self, images: NDArray[np.uint8]) -> NetworkOutput:
        """Run the forward pass over uint8 (N, H, W, 3), N >= 1, here and now."""
        logits, features = self._request.infer(images, share_inputs=True, share_outputs=False).to_tuple()
        return NetworkOutput(logits=torch.from_numpy(logits), features=torch.from_numpy(features))

    def finish(self, ticket: NetworkOutput) -> NetworkOutput:
        """Return what was computed: logits float32 (N, K) and features float32 (N, D), copies that stay."""
        return ticket
