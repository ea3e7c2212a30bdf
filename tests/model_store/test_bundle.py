import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from model_store import bundle, images
from model_store.bundle import CALIBRATION, MANIFEST, WEIGHTS, BundleDraft, load_bundle, read_files, read_manifest
from model_store.errors import (
    BundleError,
    CalibrationError,
    GoldenMismatchError,
    IncompleteBundleError,
    IntegrityError,
    ManifestError,
    NetworkMismatchError,
)
from model_store.manifest import Manifest, PreprocessSpec, TorchvisionSpec, WideResNetSpec
from model_store.networks import build_network
from model_store.predictor import Scorer
from model_store.runtimes import TorchRuntime
from model_store.store import BundleRef, Store

ONNX = {"kind": "onnx", "graph_bytes": 1, "features": 1, "num_classes": 10}


def test_bundle_round_trip_predicts_what_the_network_predicted(
    bundle_folder: Path, scorer: Scorer, test_images: np.ndarray
) -> None:
    loaded = load_bundle(bundle_folder)
    expected = scorer.score(test_images)
    predictions = loaded.predictor.predict(test_images)
    np.testing.assert_array_equal(predictions.negative_energy, expected.negative_energy)
    np.testing.assert_array_equal(predictions.class_id, expected.class_id)
    assert loaded.sha256 == hashlib.sha256((bundle_folder / MANIFEST).read_bytes()).hexdigest()


def test_bundle_is_portable(bundle_folder: Path, tmp_path: Path, test_images: np.ndarray) -> None:
    moved = shutil.copytree(bundle_folder, tmp_path / "elsewhere")
    expected = load_bundle(bundle_folder).predictor.predict(test_images)
    np.testing.assert_array_equal(load_bundle(moved).predictor.predict(test_images).p_value, expected.p_value)


def test_bundle_holds_no_pickles(bundle_folder: Path) -> None:
    suffixes = {path.suffix for path in bundle_folder.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors", ".png"}


def _edit_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    fields = json.loads((folder / MANIFEST).read_text())
    change(fields)
    (folder / MANIFEST).write_text(json.dumps(fields))


def _rewrite(folder: Path, name: str, content: bytes) -> None:
    """Replace a file and make the manifest agree: what no checksum can find."""
    (folder / name).write_bytes(content)

    def change(fields: dict[str, Any]) -> None:
        fields["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}

    _edit_manifest(folder, change)


def _check_refused(folder: Path, error: type[BundleError], *parts: str) -> None:
    with pytest.raises(error) as caught:
        load_bundle(folder)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("name", [WEIGHTS, CALIBRATION, "golden/0.png"])
def test_truncated_file_is_refused(bundle_folder: Path, name: str) -> None:
    content = (bundle_folder / name).read_bytes()
    (bundle_folder / name).write_bytes(content[:-1])
    _check_refused(bundle_folder, IntegrityError, name, f"{len(content) - 1} bytes", f"expected {len(content)}")


@pytest.mark.parametrize("name", [WEIGHTS, CALIBRATION, "golden/0.png"])
def test_edited_file_is_refused(bundle_folder: Path, name: str) -> None:
    content = bytearray((bundle_folder / name).read_bytes())
    expected = hashlib.sha256(content).hexdigest()
    content[-1] ^= 1
    (bundle_folder / name).write_bytes(content)
    _check_refused(bundle_folder, IntegrityError, name, hashlib.sha256(content).hexdigest(), expected)


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS, CALIBRATION, "golden/2.png"])
def test_half_copied_bundle_is_refused(bundle_folder: Path, name: str) -> None:
    (bundle_folder / name).unlink()
    _check_refused(bundle_folder, IncompleteBundleError, name)


def test_newer_schema_is_refused(bundle_folder: Path) -> None:
    _edit_manifest(bundle_folder, lambda fields: fields.update(schema_version=4, surprise=True))
    _check_refused(bundle_folder, ManifestError, MANIFEST, "schema_version 4", "reads 1 to 3", "update energy-ood")


@pytest.mark.parametrize("found", [True, 1.0, "1", None, [1]])
def test_schema_version_that_is_no_integer_is_refused(bundle_folder: Path, found: object) -> None:
    _edit_manifest(bundle_folder, lambda fields: fields.update(schema_version=found))
    _check_refused(bundle_folder, ManifestError, MANIFEST, f"schema_version {found!r}", "reads 1 to 3")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda f: f.update(surprise=1), ("surprise",)),
        (lambda f: f.update(version=True), ("version", "integer", "True")),
        (lambda f: f.pop("temperature"), ("temperature",)),
        (lambda f: f.update(temperature=0), ("temperature", "0")),
        (lambda f: f.update(temperature=float("nan")), ("temperature",)),
        (lambda f: f["preprocess"].update(std=[0.2, 0, 0.2]), ("std",)),
        (lambda f: f["preprocess"].update(resize_to=16), ("resize_to", "16", "32")),
        (lambda f: f["network"].update(kind="alexnet"), ("network", "alexnet")),
        (lambda f: f["classes"].append("zebra"), ("11 classes", "10 outputs")),
        (lambda f: f["files"].update({"../../etc/passwd": f["files"][WEIGHTS]}), ("../../etc/passwd",)),
        (lambda f: f.update(name="cifar10-bytes"), ("cifar10-bytes",)),
        (lambda f: f.update(name="a@b"), ("a@b",)),
        (lambda f: f["calibrations"]["negative_energy"].update(k=9999), ("9999",)),
        (lambda f: f["calibrations"]["negative_energy"].update(method="pac"), ("'pac'", "delta None")),
        (lambda f: f["calibrations"]["negative_energy"].update(delta=0.05), ("'conformal'", "delta 0.05")),
        (lambda f: f["files"].pop(WEIGHTS), (WEIGHTS, "missing")),
        (lambda f: f["files"].update({"golden/\0.png": f["files"][WEIGHTS]}), ("golden/\\x00.png", "plain path")),
        (lambda f: f["network"].update(widen_factor=10**12), ("widen_factor", str(10**12), "1000")),
        (lambda f: f["network"].update(depth=6 * 10**9 + 4), ("depth", str(6 * 10**9 + 4), "1000")),
        (lambda f: f.update(network=ONNX | {"graph_bytes": 2**63}), ("graph_bytes", str(2**63), str(2**31))),
        (lambda f: f.update(network=ONNX | {"features": 2**62}), ("features", str(2**62), str(2**31))),
    ],
)
def test_impossible_manifest_is_refused(
    bundle_folder: Path, change: Callable[[dict[str, Any]], None], parts: tuple[str, ...]
) -> None:
    _edit_manifest(bundle_folder, change)
    _check_refused(bundle_folder, ManifestError, MANIFEST, *parts)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_manifest_that_is_no_json_object_is_refused(bundle_folder: Path, content: bytes) -> None:
    (bundle_folder / MANIFEST).write_bytes(content)
    _check_refused(bundle_folder, ManifestError, MANIFEST)


def test_wrong_architecture_is_refused(bundle_folder: Path) -> None:
    _edit_manifest(bundle_folder, lambda fields: fields["network"].update(widen_factor=2))
    _check_refused(bundle_folder, NetworkMismatchError, WEIGHTS, "bn.bias is float32 (64,)", "(128,)")


def test_deeper_architecture_is_refused(bundle_folder: Path) -> None:
    _edit_manifest(bundle_folder, lambda fields: fields["network"].update(depth=16))
    _check_refused(bundle_folder, NetworkMismatchError, WEIGHTS, "stages.1", "depth=16")


def test_architecture_beyond_memory_is_refused(bundle_folder: Path) -> None:
    _edit_manifest(bundle_folder, lambda fields: fields["network"].update(depth=1000, widen_factor=1000))
    _check_refused(bundle_folder, NetworkMismatchError, WEIGHTS, "bn.bias is float32 (64,)", "(64000,)")


def test_depth_that_no_network_has_is_refused(bundle_folder: Path) -> None:
    _edit_manifest(bundle_folder, lambda fields: fields["network"].update(depth=17))
    _check_refused(bundle_folder, NetworkMismatchError, "17", "16, 22")


def test_weights_of_another_type_are_refused(bundle_folder: Path, tmp_path: Path) -> None:
    weights = load_file(bundle_folder / WEIGHTS)
    save_file(weights | {"head.bias": weights["head.bias"].double()}, tmp_path / "w")
    _rewrite(bundle_folder, WEIGHTS, (tmp_path / "w").read_bytes())
    _check_refused(bundle_folder, NetworkMismatchError, WEIGHTS, "head.bias is float64 (10,)", "float32 (10,)")


@pytest.mark.parametrize(("name", "error"), [(WEIGHTS, NetworkMismatchError), (CALIBRATION, CalibrationError)])
@pytest.mark.parametrize(
    ("dtype", "size_bytes", "found"),
    [
        ("BF16", 4, "bfloat16 (2,)"),
        ("F8_E4M3", 2, "float8_e4m3fn (2,)"),
        ("F8_E8M0", 2, "type 'F8_E8M0'"),
        ("F4", 1, "type 'F4'"),
    ],
)
def test_tensors_of_a_type_that_no_bundle_has_are_refused(
    bundle_folder: Path, name: str, error: type[BundleError], dtype: str, size_bytes: int, found: str
) -> None:
    tensor = {"dtype": dtype, "shape": [2], "data_offsets": [0, size_bytes]}
    header = json.dumps({"a": tensor}).encode()
    _rewrite(bundle_folder, name, struct.pack("<Q", len(header)) + header + bytes(size_bytes))
    _check_refused(bundle_folder, error, name, found)


def test_weights_that_are_no_safetensors_are_refused(bundle_folder: Path) -> None:
    _rewrite(bundle_folder, WEIGHTS, b"\x80\x04 a pickle, say")
    _check_refused(bundle_folder, NetworkMismatchError, WEIGHTS)


def test_other_weights_are_refused_by_the_golden_images(bundle_folder: Path, tmp_path: Path) -> None:
    weights = load_file(bundle_folder / WEIGHTS)
    save_file(weights | {"head.bias": weights["head.bias"] + 0.01}, tmp_path / "w")
    _rewrite(bundle_folder, WEIGHTS, (tmp_path / "w").read_bytes())
    _check_refused(bundle_folder, GoldenMismatchError, "golden/0.png", "expected", "0.001")


def test_difference_beyond_a_small_tolerance_is_shown(bundle_folder: Path) -> None:
    found = read_manifest(bundle_folder).golden[0].negative_energy
    stated = float(np.float32(found) + np.float32(2e-5))

    def change(fields: dict[str, Any]) -> None:
        fields["execution"]["tolerance"] = 1e-5
        fields["golden"][0]["negative_energy"] = stated

    _edit_manifest(bundle_folder, change)
    _check_refused(bundle_folder, GoldenMismatchError, f"energy {found:.9g}", f"{stated:.9g} within 1e-05")


def test_weights_with_nan_are_refused(bundle_folder: Path, tmp_path: Path) -> None:
    weights = load_file(bundle_folder / WEIGHTS)
    save_file(weights | {"head.bias": torch.full((10,), torch.nan)}, tmp_path / "w")
    _rewrite(bundle_folder, WEIGHTS, (tmp_path / "w").read_bytes())
    _check_refused(bundle_folder, GoldenMismatchError, "not finite")


def test_preprocessing_of_another_bundle_is_refused_by_the_golden_images(bundle_folder: Path) -> None:
    _edit_manifest(bundle_folder, lambda fields: fields["preprocess"].update(mean=[0.5, 0.5, 0.5]))
    _check_refused(bundle_folder, GoldenMismatchError, "golden/0.png")


@pytest.mark.parametrize("off_by", [-1.0, 1e-9, -1e-9])  # the last two are nothing in float32
def test_threshold_that_is_not_the_calibration_scores_is_refused(bundle_folder: Path, off_by: float) -> None:
    expected = read_manifest(bundle_folder).calibrations["negative_energy"].threshold

    def change(fields: dict[str, Any]) -> None:
        calibration = fields["calibrations"]["negative_energy"]
        edges = [edge for edge in calibration["histogram_edges"] if edge != expected]
        calibration["histogram_edges"] = sorted([*edges, expected + off_by])
        calibration["threshold"] = expected + off_by

    _edit_manifest(bundle_folder, change)
    _check_refused(
        bundle_folder, CalibrationError, f"threshold is {expected + off_by}", CALIBRATION, f"gives {expected}"
    )


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"alpha": 0.01}, (MANIFEST, "k is 10", "alpha = 0.01 gives 2")),  # floor(0.01 * 201)
        ({"method": "empirical"}, (MANIFEST, "k is 10", "'empirical'", "gives 11")),  # 0.05 * 200 + 1
        # P(Binomial(200, 0.05) <= 4) = 0.026, P(... <= 5) = 0.062
        ({"method": "pac", "delta": 0.05}, (MANIFEST, "k is 10", "delta = 0.05 gives 5")),
        ({"alpha": 0.001}, (CALIBRATION, "n is 200", "at least 999")),
        ({"method": "pac", "alpha": 1e-60, "delta": 0.05}, (CALIBRATION, "n is 200", "at least 2995732273")),
    ],
)
def test_guarantee_that_k_does_not_give_is_refused(
    bundle_folder: Path, change: dict[str, Any], parts: tuple[str, ...]
) -> None:
    _edit_manifest(bundle_folder, lambda fields: fields["calibrations"]["negative_energy"].update(change))
    _check_refused(bundle_folder, CalibrationError, "negative_energy", *parts)


def test_calibration_scores_of_another_length_are_refused(
    bundle_folder: Path, draft: BundleDraft, store: Store
) -> None:
    short = replace(draft, calibration_scores={"negative_energy": draft.calibration_scores["negative_energy"][:50]})
    with pytest.raises(CalibrationError, match=r"\(50,\).*expected negative_energy float32 \(200,\)"):
        store.publish(short)
    assert store.refs() == [BundleRef("untrained", 1)]  # what does not load is not published


def test_unsorted_calibration_scores_are_refused(draft: BundleDraft, store: Store) -> None:
    scores = draft.calibration_scores["negative_energy"][::-1].copy()
    with pytest.raises(CalibrationError, match=f"{CALIBRATION}: negative_energy: .* not ascending"):
        store.publish(replace(draft, calibration_scores={"negative_energy": scores}))


def test_golden_images_are_replayed_from_the_bytes_that_were_verified(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_then_lost(folder: Path, manifest: Manifest) -> dict[str, bytes]:
        files = read_files(folder, manifest)
        (folder / "golden/0.png").write_bytes(b"written since")
        (folder / "golden/1.png").unlink()
        return files

    monkeypatch.setattr(bundle, "read_files", read_then_lost)
    assert load_bundle(bundle_folder).manifest.golden


def test_golden_image_that_is_no_image_is_refused(bundle_folder: Path) -> None:
    _rewrite(bundle_folder, "golden/0.png", b"not an image")
    _check_refused(bundle_folder, GoldenMismatchError, "golden")


@pytest.mark.slow
def test_compiled_runtime_replays_the_golden_images(bundle_folder: Path, test_images: np.ndarray) -> None:
    eager = load_bundle(bundle_folder).predictor.predict(test_images[:5])
    compiled = load_bundle(bundle_folder, runtime="torch-compiled").predictor.predict(test_images[:5])
    np.testing.assert_allclose(compiled.negative_energy, eager.negative_energy, atol=1e-4)


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "regnet_y_400mf"])  # a RegNet needs values to be built
def test_torchvision_network_goes_through_a_bundle(
    name: str, draft: BundleDraft, store: Store, preprocess: PreprocessSpec, test_images: np.ndarray
) -> None:
    torch.manual_seed(0)
    spec = TorchvisionSpec(name=name, num_classes=10)
    network = build_network(spec).eval()
    scorer = Scorer(TorchRuntime(network, preprocess, device=torch.device("cpu")), preprocess, 1.0)
    golden = tuple(
        expected.model_copy(update={"class_id": int(class_id), "negative_energy": float(negative_energy)})
        for expected, class_id, negative_energy in zip(
            draft.manifest.golden, *_scored_golden(scorer, draft, preprocess), strict=True
        )
    )
    manifest = draft.manifest.model_copy(update={"network": spec, "golden": golden})
    folder = store.publish(replace(draft, manifest=manifest, weights=network.state_dict()))
    found = load_bundle(folder).predictor.predict(test_images)
    np.testing.assert_allclose(found.negative_energy, scorer.score(test_images).negative_energy, atol=1e-5)


def _scored_golden(scorer: Scorer, draft: BundleDraft, preprocess: PreprocessSpec) -> tuple[np.ndarray, np.ndarray]:
    pixels = np.stack([images.load(draft.golden[golden.file], preprocess) for golden in draft.manifest.golden])
    scored = scorer.score(pixels)
    return scored.class_id, scored.negative_energy


def test_torchvision_network_without_a_linear_head_is_refused() -> None:
    with pytest.raises(ValueError, match="only networks that end in Linear"):
        build_network(TorchvisionSpec(name="squeezenet1_0", num_classes=10))


def test_manifest_round_trip_is_lossless(bundle_folder: Path, draft: BundleDraft) -> None:
    assert read_manifest(bundle_folder).model_copy(update={"files": {}}) == draft.manifest


def test_network_spec_of_another_family_cannot_be_mixed_up() -> None:
    with pytest.raises(ValueError, match="name"):
        WideResNetSpec.model_validate(
            {"kind": "wide_resnet", "depth": 10, "widen_factor": 1, "num_classes": 2, "name": "x"}
        )
