"""The supervisor's end of a child."""

import asyncio
import socket

from service.processes.child import Child
from service.processes.control import Order


def test_a_child_that_ends_without_reading_what_it_was_sent_has_ended() -> None:
    """Its end of the channel is reset then, not closed."""

    async def run() -> int:
        with socket.socket() as inherited:
            child = await Child.start("__future__", Order(kind="leave"), inherited, silence_s=10)
            return await child.ended()

    assert asyncio.run(run()) == 0
