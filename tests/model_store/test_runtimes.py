import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from model_store import images
from model_store.bundle import MANIFEST, Bundle, BundleDraft, load_bundle, read_manifest
from model_store.errors import GoldenMismatchError, IntegrityError, ManifestError, RuntimeUnavailableError
from model_store.manifest import Execution, Manifest, PreprocessSpec, QuantisedGraph, TorchvisionSpec
from model_store.networks import NetworkOutput, build_network
from model_store.predictor import Scorer
from model_store.runtimes import (
    LowPrecisionOpenVinoRuntime,
    OpenVinoRuntime,
    RunnableNetwork,
    RuntimeOptions,
    TorchRuntime,
    run_accepted,
)
from model_store.runtimes.openvino_cache import OpenVinoCache
from model_store.runtimes.openvino_ir import (
    OpenVinoIr,
    convert,
    features_only,
    import_openvino,
    openvino_is_installed,
    read_model,
    serialised,
)
from model_store.scores import Head
from model_store.store import SHIPPED, BundleRef, Store

pytestmark = pytest.mark.skipif(not openvino_is_installed(), reason="openvino is not installed")

CPU = torch.device("cpu")
AGREEMENT = 1e-3  # energies of the shipped bundle are around 40; float32 sums in another order


@pytest.fixture(scope="module")
def folder(draft: BundleDraft, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Store(tmp_path_factory.mktemp("store")).publish(draft)


@pytest.fixture(scope="module")
def ir(network: nn.Module, preprocess: PreprocessSpec) -> OpenVinoIr:
    return convert(network, preprocess)


@pytest.fixture
def cache_dir(folder: Path, ir: OpenVinoIr, tmp_path: Path) -> Path:
    """A directory that holds the bundle's conversion."""
    _entry(folder, tmp_path / "cache").write(ir)
    return tmp_path / "cache"


def _entry(folder: Path, cache_dir: Path) -> OpenVinoCache:
    return OpenVinoCache(cache_dir, hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest())


def _identity(path: Path) -> tuple[int, int]:
    return path.stat().st_ino, path.stat().st_mtime_ns


def _runtime_name(bundle: Bundle) -> str:
    return bundle.predictor.scorer.runtime.name


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# What two processes of their own do at the same time, neither with a cache to start from: load the shipped bundle on
# OpenVINO, write down whatever they do with sockets, and print what they found.
WORKER = """
import json, os, sys
touched = []
sys.addaudithook(lambda event, args: touched.append(event) if event.startswith("socket.") else None)
from pathlib import Path
import numpy as np
from model_store import cli
from model_store.bundle import load_bundle
load_bundle(Path(sys.argv[1]))
early = [name for name in sys.modules if name.startswith("openvino")]
bundle = load_bundle(Path(sys.argv[1]), runtime="openvino", cache_dir=Path(sys.argv[2]), threads=1)
energy = bundle.predictor.predict(np.zeros((2, 32, 32, 3), np.uint8)).negative_energy
import concurrent.futures.thread
concurrent.futures.thread._python_exit()  # what was handed to a pool has run
left = os.listdir(Path.home())
print(json.dumps({"energy": energy.tolist(), "early": early, "touched": touched, "left": left}))
"""


@dataclass(frozen=True)
class Outcomes:
    found: list[dict]
    cache_dir: Path


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """What the two processes have found."""
    root = tmp_path_factory.mktemp("workers")
    not_ci = {key: value for key, value in os.environ.items() if key not in ("CI", "TF_BUILD", "JENKINS_URL")}
    processes = []
    for home in (root / "home1", root / "home2"):
        home.mkdir()
        processes.append(
            subprocess.Popen(
                [sys.executable, "-W", "error", "-c", WORKER, SHIPPED / "cifar10" / "1", root / "cache"],
                env=not_ci | {"HOME": str(home), "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    try:
        outputs = [process.communicate(timeout=200)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [process.returncode for process in processes] == [0, 0]
    return Outcomes([json.loads(output) for output in outputs], root / "cache")


@pytest.fixture(scope="module")
def on_openvino(ir: OpenVinoIr, preprocess: PreprocessSpec) -> Scorer:
    return Scorer(OpenVinoRuntime(ir), preprocess, temperature=1.0)


@pytest.fixture(scope="module")
def alone(scorer: Scorer, test_images: np.ndarray) -> np.ndarray:
    return np.concatenate([scorer.score(image[None]).negative_energy for image in test_images])


@settings(max_examples=40, deadline=None)
@given(index=st.lists(st.integers(0, 99), min_size=1, max_size=64))
def test_openvino_gives_an_image_its_own_answer_in_any_batch(on_openvino, test_images, alone, index: list[int]) -> None:
    np.testing.assert_allclose(on_openvino.score(test_images[index]).negative_energy, alone[index], atol=1e-4)


def test_openvino_results_survive_later_batches(on_openvino: Scorer, test_images: np.ndarray, alone) -> None:
    runtime = on_openvino.runtime
    tickets = [runtime.start(test_images[at : at + 10]) for at in (0, 10, 20)]
    first = runtime.finish(tickets[0])
    kept = NetworkOutput(first.logits.clone(), first.features.clone())
    second, third = runtime.finish(tickets[1]), runtime.finish(tickets[2])
    for size in (10, 1, 64):
        runtime.finish(runtime.start(test_images[-size:]))
    assert torch.equal(first.logits, kept.logits)
    assert torch.equal(first.features, kept.features)
    assert first.logits.dtype == first.features.dtype == torch.float32
    energies = [on_openvino.from_output(output).negative_energy for output in (first, second, third)]
    np.testing.assert_allclose(np.concatenate(energies), alone[:30], atol=1e-4)


def test_openvino_takes_pixels_that_are_read_only_or_a_view(on_openvino, test_images, alone) -> None:
    locked = test_images[::-1][:5]
    locked.flags.writeable = False
    np.testing.assert_allclose(on_openvino.score(locked).negative_energy, alone[::-1][:5], atol=1e-4)


def test_openvino_runs_a_torchvision_network(preprocess: PreprocessSpec, test_images: np.ndarray) -> None:
    torch.manual_seed(0)
    network = build_network(TorchvisionSpec(name="resnet18", num_classes=10)).eval()
    found = OpenVinoRuntime(convert(network, preprocess))
    expected = TorchRuntime(network, preprocess, device=CPU)
    for batch in (test_images[:1], test_images[:5]):
        got, wanted = found.finish(found.start(batch)), expected.finish(expected.start(batch))
        torch.testing.assert_close(got.logits, wanted.logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(got.features, wanted.features, atol=1e-4, rtol=0)


def test_torchvision_network_of_another_size_of_image_is_refused(
    preprocess: PreprocessSpec, test_images: np.ndarray
) -> None:
    network = build_network(TorchvisionSpec(name="vit_b_32", num_classes=10))
    source = RunnableNetwork(network, preprocess, "float32", "0" * 64)
    with pytest.raises(RuntimeUnavailableError, match=r"golden images: vit_b_32 takes no images of 32 x 32 pixels"):
        run_accepted(source, RuntimeOptions("torch-eager", CPU), lambda runtime: runtime.start(test_images[:1]))


def test_conversion_is_cached_and_read_again(folder: Path, tmp_path: Path) -> None:
    load_bundle(folder, runtime="openvino", cache_dir=tmp_path / "new" / "cache")
    (entry,) = (tmp_path / "new" / "cache").iterdir()
    assert entry.stat().st_mode & 0o777 == 0o644
    before = _identity(entry)
    load_bundle(folder, runtime="openvino", cache_dir=tmp_path / "new" / "cache")
    assert _identity(entry) == before  # converting writes a new file


def _truncate(entry: OpenVinoCache) -> None:
    entry.path.write_bytes(entry.path.read_bytes()[:-1000])


def _empty(entry: OpenVinoCache) -> None:
    entry.path.write_bytes(b"")


def _flip_a_bit(entry: OpenVinoCache) -> None:
    content = bytearray(entry.path.read_bytes())
    content[-1] ^= 1
    entry.path.write_bytes(content)


def _replace_by_no_graph(entry: OpenVinoCache) -> None:
    entry.write(OpenVinoIr(b"<net/>", b"\0"))


def _replace_by_another_network(entry: OpenVinoCache) -> None:
    entry.write(convert(_Linear(), read_manifest(SHIPPED / "cifar10" / "1").preprocess))


class _Linear(nn.Module):
    """Another network of ten classes, quick to convert."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 10)

    def forward(self, x: Tensor) -> NetworkOutput:
        features = x.mean(dim=(2, 3))
        return NetworkOutput(self.head(features), features)


@pytest.mark.parametrize("damage", [_truncate, _flip_a_bit, _empty])
def test_damaged_conversion_is_not_read(folder: Path, cache_dir: Path, ir: OpenVinoIr, damage, caplog) -> None:
    entry = _entry(folder, cache_dir)
    assert entry.read() == ir
    assert _warnings(caplog) == []
    damage(entry)
    assert entry.read() is None
    assert str(entry.path) in _warnings(caplog)[0]


@pytest.mark.parametrize("damage", [_truncate, _replace_by_no_graph, _replace_by_another_network])
def test_damaged_conversion_is_made_again(
    folder: Path, cache_dir: Path, ir: OpenVinoIr, damage: Callable[[OpenVinoCache], None], caplog
) -> None:
    entry = _entry(folder, cache_dir)
    damage(entry)
    assert entry.read() != ir
    caplog.clear()
    load_bundle(folder, runtime="openvino", cache_dir=cache_dir)
    (warning,) = _warnings(caplog)
    assert "is made again" in warning
    assert str(entry.path) in warning
    healed = _identity(entry.path)
    load_bundle(folder, runtime="openvino", cache_dir=cache_dir)
    assert _identity(entry.path) == healed
    assert len(_warnings(caplog)) == 1
    assert list(cache_dir.iterdir()) == [entry.path]


def test_cache_that_cannot_be_written_only_warns(folder: Path, tmp_path: Path, caplog) -> None:
    (tmp_path / "file").touch()
    bundle = load_bundle(folder, runtime="openvino", cache_dir=tmp_path / "file")
    assert _runtime_name(bundle) == "openvino-float32-cpu"
    assert any("cannot be written" in warning for warning in _warnings(caplog))


def test_conversion_of_another_bundle_is_not_taken(cache_dir: Path) -> None:
    assert OpenVinoCache(cache_dir, "0" * 64).read() is None


def test_auto_is_openvino_on_the_cpu(folder: Path, cache_dir: Path, caplog) -> None:
    bundle = load_bundle(folder, runtime="auto", device=CPU, cache_dir=cache_dir)
    assert _runtime_name(bundle) == "openvino-float32-cpu"
    assert _warnings(caplog) == []


@pytest.fixture
def torch_only(draft: BundleDraft, scorer: Scorer, on_openvino: Scorer, test_images: np.ndarray, store: Store) -> Path:
    """A bundle whose one golden image allows half of what OpenVINO's energy differs by from PyTorch's."""

    def energies(by: Scorer) -> np.ndarray:
        return np.concatenate([by.score(image[None]).negative_energy for image in test_images])

    reference = energies(scorer)
    difference = np.abs(energies(on_openvino) - reference)
    row = int(difference.argmax())
    assert difference[row] > 0
    golden = draft.manifest.golden[0].model_copy(
        update={
            "negative_energy": float(reference[row]),
            "class_id": int(scorer.score(test_images[row][None]).class_id[0]),
        }
    )
    execution = Execution(tolerance=float(difference[row]) / 2)
    manifest = draft.manifest.model_copy(update={"golden": (golden,), "execution": execution})
    return store.publish(replace(draft, manifest=manifest, golden={golden.file: _png(test_images[row])}))


def _png(pixels: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def test_auto_falls_back_and_says_why_where_golden_images_disagree(torch_only: Path, tmp_path: Path, caplog) -> None:
    bundle = load_bundle(torch_only, runtime="auto", device=CPU, cache_dir=tmp_path / "cache")
    assert _runtime_name(bundle) == "torch-eager-float32-cpu"
    (warning,) = _warnings(caplog)
    assert "passed over" in warning
    assert "golden/0.png" in warning
    assert not (tmp_path / "cache").exists()  # what was not accepted is not kept
    with pytest.raises(GoldenMismatchError, match=r"golden/0\.png"):
        load_bundle(torch_only, runtime="openvino")


def _computes_bfloat16() -> bool:
    return "BF16" in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.fixture
def bfloat16_folder(draft: BundleDraft, store: Store) -> Path:
    execution = Execution(precision="bfloat16", tolerance=1)
    return store.publish(replace(draft, manifest=draft.manifest.model_copy(update={"execution": execution})))


def test_auto_runs_bfloat16_on_openvino_where_the_processor_computes_it(
    bfloat16_folder: Path, ir: OpenVinoIr, tmp_path: Path, caplog
) -> None:
    capable = _computes_bfloat16()
    _entry(bfloat16_folder, tmp_path).write(ir)
    found = _runtime_name(load_bundle(bfloat16_folder, runtime="auto", device=CPU, cache_dir=tmp_path))
    assert found == ("openvino-bfloat16-cpu" if capable else "torch-eager-bfloat16-cpu")
    assert len(_warnings(caplog)) == (not capable)
    assert _runtime_name(load_bundle(bfloat16_folder, device=CPU)) == "torch-eager-bfloat16-cpu"


@pytest.fixture(scope="module")
def low_precision(ir: OpenVinoIr, network: nn.Module) -> Callable[[], LowPrecisionOpenVinoRuntime]:
    return lambda: LowPrecisionOpenVinoRuntime(ir, Head.of(network), precision="bfloat16", threads=1)


def test_bfloat16_body_ends_in_a_float32_head(low_precision, network: nn.Module, scorer: Scorer, test_images) -> None:
    """The head's own rounding would move logits by some 1e-3 of them, and a rounded one has no low bits."""
    if not _computes_bfloat16():
        with pytest.raises(RuntimeUnavailableError, match="would compute in f32 on this processor"):
            low_precision()
        return
    runtime = low_precision()
    logits, features = runtime.finish(runtime.start(test_images))
    exact = features.double() @ network.head.weight.detach().double().T + network.head.bias.detach().double()
    torch.testing.assert_close(logits.double(), exact, atol=1e-5, rtol=1e-6)
    for tensor in (logits, features):
        assert tensor.dtype == torch.float32
        nonzero = tensor[tensor != 0]
        assert (nonzero == nonzero.bfloat16().float()).float().mean() < 0.02
    reference = scorer.score(test_images)
    difference = (features - reference.features).abs().max() / reference.features.abs().max()
    assert 2**-13 < difference < 2**-4  # bfloat16 has 8 bits: other values, and not altogether others


def test_float32_is_never_computed_in_bfloat16(ir: OpenVinoIr) -> None:
    """Where that is what the processor would do, the runtime is refused, which `auto` passes over."""
    compiled = OpenVinoRuntime(ir)._graph.compiled
    assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"


def test_only_openvino_runs_int8(network: nn.Module, preprocess: PreprocessSpec, ir: OpenVinoIr) -> None:
    source = RunnableNetwork(network, preprocess, "int8", "0" * 64, ir)
    for choice in ("torch-eager", "torch-compiled"):
        with pytest.raises(RuntimeUnavailableError, match=f"precision is int8, which openvino alone runs; {choice}"):
            run_accepted(source, RuntimeOptions(choice, CPU), lambda runtime: runtime)


@pytest.fixture(scope="module")
def int8_draft(draft: BundleDraft, ir: OpenVinoIr) -> BundleDraft:
    """A bundle that says it is int8; that its graph's weights are float32 makes no difference to how it is run."""
    graph = QuantisedGraph(structure="openvino/features.xml", weights="openvino/features.bin", images=1)
    execution = Execution(precision="int8", quantised=graph, tolerance=0.001)
    manifest = draft.manifest.model_copy(update={"execution": execution})
    return replace(draft, manifest=manifest, quantised=serialised(features_only(read_model(ir))))


def test_int8_runs_its_own_graph_whatever_the_default(
    int8_draft: BundleDraft, store: Store, scorer: Scorer, test_images: np.ndarray, tmp_path: Path
) -> None:
    folder = store.publish(int8_draft)
    expected = scorer.score(test_images[:9])
    for runtime in (None, "auto", "openvino"):
        bundle = load_bundle(folder, runtime=runtime, cache_dir=tmp_path / "cache")
        assert _runtime_name(bundle) == "openvino-int8-cpu"
        found = bundle.predictor.scorer.score(test_images[:9])
        torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=0)
    assert not (tmp_path / "cache").exists()  # nothing was converted
    for runtime in ("torch-eager", "torch-compiled"):
        with pytest.raises(RuntimeUnavailableError, match="precision is int8, which openvino alone runs"):
            load_bundle(folder, runtime=runtime, device=CPU)
    with pytest.raises(RuntimeUnavailableError, match="device is cuda:0; the openvino runtime runs on the cpu"):
        load_bundle(folder, runtime="auto", device=torch.device("cuda:0"))


def test_int8_graph_is_held_to_its_hash_and_must_be_there(int8_draft: BundleDraft, store: Store) -> None:
    folder = store.publish(int8_draft)
    graph = folder / "openvino" / "features.bin"
    content = bytearray(graph.read_bytes())
    content[100] ^= 1
    graph.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"openvino/features.bin has SHA-256"):
        load_bundle(folder)
    with pytest.raises(ManifestError, match=r"files: openvino/features.xml is missing"):
        store.publish(replace(int8_draft, quantised=None))


def test_int8_graph_that_is_none_is_refused(int8_draft: BundleDraft, store: Store) -> None:
    with pytest.raises(RuntimeUnavailableError, match="openvino cannot read the converted network"):
        store.publish(replace(int8_draft, quantised=OpenVinoIr(b"<net/>", b"\0")))


def test_only_int8_has_a_graph_and_older_schemas_have_none(int8_draft: BundleDraft) -> None:
    graph = int8_draft.manifest.execution.quantised
    with pytest.raises(ValueError, match="precision is 'int8', quantised is not given; int8 needs a graph"):
        Execution(precision="int8", tolerance=1)
    with pytest.raises(ValueError, match="precision is 'bfloat16', quantised is given"):
        Execution(precision="bfloat16", quantised=graph, tolerance=1)
    fields = int8_draft.manifest.model_dump() | {"schema_version": 2}
    with pytest.raises(ValueError, match="schema_version 2 knows neither int8 nor optimisation; 3 does"):
        Manifest.model_validate(fields)


def test_cuda_graphs_are_refused_on_the_cpu(folder: Path) -> None:
    with pytest.raises(RuntimeUnavailableError, match="device is cpu; torch-graphs runs on CUDA alone"):
        load_bundle(folder, runtime="torch-graphs", device=CPU)


def test_openvino_refuses_another_device(folder: Path) -> None:
    with pytest.raises(RuntimeUnavailableError, match="device is cuda:0; the openvino runtime runs on the cpu"):
        load_bundle(folder, runtime="openvino", device=torch.device("cuda:0"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("runtime", ["auto", "torch-eager", "torch-compiled"])
def test_cuda_that_is_not_there_is_refused(folder: Path, runtime) -> None:
    with pytest.raises(RuntimeUnavailableError, match="there is no CUDA device"):
        load_bundle(folder, runtime=runtime, device=torch.device("cuda"))


def test_unknown_runtime_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="'onnx'; expected auto"):
        load_bundle(folder, runtime="onnx")  # type: ignore[arg-type]


class _Branching(nn.Module):
    def forward(self, x: Tensor) -> NetworkOutput:
        return NetworkOutput(x, x) if x.sum() > 0 else NetworkOutput(-x, x)


def test_network_that_cannot_be_exported_is_refused_and_logging_left_alone(preprocess: PreprocessSpec) -> None:
    root = logging.getLogger()
    before = root.level, list(root.filters), list(root.handlers)
    with pytest.raises(RuntimeUnavailableError, match="_Branching cannot be converted for openvino"):
        convert(_Branching(), preprocess)
    assert (root.level, root.filters, root.handlers) == before


NO_OPENVINO = """
import logging, sys
sys.modules["openvino"] = sys.modules["torchvision"] = None
logging.basicConfig(stream=sys.stdout)
from pathlib import Path
from model_store import bundle, cli, errors
loaded = bundle.load_bundle(Path(sys.argv[1]), runtime="auto", device=bundle.torch.device("cpu"))
print(loaded.predictor.scorer.runtime.name)
try:
    bundle.load_bundle(Path(sys.argv[1]), runtime="openvino")
except errors.RuntimeUnavailableError as err:
    print(err)
"""


def test_bundles_run_where_openvino_and_torchvision_are_not_installed(folder: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", NO_OPENVINO, folder], check=True, capture_output=True, text=True
    )
    first, second = found.stdout.splitlines()  # and no warning: there is nothing to pass over
    assert first == "torch-eager-float32-cpu"
    assert "openvino cannot be imported" in second
    assert "pip install 'energy-ood[cpu]'" in second


@pytest.fixture
def torch_threads() -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield 1
    torch.set_num_threads(before)


@pytest.mark.parametrize(("given", "computed_by"), [(None, 1), (3, 3)])
def test_torch_threads_are_a_runtime_s_own(
    folder: Path, torch_threads: int, given: int | None, computed_by: int
) -> None:
    runtime = load_bundle(folder, device=CPU, threads=given).predictor.scorer.runtime
    assert isinstance(runtime, TorchRuntime)
    found = []
    runtime.forward.register_forward_pre_hook(lambda *_: found.append(torch.get_num_threads()))
    runtime.start(np.zeros((1, 32, 32, 3), np.uint8))
    assert (found, torch.get_num_threads()) == ([computed_by], torch_threads)


def test_openvino_threads_are_its_own(ir: OpenVinoIr, torch_threads: int) -> None:
    runtime = OpenVinoRuntime(ir, threads=1)
    assert runtime._graph.compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert torch.get_num_threads() == torch_threads


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_that_cannot_be_are_refused(folder: Path, threads: int) -> None:
    with pytest.raises(ValueError, match=f"threads is {threads}; expected 1 or more"):
        load_bundle(folder, threads=threads)


def test_on_the_cpu_openvino_alone_computes_beside_its_caller(scorer: Scorer, on_openvino: Scorer) -> None:
    assert (scorer.runtime.in_flight, on_openvino.runtime.in_flight) == (0, 1)


def test_openvino_finishes_several_batches_in_their_order(
    scorer: Scorer, on_openvino: Scorer, test_images: np.ndarray
) -> None:
    """What a batch left stays, whatever comes after."""
    pieces = [test_images[:3], test_images[3:4], test_images[4:9]]
    tickets = [on_openvino.start(piece) for piece in pieces]
    found = [on_openvino.finish(ticket) for ticket in tickets]
    again = on_openvino.finish(on_openvino.start(test_images[9:12]))
    for scores, piece in zip([*found, again], [*pieces, test_images[9:12]], strict=True):
        torch.testing.assert_close(scores.logits, scorer.score(piece).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_two_processes_that_convert_at_once_leave_one_whole_entry(outcomes: Outcomes, caplog) -> None:
    (entry,) = outcomes.cache_dir.iterdir()
    before = _identity(entry)
    with caplog.at_level(logging.WARNING):
        bundle = load_bundle(SHIPPED / "cifar10" / "1", runtime="openvino", cache_dir=outcomes.cache_dir)
    expected = bundle.predictor.predict(np.zeros((2, 32, 32, 3), np.uint8)).negative_energy
    for outcome in outcomes.found:
        np.testing.assert_allclose(outcome["energy"], expected, atol=AGREEMENT)
    assert _identity(entry) == before
    assert _warnings(caplog) == []


@pytest.mark.slow
def test_conversion_touches_no_network_and_no_home(outcomes: Outcomes) -> None:
    assert [(outcome["touched"], outcome["left"]) for outcome in outcomes.found] == [([], []), ([], [])]


def test_openvino_agrees_with_the_reference_on_real_images(openvino_cache: Path, image_sets: Path) -> None:
    shipped = Store(SHIPPED).resolve(BundleRef("cifar10"))
    reference = load_bundle(shipped, device=CPU)
    files = sorted(path for path in image_sets.rglob("*") if path.suffix in (".png", ".jpg"))
    pixels = np.stack([images.load(file.read_bytes(), reference.manifest.preprocess) for file in files])
    assert len(pixels) >= 200
    expected = reference.predictor.predict(pixels)
    bundle = load_bundle(shipped, runtime="openvino", cache_dir=openvino_cache)
    found = bundle.predictor.predict(pixels)
    np.testing.assert_allclose(found.negative_energy, expected.negative_energy, atol=AGREEMENT)
    np.testing.assert_array_equal(found.class_id, expected.class_id)
    decided = np.abs(expected.negative_energy - reference.predictor.threshold) > AGREEMENT
    np.testing.assert_array_equal(found.is_ood[decided], expected.is_ood[decided])
    assert decided.mean() > 0.99
    assert 5 < expected.is_ood.sum() < 100


@pytest.mark.slow
def test_openvino_is_imported_only_for_those_who_choose_it(outcomes: Outcomes) -> None:
    assert [outcome["early"] for outcome in outcomes.found] == [[], []]
