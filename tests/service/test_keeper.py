"""One process after another, whatever hinders it, without processes."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from service.errors import StartError
from service.processes import keeper
from service.processes.keeper import MAX_FAILURES, Keeper


@dataclass
class Ended:
    """A process that got ready and has ended."""

    pid: int = 1
    reason: str = "killed"

    async def ready(self) -> str:
        return "ready"

    async def ended(self) -> int:
        return -9


class SlowToLoad(Ended):
    """It loads for longer than it serves."""

    async def ready(self) -> str:
        await asyncio.sleep(0.2)
        return "ready"


class Starts:
    """Starts that go well, or that the machine refuses; the last goes on for ever."""

    def __init__(self, *outcomes: bool) -> None:
        self.left = list(outcomes)
        self.tried = 0

    async def __call__(self) -> Ended:
        self.tried += 1
        if not self.left:
            await asyncio.Event().wait()
        if self.left.pop(0):
            return Ended()
        raise BlockingIOError(11, "Resource temporarily unavailable")


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "FIRST_DELAY_S", 0.0)


def delays_of(start: Callable[[], Awaitable[Ended]], restarts: int, caplog: pytest.LogCaptureFixture) -> list[float]:
    """Keep a process until it was started anew so often; return how long each start was waited for."""

    async def run() -> None:
        kept = Keeper("engine", start, lambda: None)
        kept.begin()
        async with asyncio.timeout(30):
            while kept.restarts < restarts:
                await asyncio.sleep(0)
        kept.stop()

    asyncio.run(run())
    return [vars(record)["delay_s"] for record in caplog.records if record.message == "process replaced"]


def test_a_start_that_the_machine_refuses_for_a_moment_is_tried_again() -> None:
    """Short of processes or memory, which may be what ended the one before."""

    async def run() -> None:
        starts = Starts(True, *[False] * (MAX_FAILURES - 1), True)
        kept = Keeper("worker", starts, lambda: None)
        kept.begin()
        assert await kept.first() == "ready"
        async with asyncio.timeout(10):
            while starts.tried < MAX_FAILURES + 2:
                await asyncio.sleep(0)
        assert kept.restarts == MAX_FAILURES + 1  # whatever came of them
        kept.stop()

    asyncio.run(run())


def test_the_time_to_load_is_no_life(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """An engine that loads for a minute, and dies of its first batch, is started ever later."""
    monkeypatch.setattr(keeper, "STABLE_S", 0.1)
    monkeypatch.setattr(keeper, "FIRST_DELAY_S", 0.01)

    async def start() -> SlowToLoad:
        return SlowToLoad()

    assert delays_of(start, 3, caplog) == [0.0, 0.01, 0.02]


def test_a_process_that_ends_thousands_of_times_is_still_started_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Half a minute apart, that is a night."""
    monkeypatch.setattr(keeper, "FIRST_DELAY_S", 0.0005)
    monkeypatch.setattr(keeper, "LONGEST_DELAY_S", 0.001)
    assert delays_of(Starts(*[True] * 1200), 1200, caplog) == [0.0, 0.0005, *[0.001] * 1198]


def test_starts_that_the_machine_goes_on_refusing_are_an_error_that_says_why() -> None:
    async def run(starts: Starts) -> None:
        kept = Keeper("worker", starts, lambda: None)
        kept.begin()
        await kept.first()
        async with asyncio.timeout(10):
            await kept.gave_up()

    refused = [False] * MAX_FAILURES
    with pytest.raises(StartError, match=r"did not start again, 4 times in a row: .*Resource temporarily unavailable"):
        asyncio.run(run(Starts(True, *refused)))
    with pytest.raises(StartError, match=r"cannot be started: Resource temporarily unavailable"):
        asyncio.run(run(Starts(*refused)))
