"""What a supervisor hears of its processes, without any."""

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from service.errors import StartError
from service.processes.supervisor import Supervisor
from service.settings import Settings


class Kept:
    """A process that gets ready at once or never, and that is given up or never is."""

    def __init__(self, *, ready: bool, given_up: bool) -> None:
        self._ready = ready
        self._given_up = given_up

    def begin(self) -> None:
        """Nothing is started."""

    async def first(self) -> str:
        if not self._ready:
            await asyncio.Event().wait()
        return "hello"

    async def gave_up(self) -> None:
        if not self._given_up:
            await asyncio.Event().wait()
        raise StartError("it did not start again, 4 times in a row")


def supervisor(engine: Kept, *workers: Kept) -> Supervisor:
    found = Supervisor(Settings(workers=2), cast("Any", None), cast("Any", None), Path())
    found._engine, found._workers = cast("Any", engine), cast("Any", list(workers))
    found._keepers = cast("Any", [engine, *workers])
    return found


def test_an_engine_that_is_gone_before_its_workers_are_ready_ends_the_server(capsys: pytest.CaptureFixture) -> None:
    """They wait for it, and would for ever."""
    waiting = Kept(ready=False, given_up=False)

    async def run() -> None:
        async with asyncio.timeout(5):
            await supervisor(Kept(ready=True, given_up=True), waiting, waiting)._serve()

    with pytest.raises(StartError, match="4 times in a row"):
        asyncio.run(run())
    assert capsys.readouterr().out == ""


def test_a_worker_that_is_gone_for_good_ends_the_server_that_was_ready(capsys: pytest.CaptureFixture) -> None:
    well = Kept(ready=True, given_up=False)

    async def run() -> None:
        async with asyncio.timeout(5):
            await supervisor(well, well, Kept(ready=True, given_up=True))._serve()

    with pytest.raises(StartError, match="4 times in a row"):
        asyncio.run(run())
