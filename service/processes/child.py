"""The supervisor's end of a child: a process of the server, from its start to its end."""

import asyncio
import os
import socket
import sys
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import service
from service.processes.control import Message, Order, Report

MISSES = 2
"""How many times in a row a child may say nothing in its time. Not one: all processes may have been stopped at once."""


class Child:
    """A process that says when it is ready, and that it lives; one that falls silent after that is killed."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        silence_s: float,
    ) -> None:
        self.pid = process.pid
        self.reason = ""
        self._process = process
        self._reader = reader
        self._writer = writer
        self._silence_s = silence_s
        self._ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._end = asyncio.ensure_future(self._live())

    @classmethod
    async def start(cls, module: str, config: Message, inherited: socket.socket, *, silence_s: float) -> "Child":
        """Start `python -m module` with its configuration.

        Args:
            module: has a `main` that talks through `Control`.
            config: what it reads first.
            inherited: what it has under the same descriptor as this process.
            silence_s: how long it may say nothing, once it is ready, before it is taken to hang.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", module, str(theirs.fileno())),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), inherited.fileno()),
                env=os.environ | {"PYTHONPATH": os.pathsep.join([_root(), *_python_path()])},
            )
        reader, writer = await asyncio.open_connection(sock=ours)
        child = cls(process, reader, writer, silence_s)
        child._send(config)
        return child

    @property
    def is_ready(self) -> bool:
        """Whether it said so, and lives."""
        return self._ready.done() and not self._end.done()

    def order(self, order: Order) -> None:
        """Tell it what to do."""
        self._send(order)

    def kill(self) -> None:
        """End it at once."""
        if self._process.returncode is None:
            self._process.kill()

    async def ready(self) -> str | None:
        """Wait until it is; return its word for the user, or None if it ended before."""
        either: set[asyncio.Future[Any]] = {self._ready, self._end}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return self._ready.result() if self._ready.done() else None

    async def ended(self) -> int:
        """Wait for its end; return its exit status, below 0 that of the signal that killed it."""
        return await asyncio.shield(self._end)

    async def _live(self) -> int:
        listening = asyncio.ensure_future(self._listen())
        status = await self._process.wait()
        await listening  # to the last word
        self._writer.close()
        self.reason = self.reason or f"it ended with status {status}"
        return status

    async def _listen(self) -> None:
        misses = 0
        while True:
            try:
                async with asyncio.timeout(self._silence_s / MISSES if self._ready.done() else None):
                    line = await self._reader.readline()
            except TimeoutError:
                misses += 1
                if misses >= MISSES:
                    self.reason = f"it said nothing for {self._silence_s:g} s"
                    self.kill()
                    return
                continue
            except ConnectionError:  # it ended with something unread, or was told something after its end
                return
            if not line:
                return
            misses = 0
            self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            report = Report.model_validate_json(line)
        except ValidationError:  # cut off by its end
            return
        if report.kind == "ready" and not self._ready.done():
            self._ready.set_result(report.text)
        elif report.kind == "failed":
            self.reason = report.text

    def _send(self, message: Message) -> None:
        if not self._writer.is_closing():
            self._writer.write(message.model_dump_json().encode() + b"\n")


def _root() -> str:
    """Return the folder that this package was imported from, so that children import the same."""
    return str(Path(service.__file__).parents[1])


def _python_path() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
