"""A client that leaves, seen from what it asked for."""

import asyncio

import pytest
from starlette.requests import Request

from service.arrival import Arrival, announce, arrival_of
from service.errors import ClientLeftError


async def slow(done: list[str]) -> str:
    try:
        await asyncio.sleep(10)
    except asyncio.CancelledError:
        done.append("cancelled")
        raise
    return "never"


async def quick() -> str:
    return "answer"


def test_who_leaves_stops_the_work_and_only_that() -> None:
    async def run() -> tuple[list[str], int]:
        arrival, done = Arrival(), list[str]()
        asyncio.get_running_loop().call_later(0.01, arrival.leave)
        with pytest.raises(ClientLeftError, match="before the answer"):
            await arrival.while_connected(slow(done))
        await asyncio.sleep(0)  # the task itself goes on
        task = asyncio.current_task()
        assert task is not None
        return done, task.cancelling()

    assert asyncio.run(run()) == (["cancelled"], 0)


def test_to_leave_after_the_answer_does_nothing() -> None:
    async def run() -> str:
        arrival = Arrival()
        answer = await arrival.while_connected(quick())
        arrival.leave()
        await asyncio.sleep(0)
        return answer

    assert asyncio.run(run()) == "answer"


def test_a_server_that_stops_is_no_client_that_leaves() -> None:
    async def run() -> list[str]:
        done: list[str] = []
        task = asyncio.ensure_future(Arrival().while_connected(slow(done)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return done

    assert asyncio.run(run()) == ["cancelled"]


def test_a_request_is_known_by_its_scope() -> None:
    scope = {"type": "http", "state": {}}
    arrival = Arrival(whole_at=5.0)
    announce(scope, arrival)
    assert arrival_of(Request(scope)) is arrival
    assert arrival_of(Request({"type": "http"})) == Arrival()
