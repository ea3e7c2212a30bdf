"""From the event loop to the thread that writes: a queue with bounds in images and bytes; putting never waits."""

import time
from collections import deque
from threading import Condition
from typing import NamedTuple

from service.capture.record import Record


class Bounds(NamedTuple):
    """Images, and bytes of their contents."""

    images: int
    bytes: int


class HandOver:
    """Gathers records into batches. Any thread may put; one takes."""

    def __init__(self, *, waiting: Bounds, batch: Bounds, wait_s: float) -> None:
        """Make one.

        Args:
            waiting: what it holds at most.
            batch: what is taken at most at once, unless a single record is above it.
            wait_s: how long the first record of a batch may wait for others.
        """
        self._waiting = waiting
        self._batch = batch
        self._wait_s = wait_s
        self._records: deque[Record] = deque()
        self._bytes = 0
        self._taken = 0
        self._oldest_at = 0.0
        self._closed = False
        self._changed = Condition()

    @property
    def unwritten(self) -> int:
        """Records that wait, or were taken and are being written: what is lost if the process is killed now."""
        with self._changed:
            return len(self._records) + self._taken

    def put(self, record: Record) -> bool:
        """Hand a record over; return whether there was room for it."""
        with self._changed:
            full = len(self._records) >= self._waiting.images or self._bytes + record.bytes > self._waiting.bytes
            if full or self._closed:
                return False
            if not self._records:
                self._oldest_at = time.monotonic()
            self._records.append(record)
            self._bytes += record.bytes
            if len(self._records) == 1 or self._is_batch():
                self._changed.notify()
            return True

    def gather(self, idle_s: float) -> list[Record] | None:
        """Wait for a batch and take it; the one taken before is written by now.

        Args:
            idle_s: how long to wait for its first record.

        Returns:
            Records in order; none after `idle_s`; None once it is closed and nothing is left.
        """
        with self._changed:
            self._taken = 0
            self._changed.wait_for(lambda: self._records or self._closed, idle_s)
            if not self._records:
                return None if self._closed else []
            left_s = self._oldest_at + self._wait_s - time.monotonic()
            self._changed.wait_for(lambda: self._closed or self._is_batch(), max(left_s, 0))
            return self._take()

    def close(self) -> None:
        """Take no more; what is there is still handed out, at once."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _is_batch(self) -> bool:
        return len(self._records) >= self._batch.images or self._bytes >= self._batch.bytes

    def _take(self) -> list[Record]:
        taken: list[Record] = []
        size = 0
        while self._records and len(taken) < self._batch.images:
            size += self._records[0].bytes
            if taken and size > self._batch.bytes:
                break
            taken.append(self._records.popleft())
        self._bytes -= sum(record.bytes for record in taken)
        self._taken = len(taken)
        self._oldest_at = time.monotonic()
        return taken
