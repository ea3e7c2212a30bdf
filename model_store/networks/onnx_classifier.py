"""A classifier that comes as an ONNX graph, which onnxruntime runs; only its last layer is PyTorch's."""

import importlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model_store.networks.output import NetworkOutput

SILENT = 4
"""The log level at which onnxruntime says nothing that its errors do not say."""


class OnnxClassifier(nn.Module):
    """An ONNX graph from normalised images to features, and a linear layer in float32.

    The graph, its weights in it, is a buffer like any other, uint8: it goes where the layer's weights go, into one file
    under one checksum. It computes on the CPU, whatever the device of the layer, and gives no gradients.
    """

    graph: Tensor

    def __init__(self, graph_bytes: int, features: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("graph", torch.zeros(graph_bytes, dtype=torch.uint8))
        self.head = nn.Linear(features, num_classes)
        self._session: OnnxSession | None = None
        self.register_load_state_dict_post_hook(self._forget)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> NetworkOutput:
        """Classify normalised images float (N, 3, H, W).

        Raises:
            ValueError: bfloat16 is asked for, which the graph does not compute in; or there is no onnxruntime.
            RuntimeError: the graph cannot be loaded, or takes no such images.
        """
        if torch.is_autocast_enabled(x.device.type):
            raise ValueError("an ONNX graph computes in float32; in bfloat16 openvino alone runs it")
        if self._session is None:
            self._session = OnnxSession(self.graph_content)
        features = torch.from_numpy(self._session.run(x.float().numpy(force=True))).to(x.device)
        return NetworkOutput(logits=self.head(features), features=features)

    @staticmethod
    def _forget(network: "OnnxClassifier", _: object) -> None:
        network._session = None

    @property
    def graph_content(self) -> bytes:
        """The graph as a file would hold it."""
        return self.graph.numpy(force=True).tobytes()


class OnnxSession:
    """A graph of one input and one output under onnxruntime, on as many threads as PyTorch has."""

    def __init__(self, content: bytes) -> None:
        """Load a graph.

        Raises:
            ValueError: there is no onnxruntime.
            RuntimeError: it cannot load the graph.
        """
        try:
            runtime = importlib.import_module("onnxruntime")
        except ImportError as err:
            raise ValueError(f"onnxruntime cannot be imported ({err}): pip install 'energy-ood[onnx]'") from err
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), SILENT
        try:
            self._session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as err:  # its errors have no common class of their own
            raise RuntimeError(f"onnxruntime cannot load the graph: {err}") from err
        self._input = self._session.get_inputs()[0].name

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what the graph makes of float32 (N, 3, H, W).

        Raises:
            RuntimeError: it takes no such images.
        """
        try:
            (found,) = self._session.run(None, {self._input: np.ascontiguousarray(images)})
        except Exception as err:
            raise RuntimeError(f"onnxruntime cannot run the graph: {err}") from err
        result: NDArray[np.float32] = found
        return result
