"""Classifiers from ONNX files: cut before their last layer, run by every runtime, packed into bundles."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from model_store.manifest import PreprocessSpec
from model_store.networks import NetworkOutput, build_network
from model_store.runtimes import OpenVinoRuntime, TorchRuntime
from model_store.runtimes.openvino_ir import convert
from model_store.runtimes.runtime import Runtime
from training.errors import WeightsError
from training.onnx_import import ImportedClassifier, read_onnx

RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(4, 3, 3, 3)).astype(np.float32)
WEIGHT = RNG.normal(size=(5, 4)).astype(np.float32)
BIAS = RNG.normal(size=5).astype(np.float32)
GEMM = helper.make_node("Gemm", ["features", "weight", "bias"], ["logits"], transB=1)
SIZE = 8


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Write `<tmp_path>/classifier.onnx`: a convolution, its mean over the image, and the nodes given."""

    def write(
        *last: onnx.NodeProto,
        output: str = "logits",
        batch: int | str = "n",
        channels: int = 3,
        flat: Sequence[int] = (-1, 4),
        constants: dict[str, np.ndarray] | None = None,
    ) -> Path:
        nodes = [
            helper.make_node("Conv", ["images", "kernel"], ["maps"]),
            helper.make_node("GlobalAveragePool", ["maps"], ["pooled"]),
            helper.make_node("Reshape", ["pooled", "flat"], ["features"]),
            *last,
        ]
        stored = {"kernel": KERNEL[:, :channels], "flat": np.array(flat), "weight": WEIGHT, "bias": BIAS} | (
            constants or {}
        )
        graph = helper.make_graph(
            nodes,
            "classifier",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, channels, "h", "w"])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in stored.items()],
        )
        path = tmp_path / "classifier.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
        return path

    return write


def _output(imported: ImportedClassifier, images: np.ndarray) -> NetworkOutput:
    network = build_network(imported.spec).eval()
    network.load_state_dict(imported.weights)
    with torch.inference_mode():
        output: NetworkOutput = network(torch.from_numpy(images))
    return output


def _features(images: np.ndarray) -> np.ndarray:
    maps = torch.nn.functional.conv2d(torch.from_numpy(images), torch.from_numpy(KERNEL))
    return maps.mean(dim=(2, 3)).numpy()


@pytest.mark.parametrize(
    ("nodes", "output", "constants", "weight", "bias"),
    [
        ([GEMM], "logits", {}, WEIGHT, BIAS),
        ([helper.make_node("Gemm", ["features", "weight"], ["logits"], transB=1)], "logits", {}, WEIGHT, 0 * BIAS),
        (
            [helper.make_node("Gemm", ["features", "turned", "bias"], ["logits"], alpha=2.0, beta=0.5)],
            "logits",
            {"turned": WEIGHT.T},
            2 * WEIGHT,
            BIAS / 2,
        ),
        (
            [
                helper.make_node("MatMul", ["features", "turned"], ["product"]),
                helper.make_node("Add", ["row", "product"], ["logits"]),
            ],
            "logits",
            {"turned": WEIGHT.T, "row": BIAS[None]},
            WEIGHT,
            BIAS,
        ),
        (
            [helper.make_node("MatMul", ["features", "turned"], ["logits"])],
            "logits",
            {"turned": WEIGHT.T},
            WEIGHT,
            0 * BIAS,
        ),
        ([GEMM, helper.make_node("Softmax", ["logits"], ["shares"], axis=1)], "shares", {}, WEIGHT, BIAS),
        (
            [
                GEMM,
                helper.make_node("LogSoftmax", ["logits"], ["logs"], axis=1),
                helper.make_node("Identity", ["logs"], ["named"]),
            ],
            "named",
            {},
            WEIGHT,
            BIAS,
        ),
        (
            [
                helper.make_node("Identity", ["bias"], ["same"]),
                helper.make_node("Gemm", ["features", "weight", "same"], ["logits"], transB=1),
            ],
            "logits",
            {},
            WEIGHT,
            BIAS,
        ),
    ],
    ids=["gemm", "no-bias", "turned-and-scaled", "matmul-add", "matmul", "softmax", "log-softmax", "shared-bias"],
)
def test_last_layer_is_found_however_it_is_written(
    written: Callable[..., Path],
    nodes: list[onnx.NodeProto],
    output: str,
    constants: dict[str, np.ndarray],
    weight: np.ndarray,
    bias: np.ndarray,
) -> None:
    imported = read_onnx(written(*nodes, output=output, constants=constants), SIZE)
    assert (imported.spec.features, imported.spec.num_classes) == (4, 5)
    assert imported.spec.graph_bytes == len(imported.weights["graph"])
    images = np.random.default_rng(1).normal(size=(3, 3, SIZE, SIZE)).astype(np.float32)
    found = _output(imported, images)
    np.testing.assert_allclose(found.features, _features(images), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.logits, _features(images) @ weight.T + bias, rtol=1e-4, atol=1e-5)


def test_batch_of_one_is_opened(written: Callable[..., Path]) -> None:
    imported = read_onnx(written(GEMM, batch=1), SIZE)
    images = np.random.default_rng(1).normal(size=(7, 3, SIZE, SIZE)).astype(np.float32)
    np.testing.assert_allclose(_output(imported, images).features, _features(images), rtol=1e-4, atol=1e-5)


RELU = helper.make_node("Relu", ["features"], ["logits"])
MADE_HERE = [
    helper.make_node("Identity", ["features"], ["made"]),
    helper.make_node("MatMul", ["features", "made"], ["logits"]),
]


@pytest.mark.parametrize(
    ("nodes", "options", "message"),
    [
        ([RELU], {}, "ends in Relu, not in a linear layer with weights of its own"),
        (MADE_HERE, {}, "ends in MatMul, not in a linear layer"),
        ([GEMM], {"channels": 1}, r"has inputs of \[\['n', 1, 'h', 'w'\]\] and 1 outputs; a classifier takes images"),
        ([GEMM], {"flat": (1, 4)}, "does not run on 3 images of 8x8 pixels"),
        ([GEMM], {"output": "nothing"}, "ends in no operation"),
        ([GEMM], {"constants": {"bias": np.full(5, np.nan, np.float32)}}, "other logits than one by one"),
    ],
    ids=["no-linear", "no-weights", "grey", "fixed-batch", "no-output", "nan"],
)
def test_what_is_no_classifier_is_refused(
    written: Callable[..., Path], nodes: list[onnx.NodeProto], options: dict[str, object], message: str
) -> None:
    path = written(*nodes, **options)
    with pytest.raises(WeightsError, match=message) as caught:
        read_onnx(path, SIZE)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"\x08\x07", None], ids=["empty", "zip", "no-graph", "missing"]
)
def test_file_that_is_no_onnx_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "classifier.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"classifier\.onnx"):
        read_onnx(path, SIZE)


@pytest.fixture
def imported(written: Callable[..., Path]) -> ImportedClassifier:
    return read_onnx(written(GEMM, batch=1), SIZE)


def _stretched(mean: tuple[float, float, float], std: tuple[float, float, float]) -> PreprocessSpec:
    return PreprocessSpec(height=SIZE, width=SIZE, resize="stretch", interpolation="bilinear", mean=mean, std=std)


def test_openvino_reads_the_graph_with_normalisation_and_last_layer(
    imported: ImportedClassifier, written: Callable[..., Path]
) -> None:
    """Every channel has its own mean and deviation: one taken for another would show."""
    network = build_network(imported.spec)
    network.load_state_dict(imported.weights)
    preprocess = _stretched((0.1, 0.5, 0.9), (0.2, 0.3, 0.5))
    pixels = np.random.default_rng(2).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)
    runtimes: list[Runtime] = [
        TorchRuntime(network, preprocess, device=torch.device("cpu")),
        OpenVinoRuntime(convert(network, preprocess)),
    ]
    normalised = (pixels / 255 - np.array(preprocess.mean)) / np.array(preprocess.std)
    whole = onnxruntime.InferenceSession(written(GEMM))
    (expected,) = whole.run(None, {"images": normalised.transpose(0, 3, 1, 2).astype(np.float32)})
    for runtime in runtimes:
        found = runtime.finish(runtime.start(pixels))
        np.testing.assert_allclose(found.logits, expected, rtol=1e-4, atol=1e-5)


def test_new_weights_are_run_at_once(imported: ImportedClassifier) -> None:
    network = build_network(imported.spec).eval()
    network.load_state_dict(imported.weights)
    images = torch.randn(1, 3, SIZE, SIZE)
    network(images)
    doubled = onnx.load_from_string(network.graph_content)
    kernel = next(tensor for tensor in doubled.graph.initializer if tensor.name == "kernel")
    kernel.CopyFrom(numpy_helper.from_array(2 * KERNEL, "kernel"))
    graph = torch.frombuffer(bytearray(doubled.SerializeToString()), dtype=torch.uint8)
    network.load_state_dict(imported.weights | {"graph": graph})
    np.testing.assert_allclose(network(images).features, 2 * _features(images.numpy()), rtol=1e-4, atol=1e-5)
