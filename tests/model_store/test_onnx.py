"""A bundle in ONNX, judged by onnxruntime, and the model repository of Triton around it."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from model_store import images, scores, triton
from model_store.bundle import Bundle, BundleDraft, load_bundle
from model_store.cli import main
from model_store.errors import ExportError
from model_store.manifest import Manifest
from model_store.networks import NetworkOutput
from model_store.onnx_graph import JudgingNetwork, OnnxGraph, export_onnx
from model_store.store import SHIPPED, Store

CPU = torch.device("cpu")
OodStore = Callable[..., subprocess.CompletedProcess[str]]


class _AsTheyAre(nn.Module):
    """Takes logits for images."""

    def forward(self, logits: Tensor) -> NetworkOutput:
        return NetworkOutput(logits, logits)


def _judge(logits: list[list[float]], temperature: float, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    judging = JudgingNetwork(_AsTheyAre(), temperature, np.float32(threshold))  # type: ignore[arg-type]
    _, energy, is_ood = judging(torch.tensor(logits))
    return energy.numpy(), is_ood.numpy()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_energy_in_the_graph_is_equation_4_and_does_not_overflow(temperature: float) -> None:
    logits = [[0.0, 0.0, 0.0, 0.0], [3.0, -2.0, 0.5, 1.0], [500.0, 499.0, -1.0, 0.0], [-900.0, -901.0, -902.0, -950.0]]
    energy, _ = _judge(logits, temperature, 0.0)
    exact = temperature * np.logaddexp.reduce(np.array(logits) / temperature, axis=1)
    np.testing.assert_allclose(energy, exact, rtol=1e-6)
    assert energy[0] == pytest.approx(temperature * np.log(4))
    np.testing.assert_allclose(energy, scores.negative_energy(torch.tensor(logits), temperature), rtol=1e-6)


def test_energy_at_the_threshold_is_flagged() -> None:
    (energy,), (flagged,) = _judge([[1.0, 2.0]], 1.0, 0.0)
    assert not flagged
    assert _judge([[1.0, 2.0]], 1.0, energy)[1].all()
    assert not _judge([[1.0, 2.0]], 1.0, np.nextafter(energy, np.float32(-1)))[1].any()


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return load_bundle(SHIPPED / "cifar10" / "1", device=CPU)


@pytest.fixture(scope="module")
def exported(shipped: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with the shipped bundle."""
    root = tmp_path_factory.mktemp("triton")
    triton.export_triton(shipped, root)
    return root / "cifar10"


@pytest.fixture(scope="module")
def pixels(image_sets: Path, shipped: Bundle) -> np.ndarray:
    files = sorted(path for path in image_sets.rglob("*") if path.suffix in (".png", ".jpg"))
    decoded = np.stack([images.load(file.read_bytes(), shipped.manifest.preprocess) for file in files])
    return np.concatenate(
        [decoded, *(np.load(image_sets / name / "test.npz")["images"] for name in ("svhn", "textures"))]
    )


@pytest.mark.slow
def test_graph_judges_real_images_as_the_predictor_does(exported: Path, shipped: Bundle, pixels: np.ndarray) -> None:
    graph = OnnxGraph((exported / "1" / "model.onnx").read_bytes())
    expected = shipped.predictor.scorer.score(pixels)
    verdicts = shipped.predictor.judge(expected)
    found = graph.predict(pixels)
    assert [array.dtype for array in found] == [np.float32, np.float32, np.bool_]
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-3)
    np.testing.assert_allclose(found.negative_energy, expected.negative_energy, atol=1e-3)
    np.testing.assert_array_equal(found.is_ood, verdicts.is_ood)
    assert 20 < verdicts.is_ood.sum() < len(pixels) - 200
    alone = graph.predict(pixels[7:8])
    np.testing.assert_allclose(alone.negative_energy, found.negative_energy[7:8], atol=1e-3)


@pytest.mark.slow
def test_graph_names_its_bundle_and_nothing_of_this_machine(exported: Path, shipped: Bundle) -> None:
    content = (exported / "1" / "model.onnx").read_bytes()
    properties = {entry.key: entry.value for entry in onnx.load_from_string(content).metadata_props}
    assert properties == {
        "bundle": "cifar10@1",
        "bundle_sha256": shipped.sha256,
        "threshold": "12.503654479980469",
        "temperature": "1.0",
        "classes": "\n".join(shipped.manifest.classes),
    }
    assert b"stack_trace" not in content
    assert str(Path(triton.__file__).parent).encode() not in content


@pytest.mark.slow
def test_repository_is_laid_out_as_triton_wants_it(exported: Path, shipped: Bundle) -> None:
    files = {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}
    assert files == {"config.pbtxt", "labels.txt", "1/model.onnx"}
    assert (exported / "labels.txt").read_text().split() == list(shipped.manifest.classes)
    with pytest.raises(ExportError, match=r"cifar10/1 exists; remove it"):
        triton.export_triton(shipped, exported.parent)


@pytest.mark.slow
def test_graph_with_another_threshold_is_refused(shipped: Bundle, monkeypatch) -> None:
    """What is exported is held to the predictor: here a graph that flags everything."""
    monkeypatch.setattr(
        "model_store.onnx_graph.JudgingNetwork",
        lambda network, temperature, _: JudgingNetwork(network, temperature, np.float32(99)),
    )
    with pytest.raises(ExportError, match=r"is_ood True, class 0; the predictor .*, False, 0 .* for \d+ of 42 images"):
        export_onnx(shipped)


# In a process of its own: kserve's messages have the same names as Triton's, and one process holds either.
_PARSE = """
import sys
from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig
print(json_format.MessageToJson(text_format.Parse(sys.stdin.read(), ModelConfig())))
"""


def test_configuration_is_one_that_triton_parses(shipped: Bundle) -> None:
    config = triton.config(shipped.manifest)
    parsed = subprocess.run([sys.executable, "-c", _PARSE], input=config, capture_output=True, text=True, check=True)
    found = json.loads(parsed.stdout)
    expected = {"name": "cifar10", "backend": "onnxruntime", "maxBatchSize": triton.MAX_BATCH_SIZE}
    assert {key: found[key] for key in expected} == expected
    assert "dynamicBatching" in found
    assert found["input"] == [{"name": "IMAGE", "dataType": "TYPE_UINT8", "dims": ["32", "32", "3"]}]
    assert [(o["name"], o["dataType"], o["dims"], "reshape" in o) for o in found["output"]] == [
        ("LOGITS", "TYPE_FP32", ["10"], False),
        ("NEGATIVE_ENERGY", "TYPE_FP32", ["1"], True),
        ("IS_OOD", "TYPE_BOOL", ["1"], True),
    ]
    assert found["output"][0]["labelFilename"] == "labels.txt"


def test_versions_with_other_classes_are_not_mixed(shipped: Bundle, tmp_path: Path) -> None:
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "labels.txt").write_text("cat\ndog\n")
    with pytest.raises(ExportError, match=r"labels.txt is of other versions of cifar10, with other classes"):
        triton.export_triton(shipped, tmp_path)


def test_a_configuration_that_is_no_text_is_not_written_over(shipped: Bundle, tmp_path: Path) -> None:
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "config.pbtxt").write_bytes(b"\xff\xfe")
    with pytest.raises(ExportError, match=r"config.pbtxt is of other versions of cifar10, .* or was changed"):
        triton.export_triton(shipped, tmp_path)


def test_a_place_that_can_not_be_written_is_refused_before_the_export(
    shipped: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "export_onnx", lambda _: pytest.fail("it was exported"))
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match=r"file.* cannot be written \(Not a directory\); choose another --out"):
        triton.export_triton(shipped, tmp_path / "file")
    with pytest.raises(ExportError, match=r"aa.* cannot be written \(File name too long\); choose another --out"):
        triton.export_triton(shipped, tmp_path / ("a" * 300))
    (tmp_path / "cifar10" / "labels.txt").mkdir(parents=True)
    with pytest.raises(ExportError, match=r"labels.txt cannot be written \(Is a directory\); choose another --out"):
        triton.export_triton(shipped, tmp_path)


def test_another_verdict_is_not_exported(scored_draft: BundleDraft, store: Store) -> None:
    manifest = scored_draft.manifest.model_copy(update={"verdict": "knn"})
    bundle = load_bundle(store.publish(replace(scored_draft, manifest=manifest)), device=CPU)
    with pytest.raises(ExportError, match=r"the verdict of untrained@1 is of knn; a graph flags by negative_energy"):
        export_onnx(bundle)


def test_another_precision_is_not_exported_and_leaves_nothing(draft: BundleDraft, store: Store, tmp_path: Path) -> None:
    execution = draft.manifest.execution.model_copy(update={"precision": "bfloat16", "tolerance": 1.0})
    manifest = Manifest.model_validate(draft.manifest.model_copy(update={"execution": execution}).model_dump())
    bundle = load_bundle(store.publish(replace(draft, manifest=manifest)), device=CPU)
    with pytest.raises(ExportError, match=r"the threshold of untrained@1 is of bfloat16, .*: export a float32 one"):
        triton.export_triton(bundle, tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


@pytest.fixture
def ood_store(run_command: OodStore) -> OodStore:
    return partial(run_command, main)


def test_export_wants_a_form(ood_store: OodStore, tmp_path: Path) -> None:
    finished = ood_store("export", "cifar10@1", "--out", tmp_path / "triton")
    assert finished.returncode == 2
    assert "--onnx" in finished.stderr


@pytest.mark.slow
def test_export_by_command(ood_store: OodStore, store: Store, bundle_folder: Path, tmp_path: Path) -> None:
    finished = ood_store("export", "untrained", "--onnx", "--out", tmp_path / "triton", "--store", store.root)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() == str(tmp_path / "triton" / "untrained" / "1")
    assert (tmp_path / "triton" / "untrained" / "1" / "model.onnx").stat().st_size > 10_000
