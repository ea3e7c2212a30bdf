"""The two load generators, against servers whose answers are known."""

import asyncio
import shutil
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

import numpy as np
import pytest
from scipy import stats

from benchmarks import open_loop
from benchmarks.http_requests import http_post
from benchmarks.open_loop import Opened, percentile_ms, poisson_arrivals, run_open_loop
from benchmarks.wrk import Closed, WrkError, find_wrk, run_wrk

Answer = Callable[[str], Awaitable[bytes]]


@contextmanager
def answering(answer: Answer) -> Iterator[str]:
    """Run a server in a thread, whose every answer is the bytes that `answer` makes of a request's path."""
    ready, loop = Event(), asyncio.new_event_loop()
    stop, ports = asyncio.Event(), []

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                await reader.readexactly(length)
                reply = await answer(head.split(b" ")[1].decode())
                writer.write(reply)
                if not reply.startswith(b"HTTP/1.1 "):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async def serve() -> None:
        async with await asyncio.start_server(converse, "127.0.0.1", 0, backlog=1024) as server:
            ports.append(server.sockets[0].getsockname()[1])
            ready.set()
            await stop.wait()

    thread = Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(10)
    try:
        yield f"http://127.0.0.1:{ports[0]}"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


def status(code: int) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: 2\r\n\r\n{}" % code


BROKEN = {"/lost": b"", "/unreadable": b"???\r\n"}


async def by_path(path: str) -> bytes:
    return BROKEN[path] if path in BROKEN else status(int(path.removeprefix("/")))


def asking(*paths: str) -> list[bytes]:
    return [http_post(path, "image/jpeg", b"image") for path in paths]


def test_arrivals_are_a_poisson_process() -> None:
    """Gaps are exponential of mean 1 / rate; counts in equal slots have the variance of their mean, as Poisson's do."""
    due = poisson_arrivals(500.0, 40.0, seed=1)
    gaps = np.diff(due, prepend=0.0)
    assert (gaps > 0).all()
    assert due[-1] < 40.0
    assert len(due) == pytest.approx(20_000, abs=4 * np.sqrt(20_000))
    assert stats.kstest(gaps, "expon", args=(0, 1 / 500)).pvalue > 0.01
    counts = np.histogram(due, bins=2000, range=(0.0, 40.0))[0]
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.13)  # 4 sd of the index of dispersion
    assert stats.kstest(due, "uniform", args=(0, 40)).pvalue > 0.01
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 0.03


def test_arrivals_differ_by_seed_alone() -> None:
    assert np.array_equal(poisson_arrivals(50, 2, seed=3), poisson_arrivals(50, 2, seed=3))
    assert not np.array_equal(poisson_arrivals(50, 2, seed=3)[:20], poisson_arrivals(50, 2, seed=4)[:20])


def test_open_loop_counts_every_request_once() -> None:
    with answering(by_path) as url:
        found = run_open_loop(url, asking("/200", "/429", "/503", "/200"), rate_per_s=400, seconds=0.5)
    turns = [found.sent // 4 + (found.sent % 4 > turn) for turn in range(4)]
    assert found.sent == len(poisson_arrivals(400, 0.5, seed=0))
    assert len(found.answered_s) == turns[0] + turns[3]
    assert len(found.rejected_s) == turns[1]
    assert found.failures == {"503": turns[2]}
    assert len(found.late_s) == found.sent
    assert 0 < found.in_time <= len(found.answered_s)
    assert found.goodput_per_s == found.in_time / 0.5


def test_open_loop_waits_for_no_answer_and_counts_latency_from_when_requests_were_due() -> None:
    """Nothing is answered before the last request has come: each waits at least until that one was due."""
    due = poisson_arrivals(300, 0.4, seed=7)
    came: list[str] = []
    all_here = asyncio.Event()

    async def answer(path: str) -> bytes:
        came.append(path)
        if len(came) == len(due):
            all_here.set()
        await all_here.wait()
        return status(200)

    with answering(answer) as url:
        found = run_open_loop(url, asking("/200"), rate_per_s=300, seconds=0.4, seed=7)
    assert found.failures == {}
    waited = np.sort(due[-1] - due)
    assert len(found.answered_s) == len(due)
    assert (np.sort(found.answered_s) >= waited).all()


@pytest.mark.parametrize(("path", "cause"), [("/lost", open_loop.LOST), ("/unreadable", open_loop.UNREADABLE)])
def test_open_loop_counts_broken_answers(path: str, cause: str) -> None:
    with answering(by_path) as url:
        found = run_open_loop(url, asking(path), rate_per_s=200, seconds=0.1)
    assert found.failures == {cause: found.sent}
    assert found.answered_s == []


def test_open_loop_counts_a_server_that_is_not_there() -> None:
    with socket.socket() as unheard:  # bound and not listening
        unheard.bind(("127.0.0.1", 0))
        found = run_open_loop(
            f"http://127.0.0.1:{unheard.getsockname()[1]}", asking("/200"), rate_per_s=200, seconds=0.1
        )
    assert found.failures == {open_loop.REFUSED: found.sent}


def test_open_loop_counts_what_is_never_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_loop, "LAST_ANSWER_S", 0.1)

    async def answer(path: str) -> bytes:
        if path == "/never":
            await asyncio.Event().wait()
        return status(200)

    with answering(answer) as url:
        found = run_open_loop(url, asking("/200", "/never"), rate_per_s=200, seconds=0.2)
    assert found.failures == {open_loop.MISSING: found.sent // 2}
    assert len(found.answered_s) == found.sent - found.sent // 2


def test_percentiles_are_milliseconds_and_none_of_nothing() -> None:
    assert percentile_ms([0.001, 0.002, 0.003], 50) == 2.0
    assert percentile_ms([], 99) is None


def test_goodput_leaves_out_what_came_late() -> None:
    found = Opened(2.0, sent=5, in_time=3, answered_s=[0.1] * 4, rejected_s=[0.1], late_s=[0.0] * 5, failures={})
    assert found.goodput_per_s == 1.5


def test_what_wrk_says_is_read() -> None:
    line = (
        '{"answers": 12, "seconds": 2.0, "p50_ms": 1.5, "p90_ms": 2.5, "p99_ms": 3.5, '
        '"failures": {"404": 3, "429": 1, "timeout": 2}}'
    )
    found = Closed.read(line)
    assert (found.answered, found.requests_per_s) == (8, 4.0)
    assert (found.p50_ms, found.p90_ms, found.p99_ms) == (1.5, 2.5, 3.5)
    assert found.failures == {"404": 3, "429": 1, "timeout": 2}


def test_wrk_that_is_not_installed_is_named_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(WrkError, match="apt-get install wrk"):
        find_wrk()


@pytest.mark.slow
def test_wrk_sends_requests_in_turn_and_counts_answers_by_status() -> None:
    if shutil.which("wrk") is None:
        pytest.skip("wrk is not installed")
    came: dict[str, int] = {}

    async def answer(path: str) -> bytes:
        came[path] = came.get(path, 0) + 1
        return await by_path(path)

    with answering(answer) as url:
        found = run_wrk(url, asking("/200", "/404", "/200"), connections=3, seconds=1)
    assert found.failures.keys() == {"404"}
    assert found.answered == pytest.approx(came["/200"], abs=3)  # up to one a connection is asked when wrk ends
    assert found.failures["404"] == pytest.approx(came["/404"], abs=3)
    assert came["/200"] == pytest.approx(2 * came["/404"], abs=2)
    assert 0 < found.seconds < 60
    assert 0 < found.p50_ms <= found.p90_ms <= found.p99_ms


@pytest.mark.slow
def test_wrk_without_a_server_is_an_error() -> None:
    if shutil.which("wrk") is None:
        pytest.skip("wrk is not installed")
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        with pytest.raises(WrkError, match="wrk ended with status 1"):
            run_wrk(f"http://127.0.0.1:{unheard.getsockname()[1]}", asking("/200"), connections=1, seconds=1)
