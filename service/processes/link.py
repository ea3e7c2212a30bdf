"""A worker's end of its connection to the engine's process: many requests at once, each with its answer."""

import asyncio
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import cast

from service.errors import EngineDiedError
from service.processes.frames import FrameReader, Kind, pack
from service.processes.messages import Status, Welcome, unpack_refusal, unpack_statuses

GONE = "the engine's process has ended; a new one is being started"


class EngineLink(asyncio.Protocol):
    """Sends requests and hands out their answers. When the connection ends, every request that waits fails at once."""

    def __init__(self, counts: Callable[[], bytes]) -> None:
        """Make one end; `counts` gives the payload of COUNTS, empty if there is nothing to tell."""
        loop = asyncio.get_running_loop()
        self.welcome: asyncio.Future[Welcome] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        self.statuses: list[Status] = []
        self.heard_at = time.monotonic()
        self._loop = loop
        self._counts = counts
        self._reader = FrameReader()
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._ids = count(1)
        self._outbox: list[bytes | memoryview] = []
        self._transport: asyncio.Transport | None = None

    async def request(self, kind: Kind, parts: Sequence[bytes | memoryview]) -> bytes:
        """Ask, and await the answer's payload; cancelling it tells the other end.

        Raises:
            EngineDiedError: the engine's process is gone, or went meanwhile.
            ServiceError: what the other end answers.
        """
        if self.closed.done():
            raise EngineDiedError(GONE)
        number = next(self._ids)
        answer: asyncio.Future[bytes] = self._loop.create_future()
        self._waiting[number] = answer
        self._send(kind, number, parts)
        try:
            return await answer
        except asyncio.CancelledError:
            if self._waiting.pop(number, None) is not None:
                self._send(Kind.CANCEL, number, ())
            raise

    @property
    def unsent_bytes(self) -> int:
        """Bytes that the other end has not read yet."""
        written = 0 if self._transport is None else self._transport.get_write_buffer_size()
        return written + sum(map(len, self._outbox))

    def tell_counts(self, number: int = 0) -> None:
        """Send what was counted, if that is anything, or if the other end asks for it by a number."""
        payload = b"" if self.closed.done() else self._counts()
        if payload or number:
            self._send(Kind.COUNTS, number, (payload,))

    async def close(self) -> None:
        """Send what was counted and whatever else is to be sent, and hang up."""
        self.tell_counts()
        self._flush()
        if self._transport is not None:
            self._transport.close()
        await self.closed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Fail all that waits."""
        self.closed.set_result(None)
        if not self.welcome.done():
            self.welcome.set_exception(EngineDiedError(GONE))
            self.welcome.exception()  # whether or not somebody awaits it
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(EngineDiedError(GONE))
        self._waiting.clear()

    def data_received(self, data: bytes) -> None:
        """Hand out what came."""
        self.heard_at = time.monotonic()
        for kind, number, payload in self._reader.feed(data):
            match kind:
                case Kind.VERDICTS | Kind.METRICS | Kind.WATCHED | Kind.REFUSAL:
                    self._answer(number, payload, refused=kind is Kind.REFUSAL)
                case Kind.STATUS:
                    self.statuses = unpack_statuses(payload)
                case Kind.FLUSH:
                    self.tell_counts(number)
                case Kind.WELCOME:
                    self.welcome.set_result(Welcome.model_validate_json(payload))

    def _answer(self, number: int, payload: bytes, *, refused: bool) -> None:
        answer = self._waiting.pop(number, None)
        if answer is None or answer.done():  # it was cancelled meanwhile
            return
        if refused:
            answer.set_exception(unpack_refusal(payload))
        else:
            answer.set_result(payload)

    def _send(self, kind: Kind, number: int, parts: Sequence[bytes | memoryview]) -> None:
        """Send with whatever else is sent in this turn of the loop, in one write."""
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox += [pack(kind, number, sum(map(len, parts))), *parts]

    def _flush(self) -> None:
        if self._outbox and self._transport is not None and not self.closed.done():
            self._transport.write(b"".join(self._outbox))
        self._outbox.clear()


async def connect(path: Path, counts: Callable[[], bytes]) -> EngineLink:
    """Connect to the engine's process and await its WELCOME, for as long as it loads.

    Raises:
        EngineDiedError: it ended before that.
        OSError: nobody listens.
    """
    _, link = await asyncio.get_running_loop().create_unix_connection(lambda: EngineLink(counts), str(path))
    await link.welcome
    return link
