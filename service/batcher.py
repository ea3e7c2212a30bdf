"""A bounded queue of images from many requests, taken out in batches. Knows neither networks nor HTTP.

Work-conserving: `take` gives what is there at once, and waits only where there is nothing. A request's images may be
spread over several batches; its future gets all of its results, in order, or one error.

Requests of at most an eighth of the largest batch are small, larger ones bulk; while both wait, three quarters of the
places in batches are for small ones and a quarter for bulk (`service.fair_queue`). Room to wait is shared likewise:
neither kind takes more once it has three quarters of the queue. So under a flood of bulk, a small request of n images
with b images of small ones before it is in the next ceil((4 (b + n) + 3) / (3 B)) batches of B, and under a flood of
small requests, a bulk one in the next ceil(4 (b + n) / B), with b images of bulk before it.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from heapq import heapify, heappop, heappush
from threading import Condition
from typing import Generic, Literal, TypeVar

from service.fair_queue import FairQueue

Item = TypeVar("Item")
Result = TypeVar("Result")
DropReason = Literal["client_left", "deadline"]
_SMALL_OF_A_BATCH = 8
_ROOM_OF_A_KIND = 0.75
_TIMER_S = 0.005
"""Timers that cancel at a deadline may be early by this: some event loops count in milliseconds."""
_GONE_DEADLINES = 64
"""Deadlines kept of submissions that are gone, beside as many as there are of others."""


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

    number: int
    items: Sequence[Item]
    deadline: float
    future: "Future[Waited[Result]]" = field(default_factory=Future)
    queued_at: float = field(default_factory=time.monotonic)
    taken: int = 0
    first_taken_at: float = 0.0
    forward_s: float = 0.0
    results: list[Result] = field(default_factory=list)

    @property
    def size(self) -> int:
        """How many items it has."""
        return len(self.items)


@dataclass(frozen=True)
class Batch(Generic[Item, Result]):
    """Items of one or more submissions, with how many belong to each."""

    items: list[Item]
    shares: list[tuple[Submission[Item, Result], int]]

    def __len__(self) -> int:
        return len(self.items)


class Batcher(Generic[Item, Result]):
    """The queue. `submit` from any thread; `take` and `finish` from the one that runs batches."""

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
        self._queue: FairQueue[Submission[Item, Result]] = FairQueue(
            largest_small=max(1, sizes[-1] // _SMALL_OF_A_BATCH)
        )
        self._unresolved: dict[int, Submission[Item, Result]] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._submitted = 0
        self._changed = Condition()
        self._closed: Exception | None = None

    @property
    def depth(self) -> int:
        """Items that wait."""
        return len(self._queue)

    def why_full(self, items: int) -> str | None:
        """Return why a submission of so many items can't be queued now; None if it can."""
        if self.depth + items > self.max_items:
            return f"{self.depth} images wait, {items} more are above the {self.max_items} allowed"
        beside, small = self._queue.waiting_beside(items), self._queue.largest_small
        if beside >= _ROOM_OF_A_KIND * self.max_items:
            kind = f"up to {small}" if items <= small else f"more than {small}"
            return f"{beside} images of requests of {kind} wait, which is their part of the {self.max_items} allowed"
        return None

    def submit(self, items: Sequence[Item], deadline: float) -> "Future[Waited[Result]]":
        """Queue a request's items, all or none; `deadline` is a `time.monotonic()`.

        The future may be cancelled: what has not been taken by then never is, and its place is free at once.

        Raises:
            FullError: they do not fit beside those that wait.
            ClosedError: `close` or `die` was called.
        """
        if not items:
            raise ValueError("a submission needs at least one item")
        with self._changed:
            if self._closed is not None:
                raise ClosedError("the queue is closed") from self._closed
            if why := self.why_full(len(items)):
                raise FullError(why)
            self._submitted += 1
            submission: Submission[Item, Result] = Submission(self._submitted, items, deadline)
            self._queue.push(submission)
            self._unresolved[submission.number] = submission
            self._watch(submission)
            self._changed.notify()
        return submission.future

    def take(self, *, wait: bool) -> Batch[Item, Result] | None:
        """Return the next batch; None if nothing waits and `wait` is false, or the queue is closed and empty."""
        with self._changed:
            while True:
                self._drop_expired()
                if self._queue:
                    return self._fill(max(size for size in self.sizes if size <= len(self._queue)))
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
        done = [submission for submission, _ in batch.shares if len(submission.results) == submission.size]
        with self._changed:
            for submission in done:
                self._unresolved.pop(submission.number, None)
        for submission in done:
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
            unresolved = list(self._unresolved.values())
            self._queue.clear()
            self._unresolved.clear()
            self._deadlines.clear()
            self._changed.notify_all()
        for submission in unresolved:
            _reject(submission, error)

    def _fill(self, size: int) -> Batch[Item, Result]:
        items: list[Item] = []
        shares = []
        now = time.monotonic()
        for submission, start, count in self._queue.take(size):
            items += submission.items[start : start + count]
            shares.append((submission, count))
            submission.first_taken_at = submission.first_taken_at or now
        return Batch(items, shares)

    def _watch(self, submission: Submission[Item, Result]) -> None:
        """Drop a submission when it is cancelled, or found past its deadline."""
        # By its number, since a future keeps its callbacks: a reference would be a cycle.
        submission.future.add_done_callback(partial(self._drop_cancelled, submission.number))
        heappush(self._deadlines, (submission.deadline, submission.number))
        if len(self._deadlines) > 2 * len(self._unresolved) + _GONE_DEADLINES:
            self._deadlines = [(each.deadline, number) for number, each in self._unresolved.items()]
            heapify(self._deadlines)

    def _drop_expired(self) -> None:
        now = time.monotonic()
        while self._deadlines and self._deadlines[0][0] <= now:
            submission = self._unresolved.get(heappop(self._deadlines)[1])
            if submission is not None and self._queue.remove(submission):
                self._drop(submission, "deadline")
                _reject(submission, ExpiredError("the deadline passed in the queue"))

    def _drop_cancelled(self, number: int, future: "Future[Waited[Result]]") -> None:
        if not future.cancelled():
            return
        with self._changed:
            submission = self._unresolved.get(number)
            if submission is not None and self._queue.remove(submission):
                late = submission.deadline - _TIMER_S <= time.monotonic()  # who waits in vain for it cancels, too
                self._drop(submission, "deadline" if late else "client_left")

    def _drop(self, submission: Submission[Item, Result], reason: DropReason) -> None:
        del self._unresolved[submission.number]
        self._on_drop(reason)


def _resolve(submission: Submission[Item, Result], waited: Waited[Result]) -> None:
    with suppress(InvalidStateError, CancelledError):  # the client left while it was computed
        submission.future.set_result(waited)


def _reject(submission: Submission[Item, Result], error: Exception) -> None:
    with suppress(InvalidStateError, CancelledError):
        submission.future.set_exception(error)
