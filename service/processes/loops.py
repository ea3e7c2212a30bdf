"""The event loop of every process that moves requests: uvloop where there is one, as uvicorn chooses it."""

import asyncio
from collections.abc import Callable

import uvicorn


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes the loop that a server of one process has."""
    return uvicorn.Config("", log_config=None).get_loop_factory()
