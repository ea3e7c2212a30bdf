"""A bounded queue of images from many requests, taken out in batches. Knows neither networks nor HTTP.

Work-conserving: `take` gives what is there at once, and waits only where there is nothing. A request's images may be
spread over several batches; its future gets all of its results, in order, or one error.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Condition
from typing import Generic, Literal, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
DropReason = Literal["client_left", "deadline"]


class FullError(Exception):
    """The queue can't hold these items now."""


class ClosedError(Exception):
    """The queue takes nothing more."""


class ExpiredError(Exception):
    """The items' deadline passed while they waited."""


@dataclass(frozen=True)
class Waited(Generic[Result]):
    """The results of one submission, in its order, and the seconds that it spent queued and in the forward passes."""

    results: list[Result]
    queue_s: float
    forward_s: float


@dataclass(eq=False)
class Submission(Generic[Item, Result]):
    """What one request queued, and how much of it is done."""

    items: Sequence[Item]
    deadline: float
    future: "Future[Waited[Result]]" = field(default_factory=Future)
    queued_at: float = field(default_factory=time.monotonic)
    taken: int = 0
    first_taken_at: float = 0.0
    forward_s: float = 0.0
    results: list[Result] = field(default_factory=list)

    @property
    def waiting(self) -> int:
        """Items not yet taken."""
        return len(self.items) - self.taken


@dataclass(frozen=True)
class Batch(Generic[Item, Result]):
    """Items of one or more submissions, with how many belong to each."""

    items: list[Item]
    shares: list[tuple[Submission[Item, Result], int]]

    def __len__(self) -> int:
        return len(self.items)


class Batcher(Generic[Item, Result]):
    """The queue. `submit` from any thread; `take`, `finish` and `fail` from the one that runs batches."""

    def __init__(
        self, *, sizes: Sequence[int], max_items: int, on_drop: Callable[[DropReason], None] = lambda _: None
    ) -> None:
        """Make an empty queue.

        Args:
            sizes: the batch sizes that may come out, ascending, 1 first; the largest that what waits can fill does.
            max_items: items that may wait at once.
            on_drop: told of each submission that is thrown away unserved.
        """
        if not sizes or sizes[0] != 1 or list(sizes) != sorted(set(sizes)):
            raise ValueError(f"sizes is {sizes}; they must ascend from 1")
        self.sizes = tuple(sizes)
        self.max_items = max_items
        self._on_drop = on_drop
        self._queue: deque[Submission[Item, Result]] = deque()
        self._running: dict[int, Submission[Item, Result]] = {}
        self._waiting = 0
        self._changed = Condition()
        self._closed: Exception | None = None

    @property
    def depth(self) -> int:
        """Items that wait."""
        return self._waiting

    def submit(self, items: Sequence[Item], deadline: float) -> "Future[Waited[Result]]":
        """Queue a request's items, all or none; `deadline` is a `time.monotonic()`.

        The future may be cancelled: what has not been taken by then never is.

        Raises:
            FullError: they do not fit beside those that wait.
            ClosedError: `close` or `die` was called.
        """
        if not items:
            raise ValueError("a submission needs at least one item")
        submission: Submission[Item, Result] = Submission(items, deadline)
        with self._changed:
            if self._closed is not None:
                raise ClosedError("the queue is closed") from self._closed
            if self._waiting + len(items) > self.max_items:
                raise FullError(f"{self._waiting} items wait, {len(items)} more are above the {self.max_items} allowed")
            self._queue.append(submission)
            self._waiting += len(items)
            self._changed.notify()
        return submission.future

    def take(self, *, wait: bool) -> Batch[Item, Result] | None:
        """Return the next batch; None if nothing waits and `wait` is false, or the queue is closed and empty."""
        with self._changed:
            while True:
                self._drop_dead()
                if self._queue:
                    return self._fill(max(size for size in self.sizes if size <= self._waiting))
                if not wait or self._closed is not None:
                    return None
                self._changed.wait()

    def finish(self, batch: Batch[Item, Result], results: Sequence[Result], forward_s: float) -> None:
        """Hand out a batch's results, one an item; requests whose last item this was are resolved."""
        at = 0
        for submission, count in batch.shares:
            submission.results += results[at : at + count]
            submission.forward_s += forward_s
            at += count
            if len(submission.results) == len(submission.items):
                self._running.pop(id(submission), None)
                queue_s = submission.first_taken_at - submission.queued_at
                _resolve(submission, Waited(submission.results, queue_s, submission.forward_s))

    def close(self) -> None:
        """Take nothing more; what waits is still given out."""
        with self._changed:
            self._closed = self._closed or ClosedError("closed")
            self._changed.notify_all()

    def die(self, error: Exception) -> None:
        """Take nothing more, and fail all that waits or runs: every future resolves."""
        with self._changed:
            self._closed = error
            unresolved = [*self._running.values(), *self._queue]
            self._queue.clear()
            self._running.clear()
            self._waiting = 0
            self._changed.notify_all()
        for submission in unresolved:
            _reject(submission, error)

    def _fill(self, size: int) -> Batch[Item, Result]:
        items: list[Item] = []
        shares = []
        now = time.monotonic()
        while len(items) < size:
            submission = self._queue[0]
            count = min(submission.waiting, size - len(items))
            items += submission.items[submission.taken : submission.taken + count]
            shares.append((submission, count))
            submission.first_taken_at = submission.first_taken_at or now
            submission.taken += count
            self._running[id(submission)] = submission
            if submission.waiting == 0:
                self._queue.popleft()
        self._waiting -= size
        return Batch(items, shares)

    def _drop_dead(self) -> None:
        """Throw out whose client left or whose time is up, wherever they stand in the queue."""
        now = time.monotonic()
        alive: deque[Submission[Item, Result]] = deque()
        for submission in self._queue:
            if submission.deadline <= now:  # first: who waits in vain for a deadline cancels, too
                self._drop(submission, "deadline")
                _reject(submission, ExpiredError("the deadline passed in the queue"))
            elif submission.future.cancelled():
                self._drop(submission, "client_left")
            else:
                alive.append(submission)
        self._queue = alive

    def _drop(self, submission: Submission[Item, Result], reason: DropReason) -> None:
        self._waiting -= submission.waiting
        self._running.pop(id(submission), None)
        self._on_drop(reason)


def _resolve(submission: Submission[Item, Result], waited: Waited[Result]) -> None:
    with suppress(InvalidStateError, CancelledError):  # the client left while it was computed
        submission.future.set_result(waited)


def _reject(submission: Submission[Item, Result], error: Exception) -> None:
    with suppress(InvalidStateError, CancelledError):
        submission.future.set_exception(error)
