"""Encoded images -> pixels, on a bounded pool of threads, off the event loop.

Threads take one image at a time, of whichever request is next (`service.fair_queue`): a request of one image waits
for the images that are being decoded, and for few of a large request, not for all of it. One small image is decoded
at once, on the event loop.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from model_store import images
from model_store.errors import ImageError
from model_store.images import DecodeLimits
from model_store.manifest import PreprocessSpec
from service.errors import BadImageError
from service.fair_queue import FairQueue
from service.futures import result_of

T = TypeVar("T")
LARGEST_SMALL = 8
"""Images of a request that does not have to stand behind those of many."""
QUICK_BYTES = 4096
QUICK_PIXELS = 64 * 64
"""What is done on the event loop: such an image takes a fraction of a millisecond, about what it takes to hand it to a
thread, which would hold the interpreter as long."""


@dataclass(eq=False)
class _Work:
    """A request's parts, and how much of them is done."""

    do: Callable[[int], Any]
    size: int
    future: "Future[list[Any]]" = field(default_factory=Future)
    taken: int = 0
    done: dict[int, Any] = field(default_factory=dict)
    failed: dict[int, Exception] = field(default_factory=dict)

    @property
    def running(self) -> int:
        """Parts that threads are at."""
        return self.taken - len(self.done) - len(self.failed)

    def resolve(self) -> None:
        """Hand out the results in order, or the first of the errors."""
        with suppress(InvalidStateError):  # the client left while it was computed
            if self.failed:
                self.future.set_exception(self.failed[min(self.failed)])
            else:
                self.future.set_result([self.done[index] for index in range(self.size)])


class Decoder:
    """Decodes and fits images, at most `threads` at once."""

    def __init__(self, threads: int, limits: DecodeLimits) -> None:
        self._threads = threads
        self._limits = limits
        self._quick = replace(
            limits,
            max_bytes=min(limits.max_bytes, QUICK_BYTES),
            max_pixels=min(limits.max_pixels, QUICK_PIXELS),
        )
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._queue: FairQueue[_Work] = FairQueue(largest_small=LARGEST_SMALL)
        self._lock = Lock()

    async def decode(self, encoded: Sequence[bytes], spec: PreprocessSpec) -> list[NDArray[np.uint8]]:
        """Return uint8 (H, W, 3) an image, in order. Cancelling it stops it within an image a thread.

        Raises:
            BadImageError: some image is none, or too large; the first such.
        """
        if len(encoded) == 1 and (pixels := self._decode_at_once(encoded[0], spec)) is not None:
            return [pixels]

        def decode_one(index: int) -> NDArray[np.uint8]:
            try:
                return images.load(encoded[index], spec, self._limits)
            except ImageError as err:
                raise BadImageError(index, err) from err

        return await self._do(_Work(decode_one, len(encoded)))

    async def run(self, work: Callable[[], T]) -> T:
        """Do other work that would hold up the event loop, on the same threads."""
        (result,) = await self._do(_Work(lambda _: work(), 1))
        return cast(T, result)

    async def run_by_size(self, work: Callable[[], T], size: int) -> T:
        """Do work that takes time by the bytes that it is given: at once where they are few, else as `run`."""
        return work() if size <= QUICK_BYTES else await self.run(work)

    def close(self) -> None:
        """Finish what runs and waits, and stop."""
        self._pool.shutdown()

    def _decode_at_once(self, encoded: bytes, spec: PreprocessSpec) -> NDArray[np.uint8] | None:
        """Return the pixels of a small image; None of another one, and of what is refused, for a thread to say why."""
        if len(encoded) > QUICK_BYTES or spec.height * spec.width > QUICK_PIXELS or images.encoding(encoded) == "avif":
            return None  # the pixels of an AVIF may be more than it says
        try:
            return images.load(encoded, spec, self._quick)
        except ImageError:
            return None

    async def _do(self, work: _Work) -> list[Any]:
        with self._lock:
            self._queue.push(work)
        for _ in range(min(work.size, self._threads)):
            self._pool.submit(self._work_off)
        try:
            return await result_of(work.future)
        finally:
            with self._lock:
                self._queue.remove(work)
            del work  # an error's traceback holds this frame: a cycle, which would keep images until it is collected

    def _work_off(self) -> None:
        """Do parts until none waits."""
        while (part := self._next()) is not None:
            work, index = part
            try:
                result = work.do(index)
            except Exception as err:  # it is the request's, which awaits it
                self._record(work, work.failed, index, err)
            else:
                self._record(work, work.done, index, result)
                del result
            del work, part  # as above

    def _next(self) -> tuple[_Work, int] | None:
        with self._lock:
            for share in self._queue.take(1) if self._queue else ():
                return share.request, share.start
        return None

    def _record(self, work: _Work, outcomes: dict[int, Any], index: int, outcome: object) -> None:
        """Keep what came of a part, and resolve a request whose last it was; after one that failed, none is begun."""
        with self._lock:
            outcomes[index] = outcome
            if work.failed:
                self._queue.remove(work)
            finished = work.running == 0 and (work.taken == work.size or bool(work.failed))
        if finished:
            work.resolve()
