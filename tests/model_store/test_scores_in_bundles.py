"""Bundles with further scores: what they hold, what they say, what is refused."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from model_store.bundle import CALIBRATION, MANIFEST, SCORES, Bundle, BundleDraft, load_bundle, read_manifest
from model_store.errors import (
    BundleError,
    CalibrationError,
    GoldenMismatchError,
    IncompleteBundleError,
    IntegrityError,
    ManifestError,
    ScoreMismatchError,
)
from model_store.manifest import Manifest
from model_store.networks import NetworkOutput
from model_store.predictor import CalibratedScore, Predictor, Scorer
from model_store.score_specs import KnnSpec, MaxLogitSpec, NegativeEnergySpec
from model_store.scores import Head, NegativeEnergy, restore_score
from model_store.store import SHIPPED, Store


@pytest.fixture
def folder(store: Store, scored_draft: BundleDraft) -> Path:
    return store.publish(scored_draft)


@pytest.fixture(scope="module")
def bundle(scored_draft: BundleDraft, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(Store(tmp_path_factory.mktemp("store")).publish(scored_draft))


def test_every_score_comes_back_as_it_was_fitted(
    bundle: Bundle, scored_draft: BundleDraft, network: torch.nn.Module, scorer: Scorer, test_images: np.ndarray
) -> None:
    scored = bundle.predictor.scorer.score(test_images)
    found = bundle.predictor.judge_by_all(scored)
    assert list(found) == ["negative_energy", *(spec.kind for spec in scored_draft.manifest.scores)]
    # Another forward pass, of another instance of the network, whose convolutions may sum in another order.
    np.testing.assert_allclose(scored.negative_energy, scorer.score(test_images).negative_energy, atol=1e-4)
    np.testing.assert_array_equal(found["negative_energy"].value, scored.negative_energy)
    for spec in scored_draft.manifest.scores:
        fitted = restore_score(spec, scored_draft.statistics[spec.kind], Head.of(network))
        np.testing.assert_array_equal(found[spec.kind].value, fitted(scored.output).numpy(), spec.kind)
    assert all(verdicts.value.dtype == np.float32 for verdicts in found.values())


def test_scores_agree_with_the_verdict_that_is_one_of_them(bundle: Bundle, test_images: np.ndarray) -> None:
    scored = bundle.predictor.scorer.score(test_images)
    plain, by_all = bundle.predictor.judge(scored), bundle.predictor.judge_by_all(scored)
    np.testing.assert_array_equal(plain.negative_energy, by_all["negative_energy"].value)
    np.testing.assert_array_equal(plain.p_value, by_all["negative_energy"].p_value)
    np.testing.assert_array_equal(plain.is_ood, by_all["negative_energy"].is_ood)


def test_another_score_may_be_the_verdict(
    scored_draft: BundleDraft, store: Store, bundle: Bundle, test_images: np.ndarray
) -> None:
    manifest = scored_draft.manifest.model_copy(update={"verdict": "knn"})
    predictor = load_bundle(store.publish(replace(scored_draft, manifest=manifest))).predictor
    scored = predictor.scorer.score(test_images)
    found, by_all = predictor.judge(scored), bundle.predictor.judge_by_all(scored)
    np.testing.assert_array_equal(found.p_value, by_all["knn"].p_value)
    np.testing.assert_array_equal(found.is_ood, by_all["knn"].is_ood)
    np.testing.assert_array_equal(found.negative_energy, by_all["negative_energy"].value)
    assert predictor.threshold == np.float32(manifest.calibrations["knn"].threshold)
    assert not np.array_equal(found.is_ood, by_all["negative_energy"].is_ood)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_identity_holds_for_every_score(bundle: Bundle, data: st.DataObject) -> None:
    """Also at the calibration scores themselves, at the threshold, and one float to either side."""
    name = data.draw(st.sampled_from(list(bundle.predictor.scores)))
    calibrated = bundle.predictor.scores[name]
    spec = bundle.manifest.calibrations[name]
    stored = calibrated.calibration_scores
    near = [stored[data.draw(st.integers(0, spec.n - 1))], calibrated.threshold, stored[spec.k - 1]]
    values = [*near, *(np.nextafter(value, np.float32(end)) for value in near for end in (-np.inf, np.inf))]
    values.append(np.float32(data.draw(st.floats(-1e6, 1e6, width=32))))

    class Given:
        name, statistics = calibrated.score.name, calibrated.score.statistics

        def __call__(self, _: NetworkOutput) -> torch.Tensor:
            return torch.from_numpy(np.array(values, np.float32))

    found = replace(calibrated, score=Given()).judge(NetworkOutput(torch.zeros(1), torch.zeros(1)))
    np.testing.assert_array_equal(found.is_ood, found.value <= calibrated.threshold)
    np.testing.assert_array_equal(found.is_ood, found.p_value <= spec.k / (spec.n + 1))
    np.testing.assert_array_equal(found.p_value, [(1 + (stored <= value).sum()) / (spec.n + 1) for value in values])


def test_real_images_are_judged_by_the_identity(bundle: Bundle, test_images: np.ndarray) -> None:
    for name, found in bundle.predictor.predict_by_all(test_images).items():
        spec = bundle.manifest.calibrations[name]
        np.testing.assert_array_equal(found.is_ood, found.value <= np.float32(spec.threshold))
        np.testing.assert_array_equal(found.is_ood, found.p_value <= spec.k / (spec.n + 1))
        assert 0 < found.is_ood.sum() < 100, name


def test_scores_that_nobody_asked_for_are_not_computed(bundle: Bundle, test_images: np.ndarray) -> None:
    def fail(_: NetworkOutput) -> torch.Tensor:
        raise AssertionError("computed")

    scores = dict(bundle.predictor.scores)
    scores["vim"] = CalibratedScore(fail, *(getattr(scores["vim"], n) for n in ("calibration_scores", "threshold")))
    predictor = Predictor(bundle.predictor.scorer, scores)
    predictor.predict(test_images[:2])
    with pytest.raises(AssertionError, match="computed"):
        predictor.predict_by_all(test_images[:2])


def test_statistics_have_a_file_of_their_own(folder: Path, bundle_folder: Path, scored_draft: BundleDraft) -> None:
    assert not (bundle_folder / SCORES).exists()
    assert SCORES not in read_manifest(bundle_folder).files
    stored = load_file(folder / SCORES)
    fitted = {"react", "knn", "mahalanobis", "relative_mahalanobis", "vim", "energy_mahalanobis"}
    assert {key.partition(".")[0] for key in stored} == fitted
    assert stored["knn.reference"].shape == (60, 64)
    assert read_manifest(folder).files[SCORES].size_bytes == (folder / SCORES).stat().st_size
    assert read_manifest(folder).model_copy(update={"files": {}, "version": 1}) == scored_draft.manifest


def test_scores_of_logits_alone_need_no_file(scored_draft: BundleDraft, store: Store) -> None:
    def only(values: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if name in ("negative_energy", "max_logit")}

    manifest = scored_draft.manifest.model_dump()
    manifest |= {"scores": [MaxLogitSpec()], "calibrations": only(manifest["calibrations"])}
    manifest["execution"]["score_tolerances"] = only(manifest["execution"]["score_tolerances"])
    for golden in manifest["golden"]:
        golden["scores"] = only(golden["scores"])
    small = replace(
        scored_draft,
        manifest=Manifest.model_validate(manifest),
        calibration_scores=only(dict(scored_draft.calibration_scores)),
        statistics={},
    )
    folder = store.publish(small)
    assert not (folder / SCORES).exists()
    assert list(load_bundle(folder).predictor.scores) == ["negative_energy", "max_logit"]


def test_bundle_of_schema_version_1_loads_as_ever() -> None:
    folder = SHIPPED / "cifar10" / "1"
    fields = json.loads((folder / MANIFEST).read_text())
    assert fields["schema_version"] == 1
    assert "scores" not in fields
    loaded = load_bundle(folder, device=torch.device("cpu"))
    assert (loaded.manifest.schema_version, loaded.manifest.scores) == (1, ())
    assert loaded.manifest.evaluation is not None
    assert loaded.manifest.evaluation.scores == {}
    assert list(loaded.predictor.scores) == ["negative_energy"]
    assert loaded.predictor.scores["negative_energy"].score == NegativeEnergy(loaded.manifest.temperature)


def _edit_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    fields = json.loads((folder / MANIFEST).read_text())
    change(fields)
    (folder / MANIFEST).write_text(json.dumps(fields))


def _rewrite(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Replace the statistics and make the manifest agree: what no checksum can find."""
    content = save(tensors)
    (folder / SCORES).write_bytes(content)
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    _edit_manifest(folder, lambda fields: fields["files"].update({SCORES: entry}))


def _check_refused(folder: Path, error: type[BundleError], *parts: str) -> None:
    with pytest.raises(error) as caught:
        load_bundle(folder)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda t: t.pop("vim.alpha"), ("vim.alpha is missing", "expected float32 ()")),
        (lambda t: t.update({"vim.beta": t["vim.alpha"]}), ("vim.beta is float32 ()", "no such statistic")),
        (lambda t: t.update({"odin.eps": t["vim.alpha"]}), ("holds odin.eps", "the bundle's scores are negative_e")),
        (lambda t: t.update({"negative_energy.t": t["vim.alpha"]}), ("negative_energy.t", "no such statistic")),
        (lambda t: t.update({"vim.origin": t["vim.origin"][:9]}), ("vim.origin is float32 (9,)", "float32 (64,)")),
        (lambda t: t.update({"knn.reference": t["knn.reference"].half()}), ("knn.reference is float16 (60, 64)",)),
        (lambda t: t.update({"knn.reference": t["knn.reference"][:4]}), ("4 rows", "k = 5")),
        (lambda t: t["mahalanobis.whitening"][3].fill_(torch.nan), ("mahalanobis.whitening holds 64 values",)),
    ],
)
def test_statistics_that_are_not_the_scores_are_refused(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], None], parts: tuple[str, ...]
) -> None:
    tensors = load_file(folder / SCORES)
    change(tensors)
    _rewrite(folder, {key: tensor.clone() for key, tensor in tensors.items()})
    _check_refused(folder, ScoreMismatchError, SCORES, *parts)


def test_damaged_or_missing_statistics_are_refused(folder: Path) -> None:
    content = (folder / SCORES).read_bytes()
    (folder / SCORES).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    _check_refused(folder, IntegrityError, SCORES, "SHA-256")
    (folder / SCORES).unlink()
    _check_refused(folder, IncompleteBundleError, SCORES)
    _edit_manifest(folder, lambda fields: fields["files"].pop(SCORES))
    _check_refused(folder, ScoreMismatchError, "react.clip is missing")


def test_statistics_that_are_no_safetensors_are_refused(folder: Path) -> None:
    content = b"\x80\x04 a pickle, say"
    (folder / SCORES).write_bytes(content)
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    _edit_manifest(folder, lambda fields: fields["files"].update({SCORES: entry}))
    _check_refused(folder, ScoreMismatchError, SCORES)


def test_other_statistics_are_refused_by_the_golden_images(folder: Path) -> None:
    tensors = load_file(folder / SCORES)
    tensors["vim.alpha"] *= 1.1
    _rewrite(folder, tensors)
    _check_refused(folder, GoldenMismatchError, "golden/0.png", "vim ", "expected")


@pytest.mark.parametrize("name", ["knn", "max_softmax", "relative_mahalanobis"])
def test_threshold_of_every_score_is_verified(folder: Path, name: str) -> None:
    def change(fields: dict[str, Any]) -> None:
        spec = fields["calibrations"][name]
        spec["threshold"] = spec["histogram_edges"][0]

    _edit_manifest(folder, change)
    _check_refused(folder, CalibrationError, f"{name}: threshold is", "k = 10", CALIBRATION)


@pytest.mark.parametrize("name", ["knn", "max_softmax", "relative_mahalanobis"])
def test_k_of_every_score_is_verified(folder: Path, name: str) -> None:
    _edit_manifest(folder, lambda fields: fields["calibrations"][name].update(k=11))
    _check_refused(folder, CalibrationError, f"{name}: k is 11", "n = 100, alpha = 0.1 gives 10")


def test_calibration_scores_of_every_score_are_needed(scored_draft: BundleDraft, store: Store) -> None:
    kept = {name: values for name, values in scored_draft.calibration_scores.items() if name != "gen"}
    with pytest.raises(CalibrationError, match=r"expected .*gen float32 \(100,\)"):
        store.publish(replace(scored_draft, calibration_scores=kept))
    more = dict(scored_draft.calibration_scores) | {"odin": scored_draft.calibration_scores["gen"]}
    with pytest.raises(CalibrationError, match="odin"):
        store.publish(replace(scored_draft, calibration_scores=more))


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda f: f["scores"].append({"kind": "odin"}), ("scores", "odin")),
        (lambda f: f["scores"].append(f["scores"][0]), ("each may be there once",)),
        (lambda f: f["scores"].append(NegativeEnergySpec().model_dump()), ("leave it out",)),
        (lambda f: f["scores"].append(KnnSpec(k=2).model_dump()), ("each may be there once",)),
        (lambda f: f["scores"].pop(), ("calibrations are of", "energy_mahalanobis")),
        (lambda f: f["scores"][0].update(temperature=2), ("temperature",)),
        (lambda f: f["calibrations"].pop("gen"), ("calibrations are of", "gen")),
        (lambda f: f.update(verdict="odin"), ("verdict", "odin")),
        (lambda f: f["golden"][1]["scores"].pop("gen"), ("golden/1.png", "gen")),
        (lambda f: f["execution"]["score_tolerances"].pop("gen"), ("score_tolerances", "gen")),
        (lambda f: f["execution"]["score_tolerances"].update(gen=0), ("score_tolerances", "0")),
        (lambda f: f.update(schema_version=1), ("schema_version 1", "max_softmax")),
    ],
)
def test_manifest_whose_scores_do_not_fit_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], None], parts: tuple[str, ...]
) -> None:
    _edit_manifest(folder, change)
    _check_refused(folder, ManifestError, MANIFEST, *parts)


def test_verdict_without_a_calibration_is_refused(bundle_folder: Path) -> None:
    _edit_manifest(bundle_folder, lambda fields: fields.update(verdict="knn"))
    _check_refused(bundle_folder, ManifestError, "'knn'", "calibrations do not hold")


def test_openvino_gives_every_score(folder: Path, bundle: Bundle, test_images: np.ndarray) -> None:
    found = load_bundle(folder, runtime="openvino").predictor.predict_by_all(test_images)
    for name, expected in bundle.predictor.predict_by_all(test_images).items():
        tolerance = bundle.manifest.execution.score_tolerances.get(name, bundle.manifest.execution.tolerance)
        np.testing.assert_allclose(found[name].value, expected.value, atol=tolerance, err_msg=name)
