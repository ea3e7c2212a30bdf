"""What is watched of one model: a window of its last images, and the alarm on its flag rate."""

import math
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_store.manifest import Manifest
from service.watching.cusum import Cusum
from service.watching.expectations import WatchOptions, detection_rate, highest_rate, shifted_rate, stated_rate
from service.watching.share import Share, ShareEstimator
from service.watching.throughput import Throughput
from service.watching.uniformity import ks_distance, ks_limit


class WindowFacts(NamedTuple):
    """Of the last images, at least one; `ood_share` is None where the bundle states no detection rate."""

    images: int
    flagged_ratio: float
    ood_share: Share | None
    ks_distance: float
    ks_limit: float


class Watch:
    """Told of all verdicts that were answered, in their order. One thread uses it.

    Of a negative energy it keeps the place of its bucket in the bundle's histogram, which takes a fraction of the room.
    """

    def __init__(self, manifest: Manifest, options: WatchOptions) -> None:
        """Begin with no images."""
        calibration = manifest.calibrations[manifest.verdict]
        self.images = 0
        self.flagged = 0
        self.throughput = Throughput()
        self.cusum = Cusum(
            rate=highest_rate(manifest),
            shifted_rate=shifted_rate(manifest, options.ood_share),
            limit=math.log(options.images_between_false_alarms),
        )
        self.estimates_share = False
        self.p_values: deque[float] = deque(maxlen=options.window_images)
        self.energy_buckets: deque[int] = deque(maxlen=options.window_images)
        self._energy_edges = len(manifest.calibrations["negative_energy"].histogram_edges)
        self._flags_up_to = stated_rate(manifest)
        self._calibration_images = calibration.n
        self._looks = options.images_between_false_alarms
        detected = detection_rate(manifest)
        if detected is not None:
            self._share = ShareEstimator(k=calibration.k, calibration_images=calibration.n, detection_rate=detected)
            self.estimates_share = self._share.is_possible

    def judged(self, p_values: Sequence[float], energy_buckets: Sequence[int]) -> None:
        """Take images that were answered; p <= k / (n + 1) is what flagged means."""
        flags_up_to = self._flags_up_to
        flagged = [at for at, p_value in enumerate(p_values) if p_value <= flags_up_to]
        self.images += len(p_values)
        self.flagged += len(flagged)
        self.cusum.update(len(p_values), flagged)
        self.p_values.extend(p_values)
        self.energy_buckets.extend(energy_buckets)
        self.throughput.count(len(p_values))

    def restore(self, p_values: Sequence[float], energy_buckets: Sequence[int], cusum: float, *, shifted: bool) -> None:
        """Go on from where another, of the same bundle, stood.

        Raises:
            ValueError: a bucket that the bundle's histogram does not have.
        """
        if energy_buckets and max(energy_buckets) > self._energy_edges:
            raise ValueError(f"energy_buckets go up to {max(energy_buckets)}; the last bucket is {self._energy_edges}")
        self.p_values.extend(p_values)
        self.energy_buckets.extend(energy_buckets)
        self.cusum.restore(cusum, shifted=shifted)

    def p_value_counts(self, edges: Sequence[float]) -> list[int]:
        """Return how many of the window's p-values lie in each bucket; the last is above every edge."""
        return _counts(np.searchsorted(edges, _array(self.p_values, np.float64)), len(edges))

    def energy_counts(self) -> list[int]:
        """Return how many of the window's negative energies lie in each bucket of the bundle's histogram."""
        return _counts(_array(self.energy_buckets, np.intp), self._energy_edges)

    def window(self) -> WindowFacts | None:
        """Return the facts of the last images; None while there are none."""
        p_values = _array(self.p_values, np.float64)
        images = len(p_values)
        if not images:
            return None
        flagged = int(np.count_nonzero(p_values <= self._flags_up_to))
        return WindowFacts(
            images=images,
            flagged_ratio=flagged / images,
            ood_share=self._share(flagged, images) if self.estimates_share else None,
            ks_distance=ks_distance(p_values),
            ks_limit=ks_limit(images=images, calibration_images=self._calibration_images, looks=self._looks),
        )


def _array(values: deque[Any], dtype: type[np.generic]) -> NDArray[Any]:
    return np.fromiter(values, dtype, len(values))


def _counts(places: NDArray[np.intp], edges: int) -> list[int]:
    counts: list[int] = np.bincount(places, minlength=edges + 1).tolist()
    return counts
