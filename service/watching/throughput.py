"""Images a second, over the last minute."""

import time
from collections import deque

SECONDS = 60


class Throughput:
    """Counts images by the second that they came in."""

    def __init__(self) -> None:
        self._counts: deque[list[int]] = deque(maxlen=SECONDS)
        self._begun = time.monotonic()

    def count(self, images: int) -> None:
        """Count images that came now."""
        second = int(time.monotonic())
        if self._counts and self._counts[-1][0] == second:
            self._counts[-1][1] += images
        else:
            self._counts.append([second, images])

    @property
    def images_per_s(self) -> float:
        """Those of the last minute, or since the beginning if that is less; at least of a second."""
        now = time.monotonic()
        images = sum(images for second, images in self._counts if second > now - SECONDS)
        return images / min(max(now - self._begun, 1.0), SECONDS)
