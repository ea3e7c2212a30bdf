"""What is watched of one model: a window of its last p-values, and the alarm on its flag rate."""

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

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
    """Told the p-values of all verdicts that were answered, in their order. One thread uses it."""

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
        self._flags_up_to = stated_rate(manifest)
        self._calibration_images = calibration.n
        self._looks = options.images_between_false_alarms
        detected = detection_rate(manifest)
        if detected is not None:
            self._share = ShareEstimator(k=calibration.k, calibration_images=calibration.n, detection_rate=detected)
            self.estimates_share = self._share.is_possible

    def judged(self, p_values: Sequence[float]) -> None:
        """Take the p-values of images that were answered; p <= k / (n + 1) is what flagged means."""
        flags_up_to = self._flags_up_to
        flagged = [at for at, p_value in enumerate(p_values) if p_value <= flags_up_to]
        self.images += len(p_values)
        self.flagged += len(flagged)
        self.cusum.update(len(p_values), flagged)
        self.p_values.extend(p_values)
        self.throughput.count(len(p_values))

    def restore(self, p_values: Sequence[float], cusum: float, *, shifted: bool) -> None:
        """Go on from where another, of the same bundle, stood."""
        self.p_values.extend(p_values)
        self.cusum.restore(cusum, shifted=shifted)

    def window(self) -> WindowFacts | None:
        """Return the facts of the last images; None while there are none."""
        p_values = np.fromiter(self.p_values, np.float64, len(self.p_values))
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
