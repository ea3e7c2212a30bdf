"""How a server starts and ends, as a process."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Event

import httpx
import pytest
from live import BUNDLE, SERVE, VERSION, Process, wait_until

from model_store.bundle import read_manifest
from service.app import create_app
from service.errors import StartError
from service.listener import bind
from service.server import Server
from service.settings import Settings

ROOT = Path(__file__).parents[2]
Serve = Callable[..., AbstractContextManager[Process]]


def test_the_greeting_has_a_line_that_works(serve: Serve) -> None:
    with serve() as server:
        line = next(line for line in server.greeting.splitlines() if line.startswith("  curl "))
        reply = subprocess.run(
            ["sh", "-c", line.replace("curl ", "curl -sS ")], capture_output=True, text=True, check=True
        )
        assert '"class_name":"airplane"' in reply.stdout
        threshold = read_manifest(BUNDLE).calibrations["negative_energy"].threshold
        found = re.search(r"cifar10@(\d+)  flags negative energy <= (\S+) \(alpha 5 %\)  openvino-\S+", server.greeting)
        assert found is not None
        assert (int(found[1]), float(found[2])) == (VERSION, round(threshold, 4))


def test_make_serve_serves(serve: Serve) -> None:
    command = ("make", "--silent", "-C", str(ROOT), "serve", f"BIN={SERVE.parent}", "PORT=0")
    shown = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, check=True).stdout
    last = shlex.split(shown.splitlines()[-1])
    assert last == [str(SERVE), "--host", "127.0.0.1", "--port", "0"]


def test_sigterm_answers_all_that_was_accepted_and_ends_with_0(serve: Serve, pngs: list[bytes]) -> None:
    """Clients keep posting on new connections while the server drains: each connection that was made is answered."""
    with serve("--drain-delay-s", "0.5") as server, ThreadPoolExecutor(8) as pool:
        stopping, statuses, refused = Event(), [], []

        def post_until_refused() -> None:
            while True:
                try:
                    statuses.append(httpx.post(f"{server.url}/predict", content=pngs[0], timeout=30).status_code)
                except httpx.ConnectError:
                    refused.append(stopping.is_set())
                    return

        clients = [pool.submit(post_until_refused) for _ in range(8)]
        wait_until(lambda: len(statuses) > 20)
        stopping.set()
        server.process.send_signal(signal.SIGTERM)
        for client in clients:
            client.result(60)
        assert server.process.wait(30) == 0
        assert set(statuses) == {200}
        assert refused == [True] * 8


def test_sigterm_fails_readiness_first_and_tells_clients_to_go(serve: Serve, pngs: list[bytes]) -> None:
    with serve("--drain-delay-s", "30") as server:
        assert httpx.get(f"{server.url}/readyz").status_code == 200
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx.get(f"{server.url}/readyz").status_code == 503)
        assert httpx.get(f"{server.url}/readyz").json()["reason"] == "the server is stopping"
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        reply = httpx.post(f"{server.url}/predict", content=pngs[0])
        assert reply.status_code == 200
        assert reply.headers["connection"] == "close"
        server.process.send_signal(signal.SIGTERM)  # a second one does not wait
        assert server.process.wait(20) == 0


def test_what_the_drain_has_no_time_for_gets_503(serve: Serve) -> None:
    """A client that takes too long over its body."""
    with serve("--drain-timeout-s", "1", "--drain-delay-s", "0") as server:
        address = httpx.URL(server.url)
        with socket.create_connection((address.host, address.port or 0)) as raw:
            raw.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nab")
            wait_until(lambda: "\nood_pending_bytes 2.0" in httpx.get(f"{server.url}/metrics").text)
            server.process.send_signal(signal.SIGTERM)
            raw.settimeout(20)
            answer = b"".join(iter(lambda: raw.recv(65536), b""))  # until the server, which ends, closes it
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b'"code":"not_ready"' in answer
        assert server.process.wait(20) == 0


@pytest.mark.slow
def test_sigterm_ends_a_server_that_still_loads_even_as_the_first_process(tmp_path: Path) -> None:
    """As in a container: in a space of its own, where a signal without a handler is ignored."""
    command = ["unshare", "--pid", "--fork", "--kill-child", SERVE, "--port", "0"]
    with subprocess.Popen(command, env=os.environ | {"OOD_CACHE_DIR": str(tmp_path)}) as unshare:
        children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children")
        wait_until(lambda: bool(children.read_text()))
        status = Path(f"/proc/{children.read_text().split()[0]}/status")
        wait_until(lambda: _catches(status, signal.SIGTERM))
        os.kill(int(status.parent.name), signal.SIGTERM)
        assert unshare.wait(20) == 128 + signal.SIGTERM


def _catches(status: Path, number: int) -> bool:
    caught = re.search(r"^SigCgt:\t(\w+)$", status.read_text(), re.MULTILINE)
    assert caught is not None
    return bool(int(caught[1], 16) >> (number - 1) & 1)


def test_sigint_does_not_wait_for_load_balancers(serve: Serve) -> None:
    with serve("--drain-delay-s", "1000") as server:
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(20) == 0


DYING = """
import sys
import service.models
from model_store.bundle import load_bundle

def load(*args, **kwargs):
    bundle = load_bundle(*args, **kwargs)
    runtime = bundle.predictor.scorer.runtime
    start = runtime.start
    def start_unless_white(images):
        if images.min() == 255:
            raise RuntimeError("the device is gone")
        return start(images)
    runtime.start = start_unless_white
    return bundle

service.models.load_bundle = load
from service.cli import main
main()
"""


def test_an_engine_that_dies_ends_the_process_with_1_after_answering(
    serve: Serve, pngs: list[bytes], image_of: Callable[[int], bytes]
) -> None:
    with serve(command=(sys.executable, "-c", DYING)) as server:
        assert httpx.post(f"{server.url}/predict", content=pngs[0]).status_code == 200
        dead = httpx.post(f"{server.url}/predict", content=image_of(255))
        assert dead.status_code == 503
        assert dead.json()["error"]["code"] == "engine_died"
        assert server.process.wait(20) == 1
        died = [line for line in server.lines() if line["message"] == "the engine died"]
        assert len(died) == 1
        assert "the device is gone" in died[0]["exception"]


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match=rf"cannot listen on 127\.0\.0\.1:{port} \(Address already in use\)"):
            bind("127.0.0.1", port)
    with pytest.raises(StartError, match="choose another --host or --port"):
        bind("no.such.host.invalid", 0)


def test_a_port_taken_while_the_models_loaded_is_named(
    settings: Callable[..., Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    """Two servers may claim the same one; whoever listens first has it."""
    with bind("127.0.0.1", 0) as sooner:
        port = sooner.getsockname()[1]
        ours = settings(host="127.0.0.1", port=port)
        app = create_app(ours)
        server = Server(app, ours, "listening")
        with bind("127.0.0.1", port) as later:
            sooner.listen()
            with pytest.raises(StartError, match=rf"cannot listen on 127\.0\.0\.1:{port} \(Address already in use\)"):
                server.run(sockets=[later])
    app.state.service.models.close()
    assert capsys.readouterr().out == ""  # no greeting


def test_nobody_connects_before_the_models_are_ready() -> None:
    claimed = bind("127.0.0.1", 0)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(claimed.getsockname())
    claimed.close()


def test_log_lines_are_json_with_the_request(serve: Serve, pngs: list[bytes]) -> None:
    with serve() as server:
        httpx.post(f"{server.url}/predict", content=pngs[0], headers={"X-Request-Id": "abc"})
        httpx.get(f"{server.url}/%0a%22evil{'x' * 300}")
        wait_until(lambda: sum(line["message"] == "request" for line in server.lines()) == 2)
        good, bad = (line for line in server.lines() if line["message"] == "request")
        assert (good["request_id"], good["method"], good["path"], good["status"]) == ("abc", "POST", "/predict", 200)
        assert good["ms"] > 0
        assert (bad["status"], bad["code"]) == (404, "unknown_route")
        assert len(bad["path"]) == 200
        loaded = next(line for line in server.lines() if line["message"] == "model loaded")
        assert loaded["runtime"].startswith("openvino")


def test_the_service_starts_without_torchvision_or_training() -> None:
    code = (
        "import sys; sys.modules['torchvision'] = None; sys.modules['training'] = None\n"
        "from service.settings import Settings\n"
        "from service.app import create_app\n"
        "app = create_app(Settings(runtime='torch-eager', max_batch_size=1))\n"
        "app.state.service.models.close()\n"
        "print(sorted(name for name in ('sklearn', 'matplotlib') if name in sys.modules))"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OOD_")}
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert printed.stdout.strip() == "[]"
