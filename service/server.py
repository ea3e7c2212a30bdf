"""Run the application: listen, drain on a signal, leave when an engine has died."""

import asyncio
import math
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import cast

import uvicorn
from fastapi import FastAPI

from service.listener import listen, turn_away
from service.protocol import Protocol
from service.settings import Settings
from service.state import State
from service.turning_away import TurningAway

KEEP_ALIVE_S = 75
"""Longer than load balancers keep idle connections (60 s), so that it is never the server who closes one in use."""
HEAR_OUT_S = 1.0
"""How long, at the end, a connection that has asked nothing yet is waited for: its request may be on its way."""
HANDSHAKE_S = 0.1
"""How long who has begun to connect is waited for: a round trip."""


class DrainingServer(uvicorn.Server):
    """uvicorn's server, except for how it ends.

    Readiness fails, a delay passes, the listener closes, what was accepted is answered.
    """

    def __init__(self, app: FastAPI, state: State) -> None:
        turning_away = TurningAway(state, state.admission)
        protocol = partial(Protocol, admission=state.admission, turning_away=turning_away)
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                http=cast(type[asyncio.Protocol], protocol),
                lifespan="on",
                timeout_keep_alive=KEEP_ALIVE_S,
                ws="none",
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=math.ceil(state.settings.drain_timeout_s),
            )
        )
        self._state = state
        self._leave_at = math.inf

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen.

        Raises:
            StartError: another server does so already.
        """
        for listener in sockets or []:
            listen(listener, self.config.backlog)
        await super().startup(sockets)

    def drain(self, delay_s: float) -> None:
        """Fail readiness, and leave in `delay_s`, or sooner if that was said before."""
        self._state.draining = True
        self._leave_at = min(self._leave_at, time.monotonic() + delay_s)

    async def on_tick(self, counter: int) -> bool:
        """Look, ten times a second, whether it is time to leave."""
        return await super().on_tick(counter) or time.monotonic() >= self._leave_at

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, hear out whoever has connected, answer, and close."""
        listeners = [listener.dup() for listener in sockets or []]
        for listener in listeners:
            turn_away(listener)
        await asyncio.sleep(HANDSHAKE_S)
        for server in self.servers:
            server.close()
        for listener in listeners:
            await self._accept_the_last(listener)
        await self._hear_out()
        await super().shutdown(sockets)

    async def _accept_the_last(self, listener: socket.socket) -> None:
        """Serve the connections that wait in the kernel; closing the listener would reset them."""
        listener.setblocking(False)
        connections = []
        with suppress(OSError):
            while True:
                connections.append(listener.accept()[0])
        listener.close()
        for connection in connections:
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> asyncio.Protocol:
        make = cast(Callable[..., asyncio.Protocol], self.config.http_protocol_class)
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    async def _hear_out(self) -> None:
        """Wait for the first request of every connection that has made none yet."""
        until = time.monotonic() + HEAR_OUT_S
        while time.monotonic() < until and any(_silent(connection) for connection in self.server_state.connections):
            await asyncio.sleep(0.01)


class Server(DrainingServer):
    """The one process that serves and runs the models.

    SIGTERM: it drains, with `drain_delay_s`. SIGINT, or the death of an engine: the same without the delay. A second
    signal: at once.
    """

    def __init__(self, app: FastAPI, settings: Settings, greeting: str) -> None:
        super().__init__(app, app.state.service)
        self._drain_delay_s = settings.drain_delay_s
        self._greeting = greeting
        self._signalled = False

    @property
    def engine_died(self) -> bool:
        """Whether an engine has died, at any time."""
        return any(engine.health == "died" for engine in self._state.models.engines)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        print(self._greeting, flush=True)  # noqa: T201

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Begin to drain, or leave at once if that was begun already."""
        if self._signalled:
            self.force_exit = self.should_exit = True
        else:
            self._signalled = True
            self.drain(self._drain_delay_s if sig == signal.SIGTERM else 0.0)

    async def on_tick(self, counter: int) -> bool:
        """Look, ten times a second, whether an engine has died."""
        if self.engine_died:
            self.drain(0.0)
        return await super().on_tick(counter)


def _silent(connection: object) -> bool:
    """Whether a connection of httptools has not asked anything yet."""
    return getattr(connection, "cycle", None) is None
