"""From a PyTorch network to OpenVINO's intermediate representation, and the one place that imports OpenVINO.

OpenVINO is an optional extra; nothing here imports it before it is used.
"""

import importlib
import logging
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

import torch
from torch import nn

from model_store.errors import RuntimeUnavailableError
from model_store.manifest import PreprocessSpec
from model_store.networks import NormalisedNetwork
from model_store.networks.onnx_classifier import OnnxClassifier
from model_store.scores.score import Head

CONVERTER_REVISION = 1
"""To be raised whenever `convert` would make another graph of the same network: cached graphs are then made anew."""

_TELEMETRY = "openvino_telemetry"
"""What OpenVINO and its tools report through, wherever it can be imported."""

_one_conversion = Lock()
"""Neither the exporter nor the frontend says that it may run in two threads at once."""


@dataclass(frozen=True)
class OpenVinoIr:
    """A converted network: the graph as XML, and its weights.

    It takes uint8 (N, H, W, 3), any N >= 1, and gives logits float32 (N, K) and features float32 (N, D), from float32
    weights. One that was quantised gives the features alone.
    """

    graph: bytes
    weights: bytes


def openvino_is_installed() -> bool:
    """Tell whether there is an OpenVINO to import; that it also works is not said."""
    return find_spec("openvino") is not None


def import_openvino() -> ModuleType:
    """Import OpenVINO without its telemetry.

    `import openvino` sends an event to a server and leaves an identifier in the home directory, unasked, wherever
    the package `openvino_telemetry` can be imported. Where it cannot, OpenVINO uses a stub of its own that does
    nothing; so it is hidden for the time of the import. An application that has imported OpenVINO before has chosen
    for itself.

    Raises:
        RuntimeUnavailableError: there is none, or it does not load.
    """
    try:
        with without_telemetry():
            return importlib.import_module("openvino")
    except ImportError as err:
        raise RuntimeUnavailableError(f"openvino cannot be imported ({err}): pip install 'energy-ood[cpu]'") from err


def convert(network: nn.Module, preprocess: PreprocessSpec) -> OpenVinoIr:
    """Convert a network on the CPU and the normalisation before it; the network is put in evaluation mode.

    One that came as an ONNX graph is read as such. Of the others `torch.export` and OpenVINO's PyTorch frontend are
    called directly: `openvino.convert_model` does the same, but reports to telemetry and sets the root logger's level
    for the whole process, for good where it fails.

    Raises:
        RuntimeUnavailableError: OpenVINO is not there, or the network cannot be exported or converted.
    """
    import_openvino()
    try:
        with _one_conversion, _root_logger_silent():
            model = _converted(network, preprocess)
            model.reshape([-1, preprocess.height, preprocess.width, 3])  # the frontend leaves every dimension open
        return serialised(model)
    except Exception as err:  # the exporter and the frontend raise whatever their parts raise
        raise RuntimeUnavailableError(
            f"{type(network).__name__} cannot be converted for openvino: {type(err).__name__}: {err}"
        ) from err


def _converted(network: nn.Module, preprocess: PreprocessSpec) -> Any:
    if isinstance(network, OnnxClassifier):
        return _from_onnx(network, preprocess)
    return _openvino_model(_exported(NormalisedNetwork(network, preprocess).eval(), preprocess))


def _from_onnx(network: OnnxClassifier, preprocess: PreprocessSpec) -> Any:
    """Read the graph by OpenVINO's own frontend; put the normalisation before it and the last layer behind."""
    openvino, ops = import_openvino(), importlib.import_module("openvino.opset13")
    prepared = importlib.import_module("openvino.preprocess").PrePostProcessor(
        openvino.Core().read_model(network.graph_content)
    )
    pixels = prepared.input()
    pixels.tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
    pixels.model().set_layout(openvino.Layout("NCHW"))
    mean, std = ([255 * value for value in values] for values in (preprocess.mean, preprocess.std))
    pixels.preprocess().convert_element_type(openvino.Type.f32).mean(mean).scale(std)
    body, head = prepared.build(), Head.of(network)
    (features,) = (output.get_node().input_value(0) for output in body.outputs)
    logits = ops.add(ops.matmul(features, ops.constant(head.weight.numpy()), False, True), head.bias.numpy())
    results = [ops.result(logits.output(0)), ops.result(features)]
    return openvino.Model(results, body.get_parameters(), "classifier")


def _exported(network: NormalisedNetwork, preprocess: PreprocessSpec) -> torch.export.ExportedProgram:
    # Two images: of one, the exporter would conclude that there is always one.
    example = torch.zeros(2, preprocess.height, preprocess.width, 3, dtype=torch.uint8)
    return torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("images")},))


def _openvino_model(program: torch.export.ExportedProgram) -> Any:
    frontend = importlib.import_module("openvino.frontend").FrontEndManager().load_by_framework("pytorch")
    decoders = importlib.import_module("openvino.frontend.pytorch.fx_decoder")
    decoder = decoders.TorchFXPythonDecoder.from_exported_program(program)  # `load` holds no reference: kept by name
    return frontend.convert(frontend.load(decoder))


def read_model(ir: OpenVinoIr) -> Any:
    """Return a converted network as OpenVINO's own model.

    Raises:
        RuntimeUnavailableError: OpenVINO is not there, or cannot read it.
    """
    try:
        return import_openvino().Core().read_model(ir.graph, ir.weights)
    except RuntimeError as err:
        raise RuntimeUnavailableError(f"openvino cannot read the converted network: {err}") from err


def features_only(model: Any) -> Any:
    """Return a copy of a converted network without its last layer: features are its one output."""
    _, features = model.outputs
    return import_openvino().Model([features], model.get_parameters(), "features").clone()


def serialised(model: Any) -> OpenVinoIr:
    """Copy a model out of the tensors that it still shares with others; OpenVINO writes only to files."""
    with tempfile.TemporaryDirectory(prefix="energy-ood-") as folder:
        graph, weights = Path(folder, "model.xml"), Path(folder, "model.bin")
        import_openvino().save_model(model, graph, compress_to_fp16=False)
        return OpenVinoIr(graph.read_bytes(), weights.read_bytes())


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Make the telemetry, unless it is imported already, look as if it were not installed."""
    if _TELEMETRY in sys.modules:
        yield
        return
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[_TELEMETRY]


@contextmanager
def _root_logger_silent() -> Iterator[None]:
    """Drop what is logged on the root logger itself; records of named loggers pass as ever.

    OpenVINO's decoder warns there, with a traceback each, of operations that its table names and this PyTorch lacks,
    which is harmless; and `logging.warning` gives a root logger without handlers one of its own.
    """
    root, silence, nowhere = logging.getLogger(), logging.Filter("nothing is called this"), logging.NullHandler()
    root.addFilter(silence)
    root.addHandler(nowhere)
    try:
        yield
    finally:
        root.removeFilter(silence)
        root.removeHandler(nowhere)
