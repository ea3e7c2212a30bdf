"""Encoded images -> pixels, on a bounded pool of threads, off the event loop; one small image at once."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from model_store import images
from model_store.errors import ImageError
from model_store.images import DecodeLimits
from model_store.manifest import PreprocessSpec
from service.errors import BadImageError

T = TypeVar("T")
QUICK_BYTES = 4096
QUICK_PIXELS = 64 * 64
"""What is done on the event loop: up to this an image takes 0.03 to 0.3 ms, about what a thread's answer takes to be
handed over, and thread and loop would share the interpreter anyway."""


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

    async def decode(self, encoded: Sequence[bytes], spec: PreprocessSpec) -> list[NDArray[np.uint8]]:
        """Return uint8 (H, W, 3) an image, in order.

        Raises:
            BadImageError: some image is none, or too large; the first such.
        """
        if len(encoded) == 1 and (pixels := self._decode_at_once(encoded[0], spec)) is not None:
            return [pixels]
        return await self._decode_on_threads(encoded, spec)

    async def run(self, work: Callable[[], T]) -> T:
        """Do other work that would hold up the event loop, on the same threads."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def run_by_size(self, work: Callable[[], T], size: int) -> T:
        """Do work that takes time by the bytes that it is given: at once where they are few, else as `run`."""
        return work() if size <= QUICK_BYTES else await self.run(work)

    def close(self) -> None:
        """Finish what runs and stop."""
        self._pool.shutdown()

    def _decode_at_once(self, encoded: bytes, spec: PreprocessSpec) -> NDArray[np.uint8] | None:
        """Return the pixels of a small image; None of another one, and of what is refused, for a thread to say why."""
        if len(encoded) > QUICK_BYTES or spec.height * spec.width > QUICK_PIXELS:
            return None
        try:
            return images.load(encoded, spec, self._quick)
        except ImageError:
            return None

    async def _decode_on_threads(self, encoded: Sequence[bytes], spec: PreprocessSpec) -> list[NDArray[np.uint8]]:
        loop, step = asyncio.get_running_loop(), -(-len(encoded) // self._threads)
        abandoned = Event()
        shares = [
            loop.run_in_executor(self._pool, self._decode, encoded[at : at + step], at, spec, abandoned)
            for at in range(0, len(encoded), step)
        ]
        try:
            done = await asyncio.gather(*shares, return_exceptions=True)
        finally:
            abandoned.set()  # a thread in the middle of a share that nobody awaits any more stops at its next image
        pixels: list[NDArray[np.uint8]] = []
        for share in done:  # in order, so that the first bad image is the one that is named
            if isinstance(share, BaseException):
                raise share
            pixels += share
        return pixels

    def _decode(
        self, encoded: Sequence[bytes], first: int, spec: PreprocessSpec, abandoned: Event
    ) -> list[NDArray[np.uint8]]:
        pixels: list[NDArray[np.uint8]] = []
        for index, image in enumerate(encoded, start=first):
            if abandoned.is_set():
                return pixels
            try:
                pixels.append(images.load(image, spec, self._limits))
            except ImageError as err:
                raise BadImageError(index, err) from err
        return pixels
