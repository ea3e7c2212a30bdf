"""A classifier that others exported to ONNX, cut into what a bundle takes: a graph up to the features, a last layer."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_store.manifest import OnnxSpec
from model_store.networks import NetworkOutput, build_network
from model_store.networks.onnx_classifier import OnnxSession
from training.errors import WeightsError

LEFT_OFF = frozenset({"Identity", "Softmax", "LogSoftmax"})
"""Operations that may follow the logits: energies are of the logits."""
TRIALS = 3
"""Images of noise on which the cut graph is held to the whole one."""
AGREEMENT = 1e-4
"""How far a logit may be off there, as a share of the greatest."""


class ImportedClassifier(NamedTuple):
    """What a recipe says of the graph in its table `network`, and the weights by the names that they have there."""

    spec: OnnxSpec
    weights: dict[str, Tensor]


class LastLayer(NamedTuple):
    """Where logits (N, K) come from: features (N, D), both named as in the graph; weight (K, D), bias (K,)."""

    logits: str
    features: str
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


def read_onnx(path: Path, size: int) -> ImportedClassifier:
    """Read a classifier from an ONNX file and cut it before its last linear layer.

    It must take normalised images float32 (N, 3, H, W) and end in the logits of a linear layer, (N, K), or in their
    softmax, which is left off. N may be fixed; it is open in what is returned. onnxruntime must give the cut graph and
    the layer the logits of the whole graph, on noise.

    Args:
        path: the file; weights in files beside it are read with it.
        size: height and width of the noise, where the graph leaves them open.

    Raises:
        WeightsError: the file cannot be read, has other inputs or outputs or another last layer; or what is cut of it
            gives other logits, as where N is fixed for good; or onnx or onnxruntime is not installed.
    """
    onnx = _imported("onnx")
    try:
        model = onnx.shape_inference.infer_shapes(onnx.load(path))
        images = _images(model.graph, path)
        last = _last_layer(_Graph(model.graph, onnx), path)
        whole, body = (_cut(onnx, model, images.name, output) for output in (last.logits, last.features))
    except WeightsError:
        raise
    except Exception as err:  # of a file that is none protobuf and onnx raise whatever their parts raise
        raise WeightsError(f"{path} cannot be read as an ONNX classifier: {type(err).__name__}: {err}") from err
    _open_batch(body.graph)
    imported = _packed(body.SerializeToString(), last)
    shape = [dim.dim_value or size for dim in images.type.tensor_type.shape.dim[2:]]
    _require_agreement(imported, whole.SerializeToString(), shape, path)
    return imported


class _Graph:
    """A graph's operations by what they make, and its constants."""

    def __init__(self, graph: Any, onnx: ModuleType) -> None:
        self.output: str = graph.output[0].name
        self.made = {name: node for node in graph.node for name in node.output}
        self.stored = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.stored[node.output[0]] = node.attribute[0].t
            elif node.op_type == "Identity" and node.input[0] in self.stored:  # equal constants that are kept once
                self.stored[node.output[0]] = self.stored[node.input[0]]
        self._onnx = onnx

    def operation(self, name: str) -> str:
        return self.made[name].op_type if name in self.made else "no operation"

    def array(self, name: str) -> NDArray[np.float32]:
        return np.array(self._onnx.numpy_helper.to_array(self.stored[name]), np.float32)

    def options(self, node: Any) -> dict[str, Any]:
        return {attribute.name: self._onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _images(graph: Any, path: Path) -> Any:
    stored = {tensor.name for tensor in graph.initializer}  # which older files list among the inputs
    inputs = [value for value in graph.input if value.name not in stored]
    shapes = [[dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim] for value in inputs]
    if len(inputs) != 1 or len(shapes[0]) != 4 or shapes[0][1] != 3 or len(graph.output) != 1:
        raise WeightsError(
            f"{path} has inputs of {shapes} and {len(graph.output)} outputs; a classifier takes images (N, 3, H, W) "
            "here, and gives their logits alone"
        )
    return inputs[0]


def _last_layer(graph: _Graph, path: Path) -> LastLayer:
    logits = graph.output
    while graph.operation(logits) in LEFT_OFF:
        logits = graph.made[logits].input[0]
    match graph.operation(logits):
        case "Gemm":
            found = _gemm(graph, logits)
        case "Add":
            found = _sum(graph, logits)
        case "MatMul":
            found = _product(graph, logits, logits, None)
        case _:
            found = None
    if found is None:
        raise WeightsError(
            f"{path} ends in {graph.operation(logits)}, not in a linear layer with weights of its own; energies are of "
            "its logits: export the classifier up to them"
        )
    return found


def _gemm(graph: _Graph, logits: str) -> LastLayer | None:
    node = graph.made[logits]
    features, *constants = node.input
    options = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0} | graph.options(node)
    if options["transA"] or not all(name in graph.stored for name in constants):
        return None
    weight = graph.array(constants[0]) * np.float32(options["alpha"])
    weight = weight if options["transB"] else weight.T
    bias = graph.array(constants[1]) * np.float32(options["beta"]) if len(constants) > 1 else None
    return _layer(logits, features, weight, bias)


def _sum(graph: _Graph, logits: str) -> LastLayer | None:
    terms = graph.made[logits].input
    products = [name for name in terms if graph.operation(name) == "MatMul"]
    biases = [name for name in terms if name in graph.stored]
    return _product(graph, logits, products[0], graph.array(biases[0])) if products and biases else None


def _product(graph: _Graph, logits: str, product: str, bias: NDArray[np.float32] | None) -> LastLayer | None:
    features, weight = graph.made[product].input
    return _layer(logits, features, graph.array(weight).T, bias) if weight in graph.stored else None


def _layer(logits: str, features: str, weight: NDArray[np.float32], bias: NDArray[np.float32] | None) -> LastLayer:
    flat = np.zeros(1, np.float32) if bias is None else bias.reshape(-1)
    return LastLayer(logits, features, np.ascontiguousarray(weight), np.broadcast_to(flat, len(weight)).copy())


def _cut(onnx: ModuleType, model: Any, images: str, output: str) -> Any:
    cut = onnx.utils.Extractor(model).extract_model([images], [output])
    del cut.graph.value_info[:]  # shapes in between, with the N of the whole
    return cut


def _open_batch(graph: Any) -> None:
    for value in (graph.input[0], graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "images"


def _packed(graph: bytes, last: LastLayer) -> ImportedClassifier:
    classes, features = last.weight.shape
    weights = {
        "graph": torch.frombuffer(bytearray(graph), dtype=torch.uint8),
        "head.weight": torch.from_numpy(last.weight),
        "head.bias": torch.from_numpy(last.bias),
    }
    return ImportedClassifier(OnnxSpec(graph_bytes=len(graph), features=features, num_classes=classes), weights)


def _require_agreement(imported: ImportedClassifier, whole: bytes, shape: list[int], path: Path) -> None:
    network = build_network(imported.spec).eval()
    network.load_state_dict(imported.weights)
    noise = torch.randn((TRIALS, 3, *shape), generator=torch.Generator().manual_seed(0))
    try:
        run = OnnxSession(whole).run
        expected = torch.from_numpy(np.concatenate([run(image.numpy()) for image in torch.split(noise, 1)]))
        with torch.inference_mode():
            output: NetworkOutput = network(noise)
    except (RuntimeError, ValueError) as err:
        raise WeightsError(
            f"{path} does not run on {TRIALS} images of {shape[0]}x{shape[1]} pixels ({err}); export it with an open "
            "batch size, or say another size"
        ) from err
    if output.logits.shape != expected.shape:
        raise WeightsError(f"{path} gives {tuple(expected.shape)} for {TRIALS} images; logits are (N, K)")
    difference = float((output.logits - expected).abs().max() / expected.abs().max())
    if not difference <= AGREEMENT:
        raise WeightsError(
            f"{path}: {TRIALS} images together get other logits than one by one, by {difference:.2g} of the greatest; "
            "export it with an open batch size"
        )


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as err:
        raise WeightsError(f"{name} cannot be imported ({err}): pip install 'energy-ood[onnx]'") from err
