"""One bundle on disk: write it, verify it, load it.

<folder>/weights.safetensors      the network
         calibration.safetensors  the sorted calibration scores, one tensor a score
         scores.safetensors       what further scores were fitted to, `<score>.<statistic>`; where there is any
         openvino/                an int8 network up to its features; where that is the precision
         golden/                  encoded images whose outcome is known
         manifest.json            written last: its presence is the commit
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import save as save_arrays
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from model_store import calibration, images
from model_store.errors import (
    BundleError,
    CalibrationError,
    GoldenMismatchError,
    ImageError,
    IncompleteBundleError,
    IntegrityError,
    ManifestError,
    NetworkMismatchError,
    ScoreMismatchError,
)
from model_store.manifest import SCHEMA_VERSION, Calibration, FileEntry, Manifest, OnnxSpec
from model_store.networks import build_network, outlined
from model_store.predictor import CalibratedScore, Predictor, Scorer
from model_store.runtimes import OpenVinoIr, RunnableNetwork, Runtime, RuntimeChoice, RuntimeOptions, run_accepted
from model_store.score_specs import NegativeEnergySpec, ScoreName
from model_store.scores import Head, OnePassScore, restore_score

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
CALIBRATION = "calibration.safetensors"
SCORES = "scores.safetensors"
GOLDEN = "golden"
QUANTISED = ("openvino/features.xml", "openvino/features.bin")
"""An int8 graph's structure and weights, as a bundle that is written names them."""


@dataclass(frozen=True)
class BundleDraft:
    """All of a bundle before it is written; the manifest's `version` and `files` are filled in by publishing."""

    manifest: Manifest
    weights: Mapping[str, Tensor]
    calibration_scores: Mapping[str, NDArray[np.float32]]
    golden: Mapping[str, bytes]
    statistics: Mapping[ScoreName, Mapping[str, Tensor]] = field(default_factory=dict)
    """What each further score was fitted to; scores without any may be left out."""
    quantised: OpenVinoIr | None = None
    """The graph of an int8 bundle, which the manifest's `execution.quantised` names."""


@dataclass(frozen=True)
class Bundle:
    """A bundle that was verified, built and replayed: ready to predict. `sha256` is its manifest's."""

    manifest: Manifest
    sha256: str
    folder: Path
    predictor: Predictor

    @cached_property
    def calibration_counts(self) -> dict[ScoreName, tuple[int, ...]]:
        """Calibration images in each bucket of each score's `histogram_edges`, and above the last edge."""
        return {
            name: calibration.histogram_counts(self.predictor.scores[name].calibration_scores, spec.histogram_edges)
            for name, spec in self.manifest.calibrations.items()
        }


def write_bundle(folder: Path, draft: BundleDraft) -> Manifest:
    """Write a bundle into an empty or new folder, the manifest last; return the manifest as written."""
    manifest, contents = pack(draft)
    for name, content in contents.items():
        _write(folder / name, content)
    return manifest


def pack(draft: BundleDraft) -> tuple[Manifest, dict[str, bytes]]:
    """Return the manifest with the size and SHA-256 of every file, and the files by name, the manifest's last."""
    fitted = {f"{name}.{key}": tensor for name, kept in draft.statistics.items() for key, tensor in kept.items()}
    contents = {
        WEIGHTS: _save_tensors(draft.weights),
        CALIBRATION: save_arrays(dict(draft.calibration_scores)),
        **({SCORES: _save_tensors(fitted)} if fitted else {}),
        **_quantised_files(draft),
        **draft.golden,
    }
    files = {name: FileEntry(sha256=_sha256(content), size_bytes=len(content)) for name, content in contents.items()}
    manifest = draft.manifest.model_copy(update={"files": files})
    return manifest, contents | {MANIFEST: (manifest.model_dump_json(indent=1) + "\n").encode()}


def _quantised_files(draft: BundleDraft) -> dict[str, bytes]:
    named, graph = draft.manifest.execution.quantised, draft.quantised
    if named is None or graph is None:
        return {}
    return {named.structure: graph.graph, named.weights: graph.weights}


def read_manifest(folder: Path) -> Manifest:
    """Read and validate a manifest; no other file is looked at.

    Raises:
        IncompleteBundleError: there is none.
        ManifestError: it is no JSON, of another schema version, or has missing, unknown or impossible fields.
    """
    return _parse_manifest(folder / MANIFEST, _read_manifest_bytes(folder))


def _read_manifest_bytes(folder: Path) -> bytes:
    path = folder / MANIFEST
    try:
        return path.read_bytes()
    except OSError as err:
        raise IncompleteBundleError(f"{path} cannot be read ({err.strerror}): no bundle, or not all of one") from err


def _parse_manifest(path: Path, content: bytes) -> Manifest:
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as err:
        raise ManifestError(f"{path} is not JSON: {err}") from err
    found = fields.get("schema_version") if isinstance(fields, dict) else None
    if type(found) is not int or found not in range(1, SCHEMA_VERSION + 1):  # True and 1.0 equal 1
        raise ManifestError(
            f"{path} has schema_version {found!r}; this version of energy-ood reads 1 to {SCHEMA_VERSION}: "
            "update energy-ood, or export the bundle again"
        )
    try:
        return Manifest.model_validate_json(json.dumps(fields), strict=True)
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(map(str, first["loc"])) or "manifest"
        raise ManifestError(f"{path}: {where}: {first['msg']} (found {str(first['input'])[:80]})") from err


def read_files(folder: Path, manifest: Manifest) -> dict[str, bytes]:
    """Read every file, once, and hold it against its size and SHA-256 in the manifest.

    Raises:
        IncompleteBundleError: a file is missing.
        IntegrityError: a file differs; both values are named.
    """
    contents = {name: _verified(folder, name, entry) for name, entry in manifest.files.items()}
    quantised = manifest.execution.quantised
    graph = () if quantised is None else (quantised.structure, quantised.weights)
    for name in (WEIGHTS, CALIBRATION, *graph, *(golden.file for golden in manifest.golden)):
        if name not in contents:
            raise ManifestError(f"{folder / MANIFEST}: files: {name} is missing")
    return contents


def load_bundle(
    folder: Path,
    *,
    runtime: RuntimeChoice | None = None,
    device: torch.device | None = None,
    cache_dir: Path | None = None,
    threads: int | None = None,
) -> Bundle:
    """Verify a bundle, build its network strictly, replay its golden images on the runtime that will serve.

    Args:
        folder: the bundle.
        runtime: what runs it; by default the reference, eager PyTorch, and OpenVINO for what nothing else runs, an int8
            bundle or an ONNX network in bfloat16. `auto` is the fastest that is there and agrees with the golden
            images: CUDA graphs on a GPU, OpenVINO on the CPU, else eager PyTorch. `predictor.scorer.runtime.name` says
            which it became.
        device: CUDA where there is one by default. OpenVINO runs on the CPU.
        cache_dir: where OpenVINO's conversion is kept; by default it is made anew at every load, in seconds.
        threads: how many CPU threads compute the network; the runtime's own number by default.

    Raises:
        RuntimeUnavailableError: the runtime cannot be had here, or not in the bundle's precision.
        BundleError: anything is missing, damaged or not what the manifest says; the message names the file, the
            value found and the value expected.
    """
    content = _read_manifest_bytes(folder)
    manifest, sha256 = _parse_manifest(folder / MANIFEST, content), _sha256(content)
    options = RuntimeOptions(runtime or _reference(manifest), device, cache_dir, threads)
    files = read_files(folder, manifest)
    calibrated = _load_calibrations(folder, manifest, files[CALIBRATION])
    network = _load_network(folder, manifest, files.pop(WEIGHTS))
    scores = {
        name: CalibratedScore(score, *calibrated[name])
        for name, score in _load_scores(folder, manifest, files.get(SCORES), Head.of(network)).items()
    }

    def replayed_on(started: Runtime) -> Bundle:
        scorer = Scorer(started, manifest.preprocess, manifest.temperature)
        bundle = Bundle(manifest, sha256, folder, Predictor(scorer, scores, manifest.verdict))
        replay_golden(bundle, files)
        return bundle

    precision, quantised = manifest.execution.precision, _load_quantised(manifest, files)
    source = RunnableNetwork(network, manifest.preprocess, precision, sha256, quantised)
    return run_accepted(source, options, replayed_on)


def read_network(bundle: Bundle) -> nn.Module:
    """Build a bundle's network once more, apart from the one that its runtime has.

    Raises:
        BundleError: its weights are no longer what they were when it was loaded.
    """
    content = _verified(bundle.folder, WEIGHTS, bundle.manifest.files[WEIGHTS])
    return _load_network(bundle.folder, bundle.manifest, content)


def _reference(manifest: Manifest) -> RuntimeChoice:
    """Return what a bundle is loaded on unasked: eager PyTorch, or OpenVINO where nothing else has its precision."""
    precision = manifest.execution.precision
    graph_alone = precision == "int8" or (precision == "bfloat16" and isinstance(manifest.network, OnnxSpec))
    return "openvino" if graph_alone else "torch-eager"


def _load_quantised(manifest: Manifest, files: Mapping[str, bytes]) -> OpenVinoIr | None:
    named = manifest.execution.quantised
    return None if named is None else OpenVinoIr(files[named.structure], files[named.weights])


def replay_golden(bundle: Bundle, files: Mapping[str, bytes]) -> None:
    """Send the golden images among the bundle's verified `files` through the whole path, from bytes to verdict.

    Raises:
        GoldenMismatchError: a class differs, or a score is off by more than the manifest's tolerance for it.
    """
    manifest = bundle.manifest
    try:
        pixels = [images.load(files[g.file], manifest.preprocess) for g in manifest.golden]
        found = bundle.predictor.scorer.score(np.stack(pixels))
        by_score = bundle.predictor.judge_by_all(found)
    except (ImageError, FloatingPointError) as err:
        raise GoldenMismatchError(f"{bundle.folder}: the golden images cannot be replayed: {err}") from err
    tolerances = {"negative_energy": manifest.execution.tolerance, **manifest.execution.score_tolerances}
    for row, expected in enumerate(manifest.golden):
        class_id, wanted = int(found.class_id[row]), {"negative_energy": expected.negative_energy, **expected.scores}
        for name in manifest.score_names:
            value = float(by_score[name].value[row])
            if class_id != expected.class_id or not abs(value - wanted[name]) <= tolerances[name]:
                raise GoldenMismatchError(
                    f"{bundle.folder / expected.file}: class {class_id}, {name.replace('_', ' ')} {value:.9g}; "
                    f"expected class {expected.class_id}, {wanted[name]:.9g} within {tolerances[name]}. Decoder here: "
                    f"{images.DECODER}, of the bundle: {manifest.decoder}"
                )


def _load_network(folder: Path, manifest: Manifest, content: bytes) -> nn.Module:
    path = folder / WEIGHTS
    weights = _read_tensors(path, content, NetworkMismatchError)
    try:
        expected = outlined(manifest.network).state_dict()  # what the manifest asks for may be of any size
    except ValueError as err:
        raise NetworkMismatchError(f"{path}: {err}") from err
    for key in sorted(expected.keys() | weights.keys()):
        found = _tensor_type(weights.get(key))
        if found != (wanted := _tensor_type(expected.get(key))):
            raise NetworkMismatchError(f"{path}: {key} is {found}; {manifest.network!r} has {wanted}")
    network = build_network(manifest.network)
    network.load_state_dict(weights)
    return network


def _read_tensors(path: Path, content: bytes, error: type[BundleError]) -> dict[str, Tensor]:
    try:
        return load_tensors(content)
    except SafetensorError as err:
        raise error(f"{path}: {err}") from err
    except KeyError as err:  # a type that safetensors knows and PyTorch does not
        raise error(f"{path} holds a tensor of type {err}, which no bundle has") from err


def _tensor_type(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _load_calibrations(
    folder: Path, manifest: Manifest, content: bytes
) -> dict[ScoreName, tuple[NDArray[np.float32], np.float32]]:
    """Return each score's sorted calibration scores and threshold, which must follow from them."""
    path = folder / CALIBRATION
    stored = _read_tensors(path, content, CalibrationError)
    wanted: dict[str, str] = {name: f"float32 ({spec.n},)" for name, spec in manifest.calibrations.items()}
    types: dict[str, str] = {name: _tensor_type(tensor) for name, tensor in stored.items()}
    if types != wanted:
        raise CalibrationError(f"{path} holds {_listed(types)}; expected {_listed(wanted)}")
    found = {}
    for name, spec in manifest.calibrations.items():
        scores = stored[name].numpy()
        found[name] = (scores, _verified_threshold(folder, name, spec, scores))
    return found


def _verified_threshold(folder: Path, name: ScoreName, spec: Calibration, scores: NDArray[np.float32]) -> np.float32:
    """Return a score's threshold, which must follow from its k, and that from the guarantee that is stated."""
    try:
        k = calibration.choose_k(spec.method, spec.n, spec.alpha, spec.delta)
        threshold = calibration.threshold(scores, k)
    except CalibrationError as err:
        raise CalibrationError(f"{folder / CALIBRATION}: {name}: {err}") from err
    where = f"{folder / MANIFEST}: {name}"
    if spec.k != k:
        delta = "" if spec.delta is None else f", delta = {spec.delta}"
        raise CalibrationError(
            f"{where}: k is {spec.k}; method {spec.method!r} with n = {spec.n}, alpha = {spec.alpha}{delta} gives {k}"
        )
    if float(threshold) != spec.threshold:  # as float64: a number between two of float32 is neither
        raise CalibrationError(
            f"{where}: threshold is {spec.threshold}; k = {k} of the scores in {CALIBRATION} gives {float(threshold)}"
        )
    return threshold


def _listed(types: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {found}" for name, found in types.items()) or "nothing"


def _load_scores(folder: Path, manifest: Manifest, content: bytes | None, head: Head) -> dict[ScoreName, OnePassScore]:
    """Return every score of the bundle, negative energy first; what further ones were fitted to must be theirs."""
    path = folder / SCORES
    stored = {} if content is None else _read_tensors(path, content, ScoreMismatchError)
    try:
        scores = {
            spec.kind: restore_score(spec, _of_score(spec.kind, stored), head)
            for spec in (NegativeEnergySpec(temperature=manifest.temperature), *manifest.scores)
        }
    except ScoreMismatchError as err:
        raise ScoreMismatchError(f"{path}: {err}") from err
    if foreign := sorted(key for key in stored if key.partition(".")[0] not in scores):
        raise ScoreMismatchError(f"{path} holds {', '.join(foreign)}; the bundle's scores are {', '.join(scores)}")
    return scores


def _of_score(name: ScoreName, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): tensor for key, tensor in stored.items() if key.startswith(f"{name}.")}


def _verified(folder: Path, name: str, entry: FileEntry) -> bytes:
    path = folder / name
    try:
        content = path.read_bytes()
    except OSError as err:
        raise IncompleteBundleError(
            f"{path} cannot be read ({err.strerror}); the manifest names it: copy it again"
        ) from err
    if len(content) != entry.size_bytes:
        raise IntegrityError(f"{path} has {len(content)} bytes; expected {entry.size_bytes}: copy it again")
    if (found := _sha256(content)) != entry.sha256:
        raise IntegrityError(f"{path} has SHA-256 {found}; expected {entry.sha256}: it was changed after publishing")
    return content


def _save_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    return save_tensors({key: value.detach().cpu().contiguous() for key, value in tensors.items()})


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
