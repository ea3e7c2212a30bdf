"""Await on the event loop what another thread resolves."""

import asyncio
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


async def result_of(future: "Future[T]") -> T:
    """Return a future's result, or raise its error, once it has one; cancelling this cancels it.

    As `asyncio.wrap_future`, which does more for each.
    """
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    future.add_done_callback(lambda _: None if loop.is_closed() else loop.call_soon_threadsafe(_wake, done))
    try:
        await done
    except asyncio.CancelledError:
        future.cancel()
        raise
    try:
        return future.result()
    finally:
        del future  # an error's traceback holds this frame, and the future the error: a cycle


def _wake(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)
