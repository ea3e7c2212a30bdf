"""Keeps one process of the server running: whenever it ends it is started again, until it does not start any more."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

from service.errors import StartError
from service.processes.child import Child

MAX_FAILURES = 4
"""Starts in a row that may fail before the whole server gives up."""
STABLE_S = 60.0
"""Who was ready for so long is started again at once; others ever later."""
FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 30.0
_DOUBLINGS = math.ceil(math.log2(LONGEST_DELAY_S / FIRST_DELAY_S))
"""Of the first delay, until it is the longest: a process may end thousands of times, and no float doubles so often."""
log = logging.getLogger(__name__)


class Keeper:
    """One process after another, in one place."""

    def __init__(self, name: str, start: Callable[[], Awaitable[Child]], changed: Callable[[], None]) -> None:
        """Make one; `changed` is called whenever a process has got ready."""
        self.name = name
        self.child: Child | None = None
        self.restarts = 0
        self._start = start
        self._changed = changed
        self._first: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Start the first process, and keep one running from now on."""
        self._task = asyncio.ensure_future(self._keep())

    async def first(self) -> str:
        """Wait until the first process is ready; return its word for the user.

        Raises:
            StartError: it did not get there.
        """
        if self._task is not None:
            either: set[asyncio.Future[Any]] = {self._task, self._first}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not self._first.done():
                await self._task
        return await self._first

    async def gave_up(self) -> None:
        """Wait until no process starts any more, which raises StartError."""
        if self._task is not None:
            await asyncio.shield(self._task)

    def stop(self) -> None:
        """Start none any more; the one that runs goes on."""
        if self._task is not None:
            self._task.cancel()

    async def _keep(self) -> None:
        failures = short = 0
        while True:
            ready_s, status, reason = await self._live()
            failures = failures + 1 if ready_s is None else 0
            self._require_hope(failures, reason)
            short = short + 1 if ready_s is None or ready_s < STABLE_S else 0
            unlucky = max(short - 1, failures)
            delay_s = min(FIRST_DELAY_S * 2 ** min(unlucky - 1, _DOUBLINGS), LONGEST_DELAY_S) if unlucky > 0 else 0.0
            self.restarts += 1
            log.error(
                "process replaced",
                extra={"child": self.name, "status": status, "reason": reason, "delay_s": delay_s},
            )
            await asyncio.sleep(delay_s)

    async def _live(self) -> tuple[float | None, int | None, str]:
        """Start a process and outlive it; return for how long it was ready, its exit status, and why it ended."""
        try:
            child = self.child = await self._start()
        except OSError as err:  # the machine has no more processes, memory or files just now
            return None, None, f"it cannot be started: {err.strerror or err}"
        word, begun = await child.ready(), time.monotonic()
        if word is not None:
            self._got_ready(word, child)
        status = await child.ended()
        return None if word is None else time.monotonic() - begun, status, child.reason

    def _got_ready(self, word: str, child: Child) -> None:
        if not self._first.done():
            self._first.set_result(word)
        log.info("process ready", extra={"child": self.name, "pid": child.pid})
        self._changed()

    def _require_hope(self, failures: int, reason: str) -> None:
        if failures and not self._first.done():
            raise StartError(reason)
        if failures >= MAX_FAILURES:
            raise StartError(f"the {self.name} process did not start again, {failures} times in a row: {reason}")
