"""Requests to an application through the server's own protocol, in this process: no socket, no kernel, no client.

What is left is what a request costs in Python.
"""

import asyncio
import sys
import time
from typing import Any

import uvicorn
import uvloop
from starlette.types import ASGIApp
from uvicorn.server import ServerState

from service.admission import Admission
from service.protocol import Protocol
from service.turning_away import TurningAway

DATE = (b"date", b"Thu, 01 Jan 1970 00:00:00 GMT")
"""The header that uvicorn sends with every answer; there it is made anew once a second."""


class Frontend:
    """An application behind the protocol that it is served with, and the requests that it is to answer."""

    def __init__(self, app: ASGIApp, turning_away: TurningAway | None = None) -> None:
        """Serve an application; or turn every request away instead."""
        self._entrance: dict[str, Any] = {
            "admission": Admission(served=0 if turning_away else sys.maxsize, waiting=0),
            "turning_away": turning_away,
        }
        self._config = uvicorn.Config(
            app, http=_Connection, log_config=None, access_log=False, server_header=False, lifespan="off", ws="none"
        )
        self._config.load()

    def cpu_us(self, request: bytes, *, status: int, connections: int, requests: int) -> float:
        """Return the CPU microseconds of all threads that one of many requests took.

        Args:
            request: sent over and over, by each connection as soon as it is answered.
            status: what each answer must have.
            connections: requests that are under way at once.
            requests: how many in all.

        Raises:
            RuntimeError: an answer had another status.
        """
        return uvloop.run(self._drive(_Load(request, status, requests), connections))

    async def _drive(self, load: "_Load", connections: int) -> float:
        shared = ServerState()
        shared.default_headers = [DATE]
        clients = [_Connection(self._config, shared, {}, **self._entrance) for _ in range(connections)]
        for client in clients:
            client.connection_made(_Transport(load))
        requests, begun = load.left, time.process_time()
        await asyncio.gather(*(client.ask(load) for client in clients))
        spent_s = time.process_time() - begun
        for client in clients:
            client.connection_lost(None)
        if load.failures:
            raise RuntimeError(f"answers begin with {load.failures}; all should be of status {load.status}")
        return 1e6 * spent_s / requests


class _Load:
    """What all connections share."""

    def __init__(self, request: bytes, status: int, requests: int) -> None:
        self.request = request
        self.status = status
        self.left = requests
        self.failures: set[bytes] = set()
        self._expected = b"HTTP/1.1 %d " % status

    def check(self, data: bytes) -> None:
        """Look at what a server writes: an answer's head, or its body."""
        if data.startswith(b"HTTP/1.1 ") and not data.startswith(self._expected):
            self.failures.add(data[:40])


class _Connection(Protocol):
    """The server's side of a connection, which feeds itself: a request, its answer, the next request."""

    def ask(self, load: _Load) -> "asyncio.Future[None]":
        """Begin; the future is done with the last answer."""
        self._load, self._finished = load, self.loop.create_future()
        self._next()
        return self._finished

    def on_response_complete(self) -> None:
        """Go on with the next request, once this one's task is through."""
        super().on_response_complete()
        self.loop.call_soon(self._next)

    def _next(self) -> None:
        if self._load.left > 0:
            self._load.left -= 1
            self.data_received(self._load.request)
        else:
            self._finished.set_result(None)


class _Transport(asyncio.Transport):
    """Takes what the server writes to a connection."""

    def __init__(self, load: _Load) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self._load = load

    def write(self, data: Any) -> None:
        self._load.check(data)

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass
