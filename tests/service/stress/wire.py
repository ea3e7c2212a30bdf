"""Clients that speak HTTP by hand, on sockets, well and badly."""

import asyncio
import socket
import struct
from contextlib import suppress
from random import Random
from typing import Literal, NamedTuple

import httpx
from bodies import Body

Leave = Literal["connected", "in_head", "in_body", "sent", "in_reply", "half_closed", "stays"]
LEAVES: tuple[Leave, ...] = ("connected", "in_head", "in_body", "sent", "in_reply", "half_closed", "stays")
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: closing sends RST."""
PATIENCE_S = 60.0


class Reply(NamedTuple):
    """An answer; its body may be cut."""

    status: int
    content: bytes


class Client:
    """One connection, all of whose pauses and leaps come from one generator."""

    def __init__(self, url: str, random: Random) -> None:
        address = httpx.URL(url)
        self._address = address.host, address.port or 0
        self._random = random

    async def ask(self, body: Body, leave: Leave) -> Reply | None:
        """Send a request and go at some point; return what came, None if nothing did."""
        reader, writer = await asyncio.open_connection(*self._address)
        try:
            async with asyncio.timeout(PATIENCE_S):
                with suppress(ConnectionError):
                    return await self._talk(reader, writer, body, leave)
        finally:
            if self._random.random() < 0.5 and leave != "stays":
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
        return None

    async def _talk(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: Body, leave: Leave
    ) -> Reply | None:
        head = body.head()
        cut = {
            "connected": 0,
            "in_head": self._random.randrange(1, len(head)),
            "in_body": len(head) + self._random.randrange(len(body.content)),
        }
        await self._send(writer, (head + body.content)[: cut.get(leave)])
        if leave in cut or leave == "sent":
            await self._pause()
            return None
        if leave == "half_closed":
            writer.write_eof()
        return await self._read(reader, whole=leave != "in_reply")

    async def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        """Send all of it at once, or in a few pieces and slowly."""
        pieces = self._random.choice((1, 1, 1, 2, 5))
        step = max(1, -(-len(data) // pieces))
        for at in range(0, len(data), step):
            writer.write(data[at : at + step])
            await writer.drain()
            if pieces > 1:
                await self._pause()

    async def _pause(self) -> None:
        await asyncio.sleep(self._random.choice((0.0, 0.001, 0.02)))

    async def _read(self, reader: asyncio.StreamReader, *, whole: bool) -> Reply | None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return None
        headers = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:-2])
        length = int(headers[b"content-length"]) if whole else 1
        return Reply(int(head.split()[1]), await reader.readexactly(length))
