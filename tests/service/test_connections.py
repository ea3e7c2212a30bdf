"""Clients that misbehave on the wire."""

import contextlib
import io
import json
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from threading import Thread
from typing import Any, cast

import httpx
import pytest
import uvicorn
from live import Running, running, samples, wait_until
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from starlette.types import Receive, Scope, Send

import service.protocol
from service.admission import Admission
from service.listener import bind
from service.protocol import Protocol
from service.settings import Settings
from service.turning_away import TurningAway

END = b"\r\n\r\n"


@contextlib.contextmanager
def connection(server: Running) -> Iterator[socket.socket]:
    """Connect, so that each write is a packet of its own and no read takes for ever."""
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port or 0)) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.settimeout(10)
        yield raw


def exchange(server: Running, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes as they are; return status, headers and body of the answer, read to the end of the connection."""
    with connection(server) as raw:
        raw.sendall(request)
        answer = b""
        while piece := raw.recv(65536):
            answer += piece
            head, blank, body = answer.partition(b"\r\n\r\n")
            if blank and f"content-length: {len(body)}".encode() in head:
                break
    lines = head.decode().split("\r\n")
    return int(lines[0].split()[1]), dict(line.split(": ", 1) for line in lines[1:]), body


def test_a_post_without_length_gets_411(server: Running) -> None:
    status, headers, body = exchange(server, b"POST /predict HTTP/1.1\r\nHost: x\r\n\r\n")
    assert status == 411
    assert json.loads(body)["error"]["code"] == "length_required"
    assert headers["content-type"] == "application/json"


def test_a_body_larger_than_allowed_is_refused_on_its_announcement(server: Running) -> None:
    """Before a byte of it is sent."""
    request = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n"
    status, _, body = exchange(server, request)
    assert status == 413
    assert "99,999,999,999" in json.loads(body)["error"]["message"]


def test_a_body_that_does_not_come_gets_408(settings: Callable[..., Settings]) -> None:
    with running(settings(body_timeout_s=0.2)) as server:
        request = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nab"
        status, _, body = exchange(server, request)
        assert status == 408
        assert "2 bytes of the body came in 0.2 s" in json.loads(body)["error"]["message"]
        assert server.state.pending.held == 0


def test_a_client_that_leaves_in_its_body_is_counted_and_forgotten(settings: Callable[..., Settings]) -> None:
    with running(settings()) as server:
        with connection(server) as raw:
            raw.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nab")
            wait_until(lambda: server.state.pending.held == 2)
        wait_until(lambda: samples(server.url)['ood_refused_requests_total{code="client_left"}'] == 1)
        assert server.state.pending.held == 0


def test_bodies_beyond_the_memory_for_them_get_429(settings: Callable[..., Settings], pngs: list[bytes]) -> None:
    with running(settings(max_pending_bytes=3000, max_request_bytes=3000)) as server:
        with connection(server) as raw:
            raw.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 2999\r\n\r\n" + b"x" * 2998)
            wait_until(lambda: server.state.pending.held == 2998)
            refused = httpx.post(f"{server.url}/predict", content=pngs[0])
            assert refused.status_code == 429
            assert refused.json()["error"]["code"] == "memory_full"
            assert refused.headers["retry-after"] == "1"
        wait_until(lambda: server.state.pending.held == 0)
        assert httpx.post(f"{server.url}/predict", content=pngs[0]).status_code == 200


@pytest.mark.parametrize("length", [b"-1", b"1e3", b"0x10", b"10, 20"])
def test_an_impossible_length_gets_400(server: Running, length: bytes) -> None:
    request = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: " + length + b"\r\n\r\nab"
    assert exchange(server, request)[0] == 400


@pytest.mark.parametrize(
    "offer", [b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n", b"upgrade: websocket\r\n"]
)
def test_an_offer_to_upgrade_is_ignored(server: Running, pngs: list[bytes], offer: bytes) -> None:
    """As `curl --http2` and Java's client make it; in one write with the body, and in two."""
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\n" + offer + b"Content-Length: %d\r\n\r\n" % len(pngs[0])
    assert exchange(server, head + pngs[0])[0] == 200
    with connection(server) as raw:
        raw.sendall(head)
        raw.sendall(pngs[0])
        assert raw.recv(100).startswith(b"HTTP/1.1 200 OK")


def test_an_endless_header_is_cut_off(server: Running) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 200_000
    with connection(server) as raw:
        raw.sendall(request)
        answer = b""
        with contextlib.suppress(ConnectionResetError):  # what was not read any more resets the connection
            while piece := raw.recv(100):
                answer += piece
        assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("cut", range(-2, 10))
def test_an_offer_to_upgrade_may_come_in_pieces(server: Running, pngs: list[bytes], cut: int) -> None:
    """Wherever a packet ends: of `\\r\\nUpgrade:` the first may hold any part."""
    head = b"POST /predict HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nHost: x\r\n"
    head += b"Content-Length: %d\r\n\r\n" % len(pngs[0])
    at = head.index(b"Upgrade: h2c") + cut
    with connection(server) as raw:
        raw.sendall(head[:at])
        time.sleep(0.02)
        raw.sendall(head[at:] + pngs[0])
        assert raw.recv(100).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("cut", range(5))
def test_a_head_may_end_in_two_packets(server: Running, cut: int) -> None:
    """The body is left as it is, to the last byte: a line in it that looks like an offer, and a line break at its end.

    A form ends in one, too.
    """
    text, file = PngInfo(), io.BytesIO()
    text.add_text("Comment", "\nupgrade: h2c")  # under a checksum
    Image.new("RGB", (32, 32)).save(file, "PNG", pnginfo=text)
    body = file.getvalue() + b"\r\n"
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d" % len(body)
    with connection(server) as raw:
        raw.sendall(head + END[:cut])
        time.sleep(0.02)
        raw.sendall(END[cut:] + body)
        assert raw.recv(100).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize(
    ("begun", "more"), [(b"0\r\n", b"a: b\r\n" * 1000), (b"0\r\na: ", b"x" * 6000), (b"1;", b"x" * 6000)]
)
def test_what_never_ends_behind_a_head_is_cut_off(server: Running, begun: bytes, more: bytes) -> None:
    """Trailers, one trailer, and what a chunk says beside its size: no bound on bodies meets them."""
    with connection(server) as raw:
        raw.settimeout(0.02)
        raw.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + begun)
        assert any(is_cut_off(raw, more) for _ in range(100))


def is_cut_off(raw: socket.socket, more: bytes) -> bool:
    """Send some more, read what there is, and tell whether the other end has hung up."""
    try:
        raw.sendall(more)
        while raw.recv(4096):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


def test_a_trailer_is_no_header(server: Running, pngs: list[bytes]) -> None:
    """What is allowed is told by the head: a trailer must not add a token to it (RFC 9110, 6.5.1)."""
    request = b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(pngs[0])
    status, headers, _ = exchange(server, request + pngs[0] + b"\r\n0\r\nX-Request-Id: from-a-trailer\r\n\r\n")
    assert status == 200
    assert headers["x-request-id"] != "from-a-trailer"


@pytest.mark.parametrize("begun", [b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_a_connection_without_a_request_is_closed(
    server: Running, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    """The first of its connection, or the next: an answer before it is no reason to wait for ever."""
    monkeypatch.setattr(service.protocol, "HEAD_TIMEOUT_S", 0.2)
    with connection(server) as raw:
        raw.sendall(begun)
        if begun:
            assert raw.recv(4096).startswith(b"HTTP/1.1 200 OK")
        raw.sendall(b"GET /healthz HTTP/1.1\r\nHost:")
        assert raw.recv(100) == b""


def test_who_is_answered_early_and_sends_the_rest_is_idle_then(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection is kept for as long as any other: a load balancer may hold it for a minute."""
    monkeypatch.setattr(service.protocol, "HEAD_TIMEOUT_S", 0.2)
    body = bytes(400_000)
    with connection(server) as raw:
        raw.sendall(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:40_000])
        assert raw.recv(65536).startswith(b"HTTP/1.1 404 ")
        raw.sendall(body[40_000:])
        time.sleep(0.6)
        raw.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert raw.recv(65536).startswith(b"HTTP/1.1 200 OK")


def test_who_does_not_read_gives_its_place_back(
    server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The answers to the requests between fill what the connection holds; then one with a place can't be answered."""
    monkeypatch.setattr(service.protocol, "UNREAD_S", 0.3)
    pair = (
        b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\nPOST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx"
    )
    held = server.server.server_state
    wait_until(lambda: not held.connections)
    with connection(server) as raw:
        raw.sendall(pair * 500)
        wait_until(lambda: len(held.connections) == 1)
        wait_until(lambda: not held.connections and not held.tasks)
    assert "Exception in ASGI application" not in caplog.text


def test_a_slow_reader_gets_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.protocol, "UNREAD_S", 2.0)
    size, piece = 24 * 2**20, 2**20

    async def large(scope: Scope, receive: Receive, send: Send) -> None:
        head = [(b"content-length", b"%d" % size)]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": bytes(size)})

    protocol = partial(Protocol, admission=Admission(served=0, waiting=0), turning_away=cast(TurningAway, None))
    server = uvicorn.Server(uvicorn.Config(large, http=cast(Any, protocol), lifespan="off", log_config=None, ws="none"))
    listener = bind("127.0.0.1", 0)
    thread = Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_until(lambda: server.started)
        with socket.create_connection(listener.getsockname()) as raw:
            raw.settimeout(10)
            raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            read = 0
            while got := raw.recv(piece, socket.MSG_WAITALL):
                read += len(got)
                time.sleep(0.2)
        assert read > size
    finally:
        server.should_exit = True
        thread.join(30)


def test_an_abandoned_form_stops_being_decoded(settings: Callable[..., Settings], pngs: list[bytes]) -> None:
    """Its deadline has passed: the one thread that decodes is free for the next, within an image of it."""
    file = io.BytesIO()
    Image.new("RGB", (5500, 5500)).save(file, "PNG")
    large = [("images", ("i", file.getvalue()))] * 60
    with running(settings(decode_threads=1, deadline_s=600)) as server:
        begun = time.monotonic()
        assert httpx.post(f"{server.url}/predict", files=large[:1], timeout=60).status_code == 200
        one_s = time.monotonic() - begun
        late = httpx.post(f"{server.url}/predict", files=large, headers={"X-Deadline-Ms": "100"}, timeout=60)
        assert late.status_code == 504
        hasty = {"X-Deadline-Ms": f"{10_000 * one_s:.0f}"}  # what ten images take, of sixty
        assert httpx.post(f"{server.url}/predict", content=pngs[0], headers=hasty, timeout=60).status_code == 200
