"""The serving benchmark, small: every kind of contender is really served and loaded, and what fails is told."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest

from benchmarks import engine, report, serving
from benchmarks.bundles import PRECISIONS, publish_wrn_40_2, reference
from benchmarks.contenders import (
    EAGER,
    OPENVINO,
    PEERS,
    PEERS_PYTHON,
    Contender,
    cpu_contenders,
    cuda_contenders,
    our_server,
    peer,
)
from benchmarks.http_requests import sample_images
from benchmarks.processor import ProcessorTimes, session_memory_mib
from benchmarks.results import Results, read_results
from benchmarks.run import SMALL, Run
from benchmarks.servers import environment, free_port, running
from benchmarks.soak import soak
from benchmarks.targets import FULL, MODERATE, OVERLOAD
from model_store import images
from model_store.bundle import load_bundle
from model_store.store import Store


class Clock:
    """Time that passes only where it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_engine_speed_is_images_over_time_by_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that takes 0.1 s a batch and 0.05 s an image: 6.7 images/s of one, 13.3 of four."""
    clock = Clock()
    monkeypatch.setattr("benchmarks.engine.time.perf_counter", clock)

    class Predictor:
        class scorer:  # noqa: N801
            class runtime:  # noqa: N801
                name = "slow"

        def predict(self, images: np.ndarray) -> None:
            clock.now += 0.1 + 0.05 * len(images)

    found = engine.measure(Predictor(), [4], seconds=2)
    assert found == engine.Speed("slow", {1: 6.7, 4: 13.3}, 150.0)


def test_every_contender_has_a_name_and_a_request_of_its_own_form() -> None:
    contenders = cpu_contenders(sample_images())
    names = [contender.name for contender in contenders]
    assert len(set(names)) == len(names) == 11
    assert names[:2] == ["energy-ood, OpenVINO float32", "energy-ood, OpenVINO bfloat16"]
    for contender in contenders:
        is_json = contender.entrant.server == "LitServe"
        assert contender.probe(3).content_type == ("application/json" if is_json else "image/jpeg")
        assert (contender.probe(3).body == contender.files[3]) is not is_json
        assert len(contender.single) == len(contender.files) == 100
        assert contender.fullest.connections == 64
        asked = [load.connections for load in contender.loads if load.images_per_request == 1]
        assert asked == ([1, 16, 64] if contender.entrant.is_ours or contender.kind is EAGER else [64])


def test_what_is_measured_finds_this_folder_and_what_the_shell_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OOD_PORT", "1")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    assert "OOD_PORT" not in environment()
    first, *others = environment()["PYTHONPATH"].split(os.pathsep)
    assert Path(first, "benchmarks", "servers.py").exists()
    assert others == ["/elsewhere"]
    monkeypatch.delenv("PYTHONPATH")
    assert environment()["PYTHONPATH"] == first


def test_a_gpu_has_one_and_sixteen_http_workers_and_large_arrays() -> None:
    contenders = cuda_contenders(sample_images())
    assert [contender.name for contender in contenders] == [
        "energy-ood, CUDA float32, 1 HTTP worker",
        "energy-ood, CUDA float32, 16 HTTP workers",
        "energy-ood, CUDA bfloat16, 1 HTTP worker",
        "energy-ood, CUDA bfloat16, 16 HTTP workers",
    ]
    commands = [contender.command(1, Path("store"), Path("cache")) for contender in contenders]
    assert ["--workers" in command for command in commands] == [False, True, False, True]
    array = contenders[0].loads[-1].requests[0].partition(b"\r\n\r\n")[2]
    assert array[-256 * 32 * 32 * 3 :][:3072] == sample_images()[0].tobytes()


def test_contenders_are_chosen_by_parts_of_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    found = serving.chosen("cpu", ["energy-ood, OpenVINO f"], small=True)
    assert [contender.name for contender in found] == ["energy-ood, OpenVINO float32"]
    with pytest.raises(serving.UnfitError, match="--only absent is in no contender's name: energy-ood, OpenVINO"):
        serving.chosen("cpu", ["absent"], small=True)


def test_a_server_s_processes_are_counted_and_ended_with_it() -> None:
    """It starts a child that ignores SIGTERM; the child's work and memory are the server's, and it does not stay."""
    child = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); kept = bytes(range(256)) * 200_000; "
        "total = sum(range(20_000_000)); print(total, flush=True); signal.pause()"
    )
    code = (
        "import subprocess, sys\nfrom http.server import BaseHTTPRequestHandler, HTTPServer\n"
        "child = subprocess.Popen([sys.executable, '-c', sys.argv[2]], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "class Handler(BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200); self.end_headers(); self.wfile.write(str(child.pid).encode())\n"
        "HTTPServer(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()\n"
    )
    port = free_port()
    with running([sys.executable, "-c", code, str(port), child], port) as server:
        pid = int(httpx.get(f"{server.url}/readyz").text)
        assert ProcessorTimes.now(server.pid).server_s > ProcessorTimes.now(pid).server_s == 0
        assert server.memory_mib() > 50
        assert session_memory_mib(pid) == 0
    assert _has_ended(pid)


def _has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except FileNotFoundError:
        return True


@pytest.fixture(scope="module")
def tools() -> None:
    if shutil.which("wrk") is None or not PEERS_PYTHON.exists():
        pytest.skip("wrk or the peers are not installed; `make test-slow` installs the peers")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return publish_wrn_40_2(tmp_path_factory.mktemp("wrn-40-2"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def contenders() -> list[Contender]:
    """Ours, every peer once, one with our model inside; one whose command fails, one that sees other images."""
    pixels = sample_images()
    peers = [peer(server, OPENVINO if server == "mosec" else EAGER, pixels) for server in PEERS]
    ours = our_server(OPENVINO, pixels)
    broken = replace(ours, entrant=ours.entrant.model_copy(update={"name": "broken"}), options=("--absent", "1"))
    plain = peers[0]
    mistaken = replace(plain, entrant=plain.entrant.model_copy(update={"name": "mistaken"}), files=plain.files[::-1])
    return [ours, *(replace(each, candidates=each.candidates[:1]) for each in peers), broken, mistaken]


@pytest.fixture(scope="module")
def results(tools: None, contenders: list[Contender], store: Store, cache: Path) -> Results:
    run = Run(SMALL, contenders, sample_images(), store, cache, print)
    run.prepare()
    run.round(1)
    return run.results({"command": "test"})


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_everyone_answers_every_request(results: Results) -> None:
    assert [turn.entrant for turn in results.turns] == [entrant.name for entrant in results.entrants[:4]]
    for turn in results.turns:
        assert turn.start.memory_mib > 100
        assert FULL in turn.closed
        for load in turn.closed.values():
            assert load.failures == {}
            assert (load.images_per_s > 0) is (load.answered > 0)  # on a busy machine a second may be too short
            assert 0 <= load.p50_ms <= load.p90_ms <= load.p99_ms


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_open_loops_of_ours_add_up(results: Results) -> None:
    (ours,) = [turn for turn in results.turns if turn.open]
    assert ours.open.keys() == {MODERATE, OVERLOAD}
    for load in ours.open.values():
        assert load.failures == {}
        assert load.sent == load.answered + load.rejected
        assert 0 <= load.goodput_per_s * load.seconds <= load.answered
    capacity = ours.closed[FULL].images_per_s
    assert ours.open[OVERLOAD].offered_per_s == pytest.approx(3 * capacity, abs=0.1)
    assert ours.open[MODERATE].offered_per_s == pytest.approx(0.7 * capacity, abs=0.1)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_fails_is_told_and_the_run_goes_on(results: Results) -> None:
    failed = {failure.entrant: failure for failure in results.failures}
    assert failed.keys() == {"broken", "mistaken"}
    assert "unrecognized arguments: --absent 1" in failed["broken"].error
    assert failed["broken"].round == 0
    assert "expected" in failed["mistaken"].error
    assert results.engines[0].runtime == "openvino-float32-cpu"
    assert "unrecognized arguments: --absent 1" in report.report(results)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_command_writes_results_and_report(tools: None, tmp_path: Path) -> None:
    out, text = tmp_path / "results.json", tmp_path / "RESULTS.md"
    arguments = ["--small", "--only", "plain FastAPI, eager", "--out", str(out), "--report", str(text)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.serving", *arguments], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    found = read_results(out)
    assert [turn.entrant for turn in found.turns] == ["plain FastAPI, eager torch float32"]
    assert found.conditions["peers"]["mosec"]
    assert "benchmarks.serving --small" in found.conditions["command"]
    assert text.read_text() == report.report(found)
    assert json.loads(out.read_text())["conditions"]["wrk"]


@pytest.mark.slow
def test_bundles_are_real_and_published_once(store: Store) -> None:
    manifests = [store.resolve(reference(precision)) / "manifest.json" for precision in PRECISIONS]
    written = [path.stat().st_mtime_ns for path in manifests]
    assert [json.loads(path.read_text())["execution"]["precision"] for path in manifests] == list(PRECISIONS)
    publish_wrn_40_2(store.root)
    assert [path.stat().st_mtime_ns for path in manifests] == written


@pytest.mark.slow
def test_golden_images_are_of_a_class_that_rounding_does_not_change(store: Store) -> None:
    """In bfloat16 logits of one image differ by up to 0.8 between eager PyTorch and OpenVINO."""
    bundle = load_bundle(store.resolve(reference("bfloat16")), runtime="torch-eager")
    files = [(bundle.folder / golden.file).read_bytes() for golden in bundle.manifest.golden]
    pixels = np.stack([images.load(file, bundle.manifest.preprocess) for file in files])
    first, second = bundle.predictor.scorer.score(pixels).logits.topk(2).values.unbind(1)
    assert (first - second).min() > 1.6


@pytest.mark.slow
def test_soak_watches_memory_to_the_last_request(tools: None, store: Store, cache: Path) -> None:
    ours, port = our_server(OPENVINO, sample_images()), free_port()
    with running(ours.command(port, store.root, cache), port) as server:
        found = soak(server, ours.single, answers=50, step_s=1)
    answered = [count for count, _ in found.memory_mib]
    assert answered[0] == 0
    assert answered == sorted(answered)
    assert answered[-2] < 50 <= answered[-1]
    assert found.failures == {}
    assert all(mib > 100 for _, mib in found.memory_mib)
