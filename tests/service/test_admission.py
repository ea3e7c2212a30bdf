"""How many requests are served at once, and what becomes of the others."""

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from unittest.mock import Mock

import httpx
import pytest
import uvicorn
from live import MODEL, Gate, Running, running, samples, wait_until
from uvicorn.server import ServerState

import service.admission
import service.app
import service.protocol
from service.admission import Admission, make_admission
from service.settings import Settings
from service.turning_away import TurningAway

Entered = list[str]


def entering(admission: Admission, entered: Entered, *names: str) -> list[bool]:
    return [admission.enter(lambda name=name: entered.append(name)) for name in names]  # type: ignore[misc]


def test_places_then_a_line_then_no_more() -> None:
    admission, entered = Admission(served=2, waiting=3), Entered()
    assert entering(admission, entered, *"abcdefg") == [True] * 5 + [False] * 2
    assert entered == ["a", "b"]
    admission.leave()
    assert entered == ["a", "b", "c"]
    assert entering(admission, entered, "h", "i") == [True, False]
    for _ in range(4):
        admission.leave()
    assert entered == ["a", "b", "c", "d", "e", "h"]


def test_a_place_is_free_again_when_nobody_waits() -> None:
    admission, entered = Admission(served=1, waiting=1), Entered()
    for name in "abc":
        assert entering(admission, entered, name) == [True]
        admission.leave()
    assert entered == ["a", "b", "c"]
    assert entering(admission, entered, "d", "e", "f") == [True, True, False]


def test_the_line_is_as_long_as_it_is() -> None:
    admission = Admission(served=1, waiting=2)
    lengths = []
    for name in "abcd":
        entering(admission, [], name)
        lengths.append(admission.in_line)
    for _ in range(3):
        admission.leave()
        lengths.append(admission.in_line)
    assert lengths == [0, 1, 2, 2, 1, 0, 0]


def test_who_is_turned_away_shall_come_again_when_the_line_has_moved_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(service.admission.time, "monotonic", lambda: now)
    admission = Admission(served=1, waiting=2)
    assert admission.retry_after_s == 1
    entering(admission, [], "served", "first", "second")
    now = 102.4
    assert admission.retry_after_s == 3
    admission.leave()
    admission.leave()
    assert admission.retry_after_s == 1


def test_the_places_keep_an_engine_busy(settings: Callable[..., Settings]) -> None:
    made = make_admission(settings(max_batch_size=64, max_queue_images=1000))
    assert (made.served, made.waiting) == (256, 1000)
    assert make_admission(settings(max_batch_size=1)).served == 64


def post(server: Running, image: bytes, path: str = "/predict", **headers: str) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", content=image, headers=headers, timeout=30)


def connected(server: Running) -> int:
    return len(server.server.server_state.connections)


@pytest.fixture
def full(
    settings: Callable[..., Settings], gate: Gate, pngs: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Any]]:
    """Return what starts a server of one place and a line of one, and fills both; a closed gate holds them."""
    monkeypatch.setattr(service.app, "make_admission", lambda _: Admission(served=1, waiting=1))
    with ThreadPoolExecutor(4) as pool:
        stack = []

        def start(**more: Any) -> tuple[Running, list["Future[httpx.Response]"]]:
            context = running(settings(**more))
            server = context.__enter__()
            stack.append(context)
            gate.close()
            held = [pool.submit(post, server, pngs[0])]
            assert gate.entered.wait(10)
            held.append(pool.submit(post, server, pngs[1]))
            wait_until(lambda: server.state.admission.in_line == 1)
            return server, held

        yield start
        gate.open.set()
        for context in stack:
            context.__exit__(None, None, None)


def test_who_finds_no_place_is_refused_at_once_as_by_any_refusal(
    full: Callable[..., Any], gate: Gate, pngs: list[bytes]
) -> None:
    server, held = full()
    begun = time.monotonic()
    refused = post(server, pngs[2], **{"X-Request-Id": "mine"})
    assert time.monotonic() - begun < 1
    assert refused.status_code == 429
    assert refused.json() == {
        "error": {
            "code": "line_full",
            "message": "1 requests are being served and 1 wait, which is all that may; try again in 1 s",
            "request_id": "mine",
        }
    }
    expected = {"content-type": "application/json", "retry-after": "1", "x-request-id": "mine"}
    assert expected.items() <= refused.headers.items()
    assert "date" in refused.headers
    other = post(server, pngs[2])
    assert other.headers["x-request-id"] == other.json()["error"]["request_id"] != "mine"
    gate.open.set()
    assert [future.result().status_code for future in held] == [200, 200]
    counted = samples(server.url)
    assert counted['ood_http_requests_total{route="/predict",status="429"}'] == 2
    assert counted['ood_refused_requests_total{code="line_full"}'] == 2
    assert counted['ood_refused_requests_total{code="queue_full"}'] == 0
    assert post(server, pngs[2]).status_code == 200


def test_who_waits_in_the_line_is_counted(full: Callable[..., Any], gate: Gate) -> None:
    """Of two requests one is served, whose image the engine has, and one waits unread: no queue has it."""
    server, held = full()
    found = samples(server.url)
    assert found["ood_waiting_requests"] == 1
    assert found[f"ood_queue_images{{{MODEL}}}"] == 0
    gate.open.set()
    assert [future.result().status_code for future in held] == [200, 200]
    assert samples(server.url)["ood_waiting_requests"] == 0


def test_a_refusal_under_v2_is_in_the_protocols_form(full: Callable[..., Any], pngs: list[bytes]) -> None:
    server, _ = full()
    refused = post(server, pngs[2], "/v2/models/cifar10/infer")
    assert refused.status_code == 429
    assert refused.json() == {
        "error": "1 requests are being served and 1 wait, which is all that may; try again in 1 s"
    }
    assert len(refused.headers["x-request-id"]) == 32


def test_a_refusal_under_v2_is_counted_for_its_route_with_a_slash_at_the_end_or_without(
    full: Callable[..., Any], pngs: list[bytes]
) -> None:
    server, _ = full()
    for path in ("/v2/models/cifar10/infer", "/v2/models/cifar10/infer/"):
        assert post(server, pngs[2], path).status_code == 429
    assert samples(server.url)['ood_http_requests_total{route="/v2/models/{model}/infer",status="429"}'] == 2


def test_pages_of_allowed_origins_can_read_a_refusal(full: Callable[..., Any], pngs: list[bytes]) -> None:
    server, _ = full(cors_origins=("https://a.example",))
    allowed = post(server, pngs[2], Origin="https://a.example")
    assert allowed.status_code == 429
    assert allowed.headers["access-control-allow-origin"] == "https://a.example"
    assert allowed.headers["vary"] == "Origin"
    assert "Retry-After" in allowed.headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in post(server, pngs[2], Origin="https://b.example").headers
    assert "access-control-allow-origin" not in post(server, pngs[2]).headers


def test_a_connection_outlives_a_refusal_unless_its_client_wants_it_closed(
    full: Callable[..., Any], gate: Gate, pngs: list[bytes]
) -> None:
    server, held = full()
    with httpx.Client(base_url=server.url) as client:
        assert client.post("/predict", content=pngs[2]).status_code == 429
        before = connected(server)
        assert client.post("/predict", content=pngs[2]).status_code == 429
        assert connected(server) == before
        closed = client.post("/predict", content=pngs[2], headers={"Connection": "close"})
        assert (closed.status_code, closed.headers["connection"]) == (429, "close")
        gate.open.set()
        assert [future.result().status_code for future in held] == [200, 200]
        assert client.post("/predict", content=pngs[2]).status_code == 200


def test_a_server_that_leaves_turns_away_for_good(full: Callable[..., Any], pngs: list[bytes]) -> None:
    server, _ = full()
    server.state.draining = True
    refused = post(server, pngs[2])
    assert (refused.status_code, refused.headers["connection"]) == (429, "close")


def test_a_long_pipeline_is_turned_away_whole(full: Callable[..., Any], gate: Gate, pngs: list[bytes]) -> None:
    server, held = full()
    address, many = httpx.URL(server.url), 1000
    with socket.create_connection((address.host, address.port or 0)) as raw:
        raw.settimeout(10)
        raw.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n" * many)
        answer = b""
        while answer.count(b"HTTP/1.1 ") < many:
            piece = raw.recv(2**20)
            assert piece
            answer += piece
    assert answer.count(b"HTTP/1.1 429 ") == many
    gate.open.set()
    assert [future.result().status_code for future in held] == [200, 200]


def test_a_pipeline_whose_refusals_are_not_read_is_cut_off(
    full: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would pile up in memory, ten times what it sends."""
    monkeypatch.setattr(service.protocol, "UNREAD_S", 0.3)
    server, _ = full()
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port or 0)) as raw:
        raw.settimeout(60)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            raw.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n" * 1_000_000)


def test_http_1_0_gets_its_refusal_and_the_end(full: Callable[..., Any], pngs: list[bytes]) -> None:
    server, _ = full()
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port or 0)) as raw:
        raw.settimeout(10)
        raw.sendall(b"POST /predict HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (len(pngs[2]), pngs[2]))
        answer = b""
        while piece := raw.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
    assert b"\r\nconnection: close\r\n" in answer


def test_pipelined_requests_are_answered_in_order(full: Callable[..., Any], gate: Gate, pngs: list[bytes]) -> None:
    """The first waits in the line, the second behind it on its connection: neither overtakes, neither is lost."""
    server, held = full()
    address = httpx.URL(server.url)
    wanted = b"".join(
        b"POST /predict HTTP/1.1\r\nHost: x\r\nX-Request-Id: %d\r\nContent-Length: %d\r\n\r\n%b" % (n, len(png), png)
        for n, png in enumerate(pngs[2:4])
    )
    with socket.create_connection((address.host, address.port or 0)) as raw:
        raw.settimeout(10)
        raw.sendall(wanted)
        answer = b""
        while answer.count(b"HTTP/1.1 ") < 2:
            answer += raw.recv(65536)
    assert answer.count(b"HTTP/1.1 429 ") == 2
    assert answer.index(b"x-request-id: 0") < answer.index(b"x-request-id: 1")
    gate.open.set()
    assert [future.result().status_code for future in held] == [200, 200]


def test_what_is_not_posted_finds_its_way(full: Callable[..., Any]) -> None:
    server, _ = full()
    for path in ("/healthz", "/readyz", "/metrics", "/models"):
        assert httpx.get(f"{server.url}{path}").status_code == 200


def test_a_slow_body_holds_no_place(full: Callable[..., Any], gate: Gate, pngs: list[bytes]) -> None:
    server, held = full()
    gate.open.set()
    assert [future.result().status_code for future in held] == [200, 200]
    address = httpx.URL(server.url)
    slow = [socket.create_connection((address.host, address.port or 0)) for _ in range(3)]
    try:
        for raw in slow:
            raw.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(pngs[2]))
        wait_until(lambda: connected(server) >= 3)
        assert post(server, pngs[3]).status_code == 200
        for raw in slow:
            raw.settimeout(10)
            raw.sendall(pngs[2])
            assert raw.recv(65536).startswith(b"HTTP/1.1 200 ")
    finally:
        for raw in slow:
            raw.close()


def test_who_left_the_line_is_not_computed(full: Callable[..., Any], gate: Gate, pngs: list[bytes]) -> None:
    server, held = full()
    gate.open.set()
    assert [future.result().status_code for future in held] == [200, 200]
    gate.close()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, server, pngs[0])
        assert gate.entered.wait(10)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/predict", content=pngs[1], timeout=0.2)
        gate.open.set()
        assert first.result().status_code == 200
    wait_until(lambda: samples(server.url).get('ood_refused_requests_total{code="client_left"}') == 1)
    assert gate.batches == [1]


def test_who_is_to_be_told_to_go_on_is_told_at_once(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.protocol, "WHOLE_S", 30)
    address = httpx.URL(server.url)
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
    with socket.create_connection((address.host, address.port or 0)) as raw:
        raw.settimeout(10)
        raw.sendall(head)
        assert raw.recv(100).startswith(b"HTTP/1.1 100 ")


def test_a_large_body_is_read_as_it_comes(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held back, it would fill what the connection may hold, and never be whole."""
    monkeypatch.setattr(service.protocol, "WHOLE_S", 30)
    assert httpx.post(f"{server.url}/predict", content=bytes(2**20), timeout=10).status_code == 415


def test_a_pipeline_that_breaks_off_is_forgotten(server: Running) -> None:
    """The second request is to be looked at when its connection is lost, with nothing left to look at then."""
    pair = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n" * 2
    faults: list[Any] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        admission = Admission(served=0, waiting=0)
        config = uvicorn.Config(server.server.config.app, http=service.protocol.Protocol, log_config=None, ws="none")
        config.load()
        made = service.protocol.Protocol(
            config, ServerState(), {}, admission=admission, turning_away=TurningAway(server.state, admission)
        )
        transport = Mock(asyncio.Transport, is_closing=lambda: False, get_extra_info=lambda *_: None)
        made.connection_made(transport)
        made.data_received(pair)
        made.connection_lost(None)
        await asyncio.sleep(0.01)

    asyncio.run(run())
    assert not faults


def test_the_time_in_the_line_counts(full: Callable[..., Any], gate: Gate, pngs: list[bytes]) -> None:
    """To a request's deadline and to its times."""
    server, held = full(deadline_s=0.5)
    time.sleep(0.7)
    gate.open.set()
    first, second = (future.result() for future in held)
    assert first.status_code == 504
    assert second.status_code == 504
    gate.close()
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(post, server, pngs[0])
        assert gate.entered.wait(10)
        two = pool.submit(post, server, pngs[1])
        wait_until(lambda: server.state.admission.in_line == 1)
        time.sleep(0.2)
        gate.open.set()
        assert one.result().status_code == 200
        took = two.result().json()["timing_ms"]
    assert 199 < took["queue"] <= took["total"]


def test_the_log_has_a_line_for_all_that_were_turned_away_in_a_second(
    full: Callable[..., Any], pngs: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server, _ = full()
    for _ in range(20):
        assert post(server, pngs[2]).status_code == 429

    def told() -> list[logging.LogRecord]:
        return [record for record in caplog.records if record.getMessage() == "requests turned away"]

    wait_until(lambda: sum(vars(record)["requests"] for record in told()) == 20)
    assert len(told()) <= 3
    for _ in range(3):
        assert post(server, pngs[2]).status_code == 429
    wait_until(lambda: sum(vars(record)["requests"] for record in told()) == 23)
    assert {(record.levelname, vars(record)["code"]) for record in told()} == {("WARNING", "line_full")}
    assert not [record for record in caplog.records if vars(record).get("status") == 429]
