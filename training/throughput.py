"""How many images a second a runtime takes."""

import time
from collections import deque
from collections.abc import Sequence
from statistics import median

import numpy as np
from numpy.typing import NDArray

from model_store.runtimes import Runtime

BATCH_SIZE = 64
"""What a server's engine runs at most, unless it is told otherwise."""
ROUNDS = 7
ROUND_S = 0.5


def images_per_second(runtimes: Sequence[Runtime], images: NDArray[np.uint8]) -> tuple[float, ...]:
    """Return each runtime's images a second in batches of `BATCH_SIZE`, scores not included.

    They take turns, and each gets the median of its rounds: what else the machine does meanwhile is shared by all.

    images: uint8 (N, H, W, 3), as many times as fill a batch.
    """
    batch = np.resize(images, (BATCH_SIZE, *images.shape[1:]))
    for runtime in runtimes:
        runtime.finish(runtime.start(batch))
    rounds = [[_round(runtime, batch) for runtime in runtimes] for _ in range(ROUNDS)]
    return tuple(median(speeds) for speeds in zip(*rounds, strict=True))


def _round(runtime: Runtime, batch: NDArray[np.uint8]) -> float:
    """Run one runtime for a while, as many batches at once as it says it gains from."""
    tickets = deque(runtime.start(batch) for _ in range(runtime.in_flight - 1))
    begun, finished = time.perf_counter(), 0
    while time.perf_counter() - begun < ROUND_S:
        tickets.append(runtime.start(batch))
        runtime.finish(tickets.popleft())
        finished += len(batch)
    speed = finished / (time.perf_counter() - begun)
    while tickets:
        runtime.finish(tickets.popleft())
    return speed
