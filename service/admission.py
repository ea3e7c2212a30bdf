"""How many requests are served at once. More wait, unread, for their turn; beyond these, whoever comes is turned away.

An event loop that takes up all that comes serves nobody in time when more comes than it can do: its rounds grow, and
with them the time until it can even refuse. So of requests that are whole only so many are in the hands of the
application, enough to keep an engine busy; to let the others wait, or to refuse them, costs next to nothing.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from service.settings import Settings

BATCHES_SERVED = 4
"""Requests served at once, in largest batches: one runs, one waits, one is replied to, one is read."""
LEAST_SERVED = 64


class _Waiting(NamedTuple):
    serve: Callable[[], None]
    since: float


class Admission:
    """The places in a server and the line before it; on the event loop."""

    def __init__(self, *, served: int, waiting: int) -> None:
        """Open with `served` places, and a line of at most `waiting`."""
        self.served = served
        self.waiting = waiting
        self._free = served
        self._line: deque[_Waiting] = deque()

    @property
    def in_line(self) -> int:
        """How many wait now."""
        return len(self._line)

    @property
    def retry_after_s(self) -> int:
        """Whole seconds, at least 1, that who is next has waited: about what the last in the line will have to."""
        return max(1, math.ceil(time.monotonic() - self._line[0].since)) if self._line else 1

    def enter(self, serve: Callable[[], None]) -> bool:
        """Call `serve` now, or later when its turn has come; return False if it never will be.

        Whoever was served says so by `leave`.
        """
        if self._free:
            self._free -= 1
            serve()
        elif len(self._line) < self.waiting:
            self._line.append(_Waiting(serve, time.monotonic()))
        else:
            return False
        return True

    def leave(self) -> None:
        """Give a place to the next in the line."""
        if self._line:
            self._line.popleft().serve()
        else:
            self._free += 1


def make_admission(settings: Settings) -> Admission:
    """Return the places and the line of one HTTP process."""
    return Admission(
        served=max(LEAST_SERVED, BATCHES_SERVED * settings.max_batch_size), waiting=settings.max_queue_images
    )
