"""A bundle as one ONNX graph, pixels in and verdicts out; the one place that imports onnx and onnxruntime.

Both are an optional extra; nothing here imports them before they are used.
"""

import importlib
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model_store import images
from model_store.bundle import Bundle, read_network
from model_store.errors import ExportError
from model_store.manifest import OnnxSpec
from model_store.networks import NormalisedNetwork

INPUT, OUTPUTS = "IMAGE", ("LOGITS", "NEGATIVE_ENERGY", "IS_OOD")
OPSET = 18
"""The oldest that PyTorch's exporter writes: read by every onnxruntime from 1.14 on."""
_NOISE_IMAGES = 32
"""Beside the golden images, which are all in-distribution, by which an exported graph is held to the predictor."""


class OnnxVerdicts(NamedTuple):
    """What a graph says of N images: logits float32 (N, K), negative_energy float32 (N,), is_ood bool (N,)."""

    logits: NDArray[np.float32]
    negative_energy: NDArray[np.float32]
    is_ood: NDArray[np.bool_]


class JudgingNetwork(nn.Module):
    """A network with its verdict: uint8 (N, H, W, 3) to logits, negative energies and flags.

    Eq. 4 is written with the greatest logit taken out, so that no backend's LogSumExp decides whether it overflows.
    """

    threshold: Tensor

    def __init__(self, network: NormalisedNetwork, temperature: float, threshold: np.float32) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature
        self.register_buffer("threshold", torch.tensor(threshold))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits float32 (N, K), negative energies float32 (N,) and is_ood bool (N,)."""
        logits = self.network(images).logits
        scaled = logits / self.temperature
        greatest = scaled.amax(dim=1, keepdim=True)
        rest = (scaled - greatest).exp().sum(dim=1).log()
        negative_energy = self.temperature * (greatest.squeeze(1) + rest)
        return logits, negative_energy, negative_energy <= self.threshold


class OnnxGraph:
    """A graph under onnxruntime, on the CPU."""

    def __init__(self, content: bytes) -> None:
        """Load an ONNX model.

        Raises:
            ExportError: onnxruntime is not installed.
        """
        runtime = _imported("onnxruntime")
        self._session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def predict(self, pixels: NDArray[np.uint8]) -> OnnxVerdicts:
        """Judge uint8 (N, H, W, 3), N >= 1."""
        return OnnxVerdicts(*self._session.run(list(OUTPUTS), {INPUT: pixels}))


def export_onnx(bundle: Bundle) -> bytes:
    """Return a bundle as an ONNX model: uint8 (N, H, W, 3) to LOGITS, NEGATIVE_ENERGY and IS_OOD, any N >= 1.

    Normalisation, temperature and threshold are in it, and in its metadata the bundle that it is of. It has been held
    to the bundle's predictor, by onnxruntime, on the golden images and on noise.

    Raises:
        ExportError: onnx is not installed; the bundle's verdict is of another score, or its precision another than
            float32; the network cannot be exported; or the graph's answers are others.
    """
    _require_exportable(bundle)
    onnx = _imported("onnx")
    content: bytes = _described(_exported(bundle), onnx, bundle).SerializeToString()
    _require_agreement(bundle, OnnxGraph(content))
    return content


def _require_exportable(bundle: Bundle) -> None:
    manifest = bundle.manifest
    name = f"{manifest.name}@{manifest.version}"
    if manifest.verdict != "negative_energy":
        raise ExportError(
            f"the verdict of {name} is of {manifest.verdict}; a graph flags by negative_energy alone: export a bundle "
            "whose recipe has calibrate.verdict = 'negative_energy'"
        )
    if isinstance(manifest.network, OnnxSpec):
        raise ExportError(f"the network of {name} came as ONNX, which PyTorch's exporter cannot put into a graph anew")
    if manifest.execution.precision != "float32":
        source = f"{manifest.optimisation.source}, which it was made of" if manifest.optimisation else "a float32 one"
        raise ExportError(
            f"the threshold of {name} is of {manifest.execution.precision}, and the graph computes in float32: "
            f"export {source}"
        )


def _exported(bundle: Bundle) -> Any:
    preprocess = bundle.manifest.preprocess
    network = NormalisedNetwork(read_network(bundle), preprocess)
    judging = JudgingNetwork(network, bundle.manifest.temperature, bundle.predictor.threshold).eval()
    # Two images: of one, the exporter would conclude that there is always one.
    example = torch.zeros(2, preprocess.height, preprocess.width, 3, dtype=torch.uint8)
    _imported("onnxscript")
    try:
        program = torch.onnx.export(
            judging,
            (example,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes=({0: torch.export.Dim("images")},),
        )
        return program.model_proto if program else None
    except Exception as err:  # the exporter raises whatever its parts raise
        kind = type(network.network).__name__
        raise ExportError(f"{kind} cannot be exported to ONNX: {type(err).__name__}: {err}") from err


def _described(model: Any, onnx: ModuleType, bundle: Bundle) -> Any:
    """Say in a model what it is of, instead of where on this machine which line of code made it."""
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info):
        del part.metadata_props[:]
    manifest = bundle.manifest
    onnx.helper.set_model_props(
        model,
        {
            "bundle": f"{manifest.name}@{manifest.version}",
            "bundle_sha256": bundle.sha256,
            "threshold": str(float(bundle.predictor.threshold)),
            "temperature": str(manifest.temperature),
            "classes": "\n".join(manifest.classes),
        },
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _require_agreement(bundle: Bundle, graph: OnnxGraph) -> None:
    manifest = bundle.manifest
    preprocess, tolerance = manifest.preprocess, manifest.execution.tolerance
    golden = [images.load((bundle.folder / g.file).read_bytes(), preprocess) for g in manifest.golden]
    shape = (_NOISE_IMAGES, preprocess.height, preprocess.width, 3)
    pixels = np.concatenate([np.stack(golden), np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)])
    found, expected = graph.predict(pixels), bundle.predictor.predict(pixels)
    difference = np.abs(found.negative_energy - expected.negative_energy)
    decided = np.abs(expected.negative_energy - bundle.predictor.threshold) > tolerance
    wrong = ~(difference <= tolerance) | (found.logits.argmax(axis=1) != expected.class_id)
    wrong |= decided & (found.is_ood != expected.is_ood)
    if wrong.any():
        row = int(wrong.argmax())
        raise ExportError(
            f"{manifest.name}@{manifest.version}: onnxruntime gives negative energy {found.negative_energy[row]:.4f}, "
            f"is_ood {found.is_ood[row]}, class {found.logits[row].argmax()}; the predictor "
            f"{expected.negative_energy[row]:.4f}, {expected.is_ood[row]}, {expected.class_id[row]} (tolerance "
            f"{tolerance}), for {int(wrong.sum())} of {len(wrong)} images"
        )


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as err:
        raise ExportError(f"{name} cannot be imported ({err}): pip install 'energy-ood[onnx]'") from err
