"""Which images are kept: a share of each kind, and no more than so many a minute."""

import random
import time
from collections.abc import Callable, Mapping
from enum import Enum

from service.capture.record import KINDS, Kind


class Choice(Enum):
    """What becomes of an image."""

    PASSED = "passed"
    """It is not in the sample."""
    TAKEN = "taken"
    OVER_RATE = "over rate"
    """It is in the sample, and above what a minute may bring."""


class Sampler:
    """Chooses at random, each kind within a rate of its own, so that a flood of one leaves the other its part."""

    def __init__(
        self,
        shares: Mapping[Kind, float],
        images_per_minute: float,
        *,
        draw: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make one.

        Args:
            shares: from 0 (none) to 1 (all), by kind.
            images_per_minute: of each kind; so many may also come at once.
            draw: gives uniform numbers in [0, 1).
            clock: gives seconds.
        """
        self._shares = shares
        self._draw = draw
        self._clock = clock
        self._images_per_s = images_per_minute / 60
        self._most = max(images_per_minute, 1.0)
        self._left = dict.fromkeys(KINDS, self._most)
        self._counted_at = clock()

    def choose(self, kind: Kind) -> Choice:
        """Decide on one image."""
        if self._draw() >= self._shares[kind]:
            return Choice.PASSED
        self._refill()
        if self._left[kind] < 1:
            return Choice.OVER_RATE
        self._left[kind] -= 1
        return Choice.TAKEN

    def _refill(self) -> None:
        now = self._clock()
        more = (now - self._counted_at) * self._images_per_s
        self._counted_at = now
        for kind, left in self._left.items():
            self._left[kind] = min(left + more, self._most)
