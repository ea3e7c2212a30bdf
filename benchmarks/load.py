"""Load on an HTTP server, in a closed loop: each connection asks again as soon as it is answered.

Light, because it shares the processor with what it measures: requests are made beforehand, answers are parsed by
httptools and thrown away, and nothing else runs in between.
"""

import asyncio
import itertools
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httptools
import numpy as np
import uvloop

LAST_ANSWER_S = 30.0
"""How long answers are awaited after the last request was sent."""
RECONNECT_S = 0.1
LOST = "connection lost"
REFUSED = "connection refused"
UNREADABLE = "unreadable answer"
MISSING = "no answer"


@dataclass(frozen=True)
class Outcome:
    """What a load met. `latencies_s` are those of answers of status 200; all else is in `failures`, by status or cause.

    `seconds` last from the first request to the last answer.
    """

    seconds: float
    latencies_s: list[float]
    failures: dict[str, int]

    @property
    def requests_per_s(self) -> float:
        """Successful requests a second."""
        return len(self.latencies_s) / self.seconds

    def latency_ms(self, percentile: float) -> float:
        """Return a percentile of the successful requests' latencies; NaN without any."""
        return 1000 * float(np.percentile(self.latencies_s, percentile)) if self.latencies_s else math.nan


def http_post(path: str, content_type: str, body: bytes) -> bytes:
    """Return a whole POST request."""
    head = f"POST {path} HTTP/1.1\r\nHost: benchmark\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


def run_load(
    url: str,
    requests: Sequence[bytes],
    *,
    connections: int,
    seconds: float = math.inf,
    max_requests: float = math.inf,
) -> Outcome:
    """Send `requests` in turn, over and over, until `seconds` have passed or `max_requests` are sent."""
    return uvloop.run(_run(url, requests, connections, seconds, max_requests))


async def _run(url: str, requests: Sequence[bytes], connections: int, seconds: float, max_requests: float) -> Outcome:
    address, begun = urlsplit(url), time.perf_counter()
    load = _Load(itertools.cycle(requests), begun + seconds, max_requests)
    asking = [
        asyncio.ensure_future(_keep_asking(load, address.hostname or "", address.port or 80))
        for _ in range(connections)
    ]
    _, unanswered = await asyncio.wait(asking, timeout=None if math.isinf(seconds) else seconds + LAST_ANSWER_S)
    for connection in unanswered:
        connection.cancel()
        load.failed(MISSING)
    return Outcome(load.last_answer_at - begun, load.latencies_s, dict(load.failures))


@dataclass
class _Load:
    """What all connections share: what to send, until when, and what came back."""

    requests: "itertools.cycle[bytes]"
    until: float
    left: float
    latencies_s: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    last_answer_at: float = 0.0

    @property
    def is_over(self) -> bool:
        return self.left <= 0 or time.perf_counter() >= self.until

    def next_request(self) -> bytes | None:
        """Return what to send, or None if it is over."""
        if self.is_over:
            return None
        self.left -= 1
        return next(self.requests)

    def answered(self, status: int, sent_at: float) -> None:
        if status != 200:
            self.failed(str(status))
            return
        self.last_answer_at = time.perf_counter()
        self.latencies_s.append(self.last_answer_at - sent_at)

    def failed(self, cause: str) -> None:
        self.last_answer_at = time.perf_counter()
        self.failures[cause] += 1


async def _keep_asking(load: _Load, host: str, port: int) -> None:
    """Use one connection, and another in its place when the server closes it."""
    loop = asyncio.get_running_loop()
    while not load.is_over:
        try:
            transport, connection = await loop.create_connection(lambda: _Connection(load), host, port)
        except OSError:
            load.left -= 1
            load.failed(REFUSED)
            await asyncio.sleep(RECONNECT_S)
            continue
        try:
            await connection.closed.wait()
        finally:
            transport.abort()


class _Connection(asyncio.Protocol):
    """One connection: a request, its answer, the next request."""

    def __init__(self, load: _Load) -> None:
        self.closed = asyncio.Event()
        self._load = load
        self._answer = httptools.HttpResponseParser(self)
        self._transport: Any = None
        self._sent_at: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        try:
            self._answer.feed_data(data)
        except httptools.HttpParserError:
            self._sent_at = None
            self._load.failed(UNREADABLE)
            self._transport.abort()

    def on_message_complete(self) -> None:
        """Note an answer that is whole; httptools calls this."""
        self._load.answered(self._answer.get_status_code(), self._sent_at or 0.0)
        self._sent_at = None
        if self._answer.should_keep_alive():
            self._ask()
        else:
            self._transport.close()

    def connection_lost(self, _: Exception | None) -> None:
        if self._sent_at is not None:
            self._load.failed(LOST)
        self.closed.set()

    def _ask(self) -> None:
        request = self._load.next_request()
        if request is None:
            self._transport.close()
            return
        self._sent_at = time.perf_counter()
        self._transport.write(request)
