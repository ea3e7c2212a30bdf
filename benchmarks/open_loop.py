"""Load on an HTTP server in an open loop: requests come when they come, whether earlier ones are answered or not.

Arrivals are Poisson. A request's latency counts from the moment it was due, so that whatever holds it up is in it, the
generator too (no coordinated omission). Light, because it shares the processor with what it measures: requests are made
beforehand, answers are parsed by httptools and thrown away.
"""

import asyncio
import itertools
import math
import resource
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httptools
import numpy as np
import uvloop
from numpy.typing import NDArray

LAST_ANSWER_S = 30.0
"""How long answers are awaited after the last request was due."""
LOST = "connection lost"
REFUSED = "connection refused"
UNREADABLE = "unreadable answer"
MISSING = "no answer"
OK, TOO_MANY_REQUESTS = 200, 429


@dataclass(frozen=True)
class Opened:
    """What an open loop met in `seconds`: `sent` requests, each answered, rejected (429) or failed, by status or cause.

    Latencies are seconds from when a request was due; `late_s` how long after that it was sent. `in_time` of those
    that were answered were so before the `seconds` were over.
    """

    seconds: float
    sent: int
    in_time: int
    answered_s: list[float]
    rejected_s: list[float]
    late_s: list[float]
    failures: dict[str, int]

    @property
    def goodput_per_s(self) -> float:
        """Answers of status 200 a second, while requests came."""
        return self.in_time / self.seconds


def percentile_ms(seconds: Sequence[float], percentile: float) -> float | None:
    """Return a percentile in milliseconds; None of nothing."""
    return round(1000 * float(np.percentile(seconds, percentile)), 3) if seconds else None


def poisson_arrivals(rate_per_s: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Return when requests are due, in seconds from the start, ascending, all before `seconds`.

    Raises:
        ValueError: the rate is not above 0.
    """
    if not rate_per_s > 0:
        raise ValueError(f"rate_per_s is {rate_per_s}; it must be above 0")
    random, expected = np.random.default_rng(seed), rate_per_s * seconds
    gaps = random.exponential(1 / rate_per_s, math.ceil(expected + 10 * math.sqrt(expected) + 10))
    due = np.cumsum(gaps)
    return due[due < seconds]


def run_open_loop(url: str, requests: Sequence[bytes], *, rate_per_s: float, seconds: float, seed: int = 0) -> Opened:
    """Send `requests` in turn, over and over, `rate_per_s` of them a second on average."""
    due = poisson_arrivals(rate_per_s, seconds, seed)
    _allow_files(len(due))
    return uvloop.run(_run(url, requests, due, seconds))


async def _run(url: str, requests: Sequence[bytes], due: NDArray[np.float64], seconds: float) -> Opened:
    address, begun = urlsplit(url), time.perf_counter()
    load = _Load(address.hostname or "", address.port or 80, begun + seconds)
    for at, request in zip((begun + due).tolist(), itertools.cycle(requests), strict=False):
        await asyncio.sleep(max(at - time.perf_counter(), 0.0))  # answers are read even where requests are late
        load.send(request, at)
    await load.finish(seconds + begun + LAST_ANSWER_S)
    return Opened(seconds, len(due), load.in_time, load.answered_s, load.rejected_s, load.late_s, dict(load.failures))


@dataclass(frozen=True)
class _Due:
    """A request and when it is due."""

    request: bytes
    at: float


@dataclass
class _Load:
    """What all connections share; as many are opened as there are requests under way at once."""

    host: str
    port: int
    until: float
    in_time: int = 0
    answered_s: list[float] = field(default_factory=list)
    rejected_s: list[float] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    under_way: int = 0
    idle: "list[_Connection]" = field(default_factory=list)
    opening: "set[asyncio.Task[None]]" = field(default_factory=set)
    open: "set[_Connection]" = field(default_factory=set)

    def send(self, request: bytes, at: float) -> None:
        """Send a request on an idle connection, or on a new one."""
        self.under_way += 1
        due = _Due(request, at)
        if self.idle:
            self.idle.pop().ask(due)
            return
        task = asyncio.ensure_future(self._open(due))
        self.opening.add(task)
        task.add_done_callback(self.opening.discard)

    async def finish(self, until: float) -> None:
        """Wait for the last answers, close all connections, and count what is missing."""
        while self.under_way and time.perf_counter() < until:
            await asyncio.sleep(0.01)
        for task in self.opening:
            task.cancel()
        missing, self.under_way = self.under_way, 0
        if missing:
            self.failures[MISSING] += missing
        for connection in list(self.open):
            connection.abort()

    def sent(self, due: _Due) -> None:
        self.late_s.append(time.perf_counter() - due.at)

    def answered(self, status: int, due: _Due) -> None:
        now = time.perf_counter()
        self.under_way -= 1
        if status == OK:
            self.answered_s.append(now - due.at)
            self.in_time += now <= self.until
        elif status == TOO_MANY_REQUESTS:
            self.rejected_s.append(now - due.at)
        else:
            self.failures[str(status)] += 1

    def failed(self, cause: str) -> None:
        self.under_way -= 1
        self.failures[cause] += 1

    async def _open(self, due: _Due) -> None:
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: _Connection(self), self.host, self.port
            )
        except OSError:
            self.failed(REFUSED)
            return
        connection.ask(due)


class _Connection(asyncio.Protocol):
    """One connection: a request, its answer, then idle until the next request."""

    def __init__(self, load: _Load) -> None:
        self._load = load
        self._answer = httptools.HttpResponseParser(self)
        self._transport: Any = None
        self._due: _Due | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._load.open.add(self)

    def ask(self, due: _Due) -> None:
        """Send a request."""
        if self._transport.is_closing():
            self._load.failed(LOST)
            return
        self._due = due
        self._transport.write(due.request)
        self._load.sent(due)

    def abort(self) -> None:
        """Close at once; what is still asked was counted already."""
        self._due = None
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            self._answer.feed_data(data)
        except httptools.HttpParserError:
            self._fail(UNREADABLE)
            self._transport.abort()

    def on_message_complete(self) -> None:
        """Note an answer that is whole; httptools calls this."""
        due, self._due = self._due, None
        if due is None:
            return
        self._load.answered(self._answer.get_status_code(), due)
        if self._answer.should_keep_alive():
            self._load.idle.append(self)
        else:
            self._transport.close()

    def connection_lost(self, _: Exception | None) -> None:
        self._load.open.discard(self)
        if self in self._load.idle:
            self._load.idle.remove(self)
        self._fail(LOST)

    def _fail(self, cause: str) -> None:
        if self._due is not None:
            self._due = None
            self._load.failed(cause)


def _allow_files(requests: int) -> None:
    """Let this process have a connection for each request at once, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = requests + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
