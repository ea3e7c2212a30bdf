"""A child's end of its channel to the supervisor: JSON lines over a socket pair. Its end is the child's end."""

import asyncio
import ctypes
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from service.settings import Settings

MAX_TEXT = 10_000
"""Characters of a report: whatever they are, its line is shorter than a stream's limit, 64 KiB."""
HEARTBEAT_S = 1.0
"""How often a child whose loop turns says so."""
_PR_SET_PDEATHSIG = 1


class Message(BaseModel):
    """Frozen; unknown fields are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class EngineConfig(Message):
    """What an engine's process is told at its start: settings, URL, the socket to listen on, what has been replaced."""

    settings: dict[str, Any]
    url: str
    listener: int
    restarts: dict[str, int]


class WorkerConfig(Message):
    """What a worker is told at its start: which it is, the socket to accept on, and where the engine's process is."""

    settings: dict[str, Any]
    index: int
    listener: int
    engine: Path


class Report(Message):
    """What a child says: that it lives; that it is ready, with a word for the user; or why it must end."""

    kind: Literal["alive", "ready", "failed"]
    text: str = ""


class Order(Message):
    """What the supervisor says: to leave, `delay_s` from now; or how often processes have been replaced."""

    kind: Literal["leave", "restarts"]
    delay_s: float = 0.0
    restarts: dict[str, int] = {}


Config = TypeVar("Config", bound=Message)


class Control:
    """The channel. Signals are for the supervisor, who then orders; when it is gone, so is this process."""

    def __init__(self, descriptor: int) -> None:
        """Take the channel's end and ignore what a terminal or an init system sends to every process at once."""
        _die_with_parent()
        for ignored in (signal.SIGINT, signal.SIGTERM):
            signal.signal(ignored, lambda *_: None)  # unlike SIG_IGN, not for what a runtime starts in turn
        self._socket = socket.socket(fileno=descriptor)
        self._lines = self._socket.makefile("r")

    def config(self, kind: type[Config]) -> Config:
        """Return what the process is told at its start."""
        return kind.model_validate_json(self._lines.readline())

    def orders(self, loop: asyncio.AbstractEventLoop) -> asyncio.Queue[Order]:
        """Return where the supervisor's orders will come; from now on, when it is gone, so is this process."""
        queue: asyncio.Queue[Order] = asyncio.Queue()
        Thread(target=self._listen, args=(loop, queue), name="control", daemon=True).start()
        return queue

    def report(self, kind: Literal["alive", "ready", "failed"], text: str = "") -> None:
        """Tell the supervisor; a sign of life is lost rather than waited for, should it be stopped."""
        line = Report(kind=kind, text=text[:MAX_TEXT]).model_dump_json() + "\n"
        flags = socket.MSG_DONTWAIT if kind == "alive" else 0
        with suppress(BlockingIOError, BrokenPipeError):
            self._socket.sendall(line.encode(), flags)

    async def live(self) -> None:
        """Tell the supervisor, again and again, that the loop turns."""
        while True:
            self.report("alive")
            await asyncio.sleep(HEARTBEAT_S)

    def _listen(self, loop: asyncio.AbstractEventLoop, queue: asyncio.Queue[Order]) -> None:
        try:
            for line in self._lines:
                loop.call_soon_threadsafe(queue.put_nowait, Order.model_validate_json(line))
        finally:
            os._exit(1)


def revived(values: dict[str, Any]) -> Settings:
    """Return the settings that `plain` was made of."""
    return Settings(**values)


def plain(settings: Settings) -> dict[str, Any]:
    """Return settings as JSON has them, secrets in the clear: for a channel between our own processes alone."""
    return settings.model_dump(mode="json") | {"api_keys": [key.get_secret_value() for key in settings.api_keys]}


def _die_with_parent() -> None:
    """Have Linux kill this process when its parent ends, should it hang and not see the channel close."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
