"""What loading an image costs, beside Pillow alone."""

import io
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def by_pillow(encoded: bytes) -> NDArray[np.uint8]:
    """Load as Pillow's documentation shows."""
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def seconds_in_turns(*functions: Callable[[], object]) -> list[list[float]]:
    """Return what each of 500 calls took, by function; they take turns, so that what else runs meets all alike."""
    taken: list[list[float]] = [[] for _ in functions]
    for _ in range(500):
        for function, seconds in zip(functions, taken, strict=True):
            started = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - started)
    return taken


def seconds_of_thread(function: Callable[[], object]) -> list[float]:
    """Return the CPU time of this thread in each of 500 calls, whatever else runs."""
    taken = []
    for _ in range(500):
        started = time.thread_time()
        function()
        taken.append(time.thread_time() - started)
    return taken
