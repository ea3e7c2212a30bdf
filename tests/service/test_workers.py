"""A server of several processes: what it answers, what it counts, and what becomes of it when some of them die."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event, Lock
from time import monotonic
from typing import Any

import httpx
import pytest
from live import BUNDLE, MODEL, SERVE, VERSION, Process, Running, samples, wait_until

from service.errors import StartError
from service.listener import bind
from service.processes.supervisor import supervise
from service.settings import Settings

pytestmark = pytest.mark.slow
Serve = Callable[..., AbstractContextManager[Process]]
Outcome = int | str
"""The status of an answer, `engine_died` for its 503, or the name of what the client raised instead."""

FAULTY = """
import sys
import tempfile
if "service.processes.engine" in sys.orig_argv:
    import threading
    import service.models
    from model_store.bundle import load_bundle

    def load(*args, **kwargs):
        bundle = load_bundle(*args, **kwargs)
        runtime = bundle.predictor.scorer.runtime
        start, finish = runtime.start, runtime.finish
        damaged = []

        def faulty_start(images):
            plain = {int(image.min()) for image in images if image.min() == image.max()}
            if 255 in plain:
                raise RuntimeError("the device is gone")
            if 254 in plain:
                threading.Event().wait()
            ticket = start(images)
            if 253 in plain:
                damaged.append(id(ticket))
            return ticket

        def faulty_finish(ticket):
            output = finish(ticket)
            if id(ticket) in damaged:
                return type(output)(*(tensor * float("nan") for tensor in output))
            return output

        runtime.start, runtime.finish = faulty_start, faulty_finish
        return bundle

    service.models.load_bundle = load
"""
"""The runtime of the engine's process raises at a white image, hangs at a nearly white one, spoils a less white one."""


class Load:
    """Clients that post one image after another, each on a new connection, until they are stopped."""

    def __init__(self, url: str, images: list[bytes], clients: int = 8) -> None:
        self.outcomes: Counter[Outcome] = Counter()
        self.clients = clients
        self._url = url
        self._images = images
        self._stop = Event()
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(clients)
        self._running = [self._pool.submit(self._post_on, client) for client in range(clients)]

    def wait_for(self, more: int) -> None:
        """Wait until so many more have been answered well."""
        aim = self.outcomes[200] + more
        wait_until(lambda: self.outcomes[200] >= aim, 60)

    def finish(self) -> Counter[Outcome]:
        """Stop, and return all outcomes."""
        self._stop.set()
        for client in self._running:
            client.result(60)
        self._pool.shutdown()
        return self.outcomes

    def _post_on(self, client: int) -> None:
        at = client
        while not self._stop.is_set():
            outcome = outcome_of(self._url, self._images[at % len(self._images)])
            with self._lock:
                self.outcomes[outcome] += 1
            if outcome == "ConnectError":
                return
            if outcome == "engine_died":  # as Retry-After asks, though sooner
                self._stop.wait(0.2)
            at += 1


def outcome_of(url: str, image: bytes) -> Outcome:
    try:
        reply = httpx.post(f"{url}/predict", content=image, timeout=60, verify=False)  # no TLS to prepare
    except httpx.TransportError as err:
        return type(err).__name__
    if reply.status_code == 503 and reply.json()["error"]["code"] == "engine_died":
        return "engine_died"
    return reply.status_code


def tell(counts: str) -> None:
    """Print what a test ran."""
    print(f"\n{counts}")  # noqa: T201


def pid_of(server: Process, child: str) -> int:
    """Return the process that is in a place now, by the log."""
    return int([line["pid"] for line in logged(server, "process ready") if line["child"] == child][-1])


def logged(server: Process, message: str) -> list[dict[str, Any]]:
    lines = [line for line in server.log.read_text().splitlines() if line.startswith("{") and line.endswith("}")]
    return [found for found in map(json.loads, lines) if found["message"] == message]


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=10).status_code == 200
    except httpx.TransportError:
        return False


def recovered(server: Process, restarts: dict[str, int]) -> bool:
    """Whether all processes are there again, having been replaced so often."""
    try:
        found = samples(server.url)
    except httpx.HTTPError:
        return False
    seen = {kind: int(found[f'ood_process_restarts_total{{process="{kind}"}}']) for kind in ("engine", "worker")}
    return seen == restarts and found["ood_http_workers"] == 2 and ready(server.url)


@contextmanager
def faulty(serve: Serve, tmp_path: Path, *flags: str) -> Iterator[Process]:
    """A server whose runtime breaks at certain images."""
    (tmp_path / "sitecustomize.py").write_text(FAULTY)
    path = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(tmp_path)]).strip(os.pathsep)
    with serve("--workers", "2", *flags, PYTHONPATH=path) as server:
        yield server


def comparable(reply: httpx.Response) -> dict[str, Any]:
    body = reply.raise_for_status().json()
    return {key: value for key, value in body.items() if key not in ("timing_ms", "request_id")}


def test_two_workers_answer_as_one_process_does(serve: Serve, server: Running, pngs: list[bytes]) -> None:
    """Every image alone, so that batches are the same and replies equal to the last bit; bad requests, too."""
    compared = 0
    with serve("--workers", "2", "--decode-threads", "2") as two:
        for at, png in enumerate(pngs):
            path = ("/predict", "/predict?scores=all", f"/models/cifar10@{VERSION}/predict")[at % 3]
            one = httpx.post(f"{server.url}{path}", content=png)
            other = httpx.post(f"{two.url}{path}", content=png)
            assert comparable(other) == comparable(one)
            compared += 1
        ask = {"inputs": [{"name": "IMAGE", "shape": [1, 32, 32, 3], "datatype": "UINT8", "data": [7] * 3072}]}
        infer = [httpx.post(f"{url}/v2/models/cifar10/infer", json=ask).json() for url in (server.url, two.url)]
        assert infer[0] == infer[1]
        assert len(infer[0]["outputs"]) == 4
        for bad in (b"", b"junk", pngs[0][:-50]):
            answers = [httpx.post(f"{url}/predict", content=bad) for url in (server.url, two.url)]
            assert answers[0].status_code == answers[1].status_code >= 400
            assert [answer.json()["error"]["message"] for answer in answers] == [
                answers[0].json()["error"]["message"]
            ] * 2
        for path in (
            "/models",
            "/models/cifar10",
            f"/v2/models/cifar10/versions/{VERSION}",
            "/v2/models/cifar10/config",
            "/openapi.json",
        ):
            assert httpx.get(f"{two.url}{path}").json() == httpx.get(f"{server.url}{path}").json()
        assert httpx.get(f"{two.url}/info").json()["settings"]["workers"] == 2
        used = {line["process"] for line in logged(two, "request")}
    tell(f"compared {compared} replies, by {sorted(used)}")
    assert used == {"worker 0", "worker 1"}


def test_metrics_add_up_under_mixed_load_whichever_worker_answers(serve: Serve, pngs: list[bytes]) -> None:
    """Good requests, bad ones, queues that are full, deadlines that pass."""
    flags = ("--max-queue-images", "8", "--max-images-per-request", "8")
    sent: Counter[tuple[str, int]] = Counter()
    codes: Counter[str] = Counter()
    flagged: Counter[bool] = Counter()
    lock = Lock()

    def post(client: int) -> None:
        with httpx.Client(base_url=server.url, timeout=60) as asking:
            for turn in range(60):
                kind = (client + turn) % 5
                path, content, headers = "/predict", pngs[turn], {}
                if kind == 0:
                    headers = {"X-Deadline-Ms": "3"}
                elif kind == 1:
                    path, content = "/models/cifar10/predict", b"junk"
                files = [("images", ("i", png)) for png in pngs[turn : turn + 6]] if kind > 2 else None
                reply = asking.post(path, content=None if files else content, files=files, headers=headers)
                with lock:
                    sent[path.replace("/cifar10/", "/{model}/"), reply.status_code] += 1
                    if reply.status_code == 200:
                        flagged.update(p["is_ood"] for p in reply.json()["predictions"])
                    else:
                        codes[reply.json()["error"]["code"]] += 1

    with serve("--workers", "2", *flags) as server:
        with ThreadPoolExecutor(12) as pool:
            list(pool.map(post, range(12)))
        tell(f"sent {sum(sent.values())}: {dict(sent)}; refused: {dict(codes)}; images: {dict(flagged)}")
        assert sent["/predict", 200] > 20
        assert sent["/predict", 429] > 20
        assert sent["/predict", 504] > 20
        assert sent["/models/{model}/predict", 415] + codes["queue_full"] > 20
        for _ in range(6):  # new connections, which either worker takes
            found = samples(server.url)
            for (route, status), count in sent.items():
                assert found[f'ood_http_requests_total{{route="{route}",status="{status}"}}'] == count, (route, status)
            for code, count in codes.items():
                assert found[f'ood_refused_requests_total{{code="{code}"}}'] == count, code
            assert found[f'ood_images_total{{decision="ood",{MODEL}}}'] == flagged[True]
            assert found[f'ood_images_total{{decision="in_distribution",{MODEL}}}'] == flagged[False]
            assert found[f"ood_p_value_count{{{MODEL}}}"] == flagged.total()
            assert found[f'ood_negative_energy_bucket{{le="+Inf",{MODEL}}}'] == flagged.total()
            series = f'ood_stage_seconds_count{{model="cifar10",stage="total",version="{VERSION}"}}'
            assert found[series] == sent["/predict", 200]
            assert found[f"ood_queue_images{{{MODEL}}}"] == 0
            assert found["ood_pending_bytes"] == 0


def test_a_killed_worker_takes_nothing_with_it_but_its_own_connections(serve: Serve, pngs: list[bytes]) -> None:
    with serve("--workers", "2") as server:
        load = Load(server.url, pngs)
        load.wait_for(50)
        # It tells what it counts ten times a second; what it had not told is lost.
        since = (datetime.now(UTC) - timedelta(seconds=2)).isoformat(timespec="milliseconds")
        os.kill(pid_of(server, "worker 1"), signal.SIGKILL)
        load.wait_for(50)
        wait_until(lambda: recovered(server, {"engine": 0, "worker": 1}), 60)
        load.wait_for(50)
        outcomes = load.finish()
        tell(f"killed a worker: {dict(outcomes)}")
        lost = outcomes.total() - outcomes[200]
        assert set(outcomes) <= {200, "ReadError", "RemoteProtocolError", "WriteError"}
        assert lost <= load.clients  # what was on the connections that it had
        (replaced,) = logged(server, "process replaced")
        assert (replaced["child"], replaced["status"]) == ("worker 1", -signal.SIGKILL)
        answered = [line for line in logged(server, "request") if line["path"] == "/predict" and line["status"] == 200]
        untold = sum(line["process"] == "worker 1" and since <= line["time"] <= replaced["time"] for line in answered)
        counted = samples(server.url)['ood_http_requests_total{route="/predict",status="200"}']
        assert len(answered) - untold <= counted <= len(answered)
        assert untold < outcomes[200] / 2


def test_a_killed_engine_is_replaced_and_all_that_waited_is_answered(serve: Serve, pngs: list[bytes]) -> None:
    with serve("--workers", "2") as server:
        load = Load(server.url, pngs)
        load.wait_for(50)
        first = pid_of(server, "engine")
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: not ready(server.url))
        health = httpx.get(f"{server.url}/healthz")
        assert (health.status_code, health.json()["models"]) == (503, {f"cifar10@{VERSION}": "died"})
        assert httpx.get(f"{server.url}/metrics").status_code == 503
        wait_until(lambda: recovered(server, {"engine": 1, "worker": 0}), 120)
        load.wait_for(50)
        outcomes = load.finish()
        tell(f"killed the engine: {dict(outcomes)}")
        assert set(outcomes) == {200, "engine_died"}
        assert pid_of(server, "engine") != first
        # The counters began at 0 with the new process; what workers counted in between is in them.
        found = samples(server.url)
        assert 50 <= found['ood_http_requests_total{route="/predict",status="200"}'] < outcomes[200]
        assert found['ood_http_requests_total{route="/predict",status="503"}'] == outcomes["engine_died"]
        assert found["ood_http_workers"] == 2


@pytest.mark.parametrize(
    ("level", "fault", "reason"),
    [
        (255, "raises", f"the engine of cifar10@{VERSION} died"),
        (253, "returns NaN", f"the engine of cifar10@{VERSION} died"),
        (254, "hangs", f"a batch of cifar10@{VERSION} hangs in the device"),
    ],
)
def test_a_faulty_runtime_is_replaced_and_all_that_waited_is_answered(
    serve: Serve,
    tmp_path: Path,
    pngs: list[bytes],
    image_of: Callable[[int], bytes],
    level: int,
    fault: str,
    reason: str,
) -> None:
    with faulty(serve, tmp_path, "--stall-s", "1", "--deadline-s", "60") as server:
        load = Load(server.url, pngs)
        load.wait_for(30)
        assert outcome_of(server.url, image_of(level)) == "engine_died"
        wait_until(lambda: not ready(server.url))
        wait_until(lambda: recovered(server, {"engine": 1, "worker": 0}), 120)
        load.wait_for(30)
        outcomes = load.finish()
        tell(f"the runtime {fault}: {dict(outcomes)}")
        assert set(outcomes) == {200, "engine_died"}
        (replaced,) = logged(server, "process replaced")
        assert (replaced["child"], replaced["reason"]) == ("engine", reason)


def test_the_lines_of_all_workers_are_counted(serve: Serve, tmp_path: Path, image_of: Callable[[int], bytes]) -> None:
    """The device hangs with the first batches; each worker serves 64 requests, and the others wait in its line."""
    image, count, served = image_of(254), 200, 64
    wanted = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(image), image)
    with faulty(serve, tmp_path, "--deadline-s", "60") as server, ExitStack() as stack:
        address = httpx.URL(server.url)
        for _ in range(count):
            raw = stack.enter_context(socket.create_connection((address.host, address.port or 0)))
            raw.sendall(wanted)

        def waiting() -> tuple[float, float]:
            found = samples(server.url)
            return found["ood_waiting_requests"], found[f"ood_queue_images{{{MODEL}}}"]

        wait_until(lambda: sum(waiting()) >= count - 2 * 4)  # two batches at most are in the device
        in_lines, queued = waiting()
        assert count - 2 * served <= in_lines <= count - served
        assert queued <= 2 * served


def test_an_engine_that_hangs_as_a_whole_is_killed_and_replaced(serve: Serve, pngs: list[bytes]) -> None:
    """Stopped, it says nothing: not that it hangs either."""
    with serve("--workers", "2", "--stall-s", "1", "--deadline-s", "60") as server:
        first = pid_of(server, "engine")
        os.kill(first, signal.SIGSTOP)
        with ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(outcome_of, server.url, png) for png in pngs[:4]]
            wait_until(lambda: not ready(server.url))
            refused = [outcome_of(server.url, b"no image") for _ in range(10)]
            assert not any(future.done() for future in waiting)
            assert [future.result() for future in waiting] == ["engine_died"] * 4
        wait_until(lambda: recovered(server, {"engine": 1, "worker": 0}), 120)
        found = samples(server.url)  # what was counted meanwhile is kept for the engine that follows
        assert set(refused) == {415}
        assert found['ood_http_requests_total{route="/predict",status="415"}'] == 10
        assert found['ood_http_requests_total{route="/predict",status="503"}'] == 4
        assert outcome_of(server.url, pngs[0]) == 200
        assert not alive(first)
        (replaced,) = logged(server, "process replaced")
        assert replaced["reason"] == "it said nothing for 11 s"


def test_sigterm_under_load_fails_readiness_first_and_loses_nothing(serve: Serve, pngs: list[bytes]) -> None:
    with serve("--workers", "2", "--drain-delay-s", "8") as server:
        children = [pid_of(server, child) for child in ("engine", "worker 0", "worker 1")]
        load = Load(server.url, pngs)
        load.wait_for(30)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx.get(f"{server.url}/readyz").status_code == 503)  # before anything is refused
        load.wait_for(10)
        assert server.process.wait(60) == 0
        outcomes = load.finish()
        tell(f"SIGTERM under load: {dict(outcomes)}")
        assert set(outcomes) == {200, "ConnectError"}
        assert outcomes["ConnectError"] == load.clients  # each was refused a connection once, at the end
        assert not any(map(alive, children))
        answered = sum(line["path"] == "/predict" and line["status"] == 200 for line in logged(server, "request"))
        assert answered == outcomes[200]


def test_a_second_signal_ends_all_at_once(serve: Serve) -> None:
    with serve("--workers", "2", "--drain-delay-s", "1000") as server:
        children = [pid_of(server, child) for child in ("engine", "worker 0", "worker 1")]
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not ready(server.url))
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
        assert not any(map(alive, children))


def test_what_an_init_system_sends_to_every_process_ends_them_in_order(serve: Serve, pngs: list[bytes]) -> None:
    """systemd signals the whole group, and so does a terminal."""
    with serve("--workers", "2") as server:
        children = [pid_of(server, child) for child in ("engine", "worker 0", "worker 1")]
        load = Load(server.url, pngs)
        load.wait_for(20)
        for pid in (*children, server.process.pid):
            os.kill(pid, signal.SIGINT)
        assert server.process.wait(60) == 0
        outcomes = load.finish()
        tell(f"SIGINT to all under load: {dict(outcomes)}")
        assert set(outcomes) == {200, "ConnectError"}
        assert not any(map(alive, children))


def test_children_end_with_a_killed_supervisor(serve: Serve) -> None:
    with serve("--workers", "2") as server:
        children = [pid_of(server, child) for child in ("engine", "worker 0", "worker 1")]
        assert all(map(alive, children))
        os.kill(children[0], signal.SIGSTOP)  # even one that cannot notice
        server.process.kill()
        wait_until(lambda: not any(map(alive, children)))


def test_a_server_whose_models_do_not_load_again_gives_up(serve: Serve, tmp_path: Path) -> None:
    shutil.copytree(BUNDLE, tmp_path / "store" / "cifar10" / str(VERSION))
    with serve("--workers", "2", "--store", str(tmp_path / "store")) as server:
        children = [pid_of(server, child) for child in ("worker 0", "worker 1")]
        shutil.rmtree(tmp_path / "store")
        os.kill(pid_of(server, "engine"), signal.SIGKILL)
        assert server.process.wait(180) == 1
        last = server.log.read_text().splitlines()[-1]
        assert last.startswith(
            f"ood-serve: the engine process did not start again, 4 times in a row: cifar10@{VERSION}: no bundle"
        )
        assert not any(map(alive, children))


def test_a_server_of_workers_without_one_good_model_does_not_start(bundles: Path, cache_dir: Path) -> None:
    finished = subprocess.run(
        [SERVE, "--port", "0", "--workers", "2", "--store", bundles, "--models", "broken,missing"],
        env=os.environ | {"OOD_CACHE_DIR": str(cache_dir)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 1
    last = finished.stderr.splitlines()[-1]
    assert last.startswith("ood-serve: broken: ")
    assert "missing: no bundle missing in" in last
    assert finished.stdout == ""


def test_a_folder_too_deep_for_a_socket_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with (
        bind("127.0.0.1", 0) as listener,
        pytest.raises(StartError, match=rf"{deep}.* \(AF_UNIX path too long\); set TMPDIR to a shorter folder"),
    ):
        supervise(Settings(workers=2), listener)


def test_workers_whose_port_is_taken_while_the_models_load_name_it(bundles: Path, cache_dir: Path) -> None:
    with bind("127.0.0.1", 0) as sooner:
        port = sooner.getsockname()[1]
        server = subprocess.Popen(
            [SERVE, "--host", "127.0.0.1", "--port", str(port), "--workers", "2"],
            env=os.environ | {"OOD_CACHE_DIR": str(cache_dir)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children")
        wait_until(lambda: children.read_text() != "")  # the port was claimed before that
        sooner.listen()
        printed, said = server.communicate(timeout=120)
    assert (server.returncode, printed) == (1, "")
    assert said.splitlines()[-1] == (
        f"ood-serve: cannot listen on 127.0.0.1:{port} (Address already in use); choose another --host or --port"
    )
    assert "Traceback" not in said


def test_workers_import_no_network_library() -> None:
    code = (
        "import sys; import service.cli, service.processes.supervisor, service.processes.worker\n"
        "print(sorted({'torch', 'openvino', 'torchvision'} & sys.modules.keys()))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "[]"


def test_what_the_drain_has_no_time_for_gets_503_from_a_worker(serve: Serve) -> None:
    with serve("--workers", "2", "--drain-timeout-s", "1") as server:
        address = httpx.URL(server.url)
        with socket.create_connection((address.host, address.port or 0)) as raw:
            raw.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nab")
            wait_until(lambda: samples(server.url)["ood_pending_bytes"] == 2)
            server.process.send_signal(signal.SIGTERM)
            raw.settimeout(20)
            answer = b"".join(iter(lambda: raw.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b'"code":"not_ready"' in answer
        assert server.process.wait(20) == 0


def test_a_worker_that_drains_for_long_is_not_taken_to_hang(serve: Serve, pngs: list[bytes]) -> None:
    """Longer than a child may say nothing: 1 s to stall and 10 s more."""
    with serve("--workers", "2", "--stall-s", "1") as server:
        address = httpx.URL(server.url)
        with socket.create_connection((address.host, address.port or 0)) as raw:
            raw.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(pngs[0]))
            raw.sendall(pngs[0][:100])
            wait_until(lambda: samples(server.url)["ood_pending_bytes"] == 100)
            server.process.send_signal(signal.SIGTERM)
            until = monotonic() + 14
            wait_until(lambda: monotonic() > until)
            raw.sendall(pngs[0][100:])
            raw.settimeout(20)
            answer = b"".join(iter(lambda: raw.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert server.process.wait(30) == 0
