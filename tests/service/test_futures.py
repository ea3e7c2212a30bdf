"""What another thread resolves, awaited on the event loop."""

import asyncio
import gc
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from threading import Thread
from weakref import ref

import pytest

from service.futures import result_of


def resolved_elsewhere(resolve: Callable[["Future[int]"], None]) -> int:
    async def ask() -> int:
        future: Future[int] = Future()
        Thread(target=resolve, args=(future,)).start()
        return await asyncio.wait_for(result_of(future), 10)

    return asyncio.run(ask())


def test_a_result_comes_from_another_thread() -> None:
    assert resolved_elsewhere(lambda future: future.set_result(7)) == 7


def test_a_result_that_is_there_already_is_given() -> None:
    future: Future[int] = Future()
    future.set_result(8)
    assert asyncio.run(result_of(future)) == 8


def test_an_error_comes_from_another_thread() -> None:
    with pytest.raises(ZeroDivisionError):
        resolved_elsewhere(lambda future: future.set_exception(ZeroDivisionError()))


def test_who_cancels_the_wait_cancels_the_future() -> None:
    async def leave() -> "Future[int]":
        future: Future[int] = Future()
        waiting = asyncio.ensure_future(result_of(future))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        return future

    assert asyncio.run(leave()).cancelled()


def test_a_result_after_the_loop_has_closed_is_nobodys() -> None:
    future: Future[int] = Future()
    future.set_running_or_notify_cancel()  # as what can't be cancelled any more

    async def leave() -> None:
        asyncio.ensure_future(result_of(future))  # noqa: RUF006
        await asyncio.sleep(0)

    asyncio.run(leave())
    failed: list[object] = []
    future.add_done_callback(failed.append)
    future.set_result(1)
    assert failed == [future]


class RefusedError(Exception):
    pass


def test_an_error_is_let_go_without_the_collector() -> None:
    """It would hold what its request did until then."""
    gone: list[ref[Exception]] = []

    def failed() -> "Future[int]":
        future: Future[int] = Future()
        error = RefusedError()
        gone.append(ref(error))
        future.set_exception(error)
        return future

    async def ask() -> None:
        with suppress(RefusedError):
            await result_of(failed())

    gc.collect()
    gc.disable()
    try:
        asyncio.run(ask())
        assert gone[0]() is None
    finally:
        gc.enable()
