"""The supervisor's end of a child."""

import asyncio
import socket

import pytest

from service.processes.child import Child
from service.processes.control import Control, Order, Report


def test_a_child_that_ends_without_reading_what_it_was_sent_has_ended() -> None:
    """Its end of the channel is reset then, not closed."""

    async def run() -> int:
        with socket.socket() as inherited:
            child = await Child.start("__future__", Order(kind="leave"), inherited, silence_s=10)
            return await child.ended()

    assert asyncio.run(run()) == 0


@pytest.mark.parametrize("error", [ConnectionResetError(), BrokenPipeError()])
def test_a_child_whose_channel_breaks_has_ended(error: ConnectionError) -> None:
    """The pipe is broken where it was told something after its end, and before that was read from its channel."""

    async def run() -> int:
        with socket.socket() as inherited:
            child = await Child.start("__future__", Order(kind="leave"), inherited, silence_s=10)
            child._reader.set_exception(error)
            return await child.ended()

    assert asyncio.run(run()) == 0


def test_however_long_a_reason_is_its_line_is_taken() -> None:
    """Errors of all models are joined in it, compilers' among them; a stream reads lines of 64 KiB at most."""

    async def run() -> Report:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        control = Control.__new__(Control)  # its making would tie this process to its parent
        control._socket = theirs
        with theirs:
            await asyncio.to_thread(control.report, "failed", "\x00" * 200_000)
        line = await reader.readline()
        writer.close()
        return Report.model_validate_json(line)

    report = asyncio.run(run())
    assert report.kind == "failed"
    assert 1000 < len(report.text) < 200_000
