"""An alarm on the flag rate: the e-CUSUM of flags (Page 1954; as an e-detector Shin, Ramdas, Rinaldo 2023).

With l the log likelihood ratio of a flag, or of none, under a shifted rate against the expected one,

    S <- max(0, S + l),  alarm at S >= ln A.

Whenever flags come independently at the expected rate or below, the mean number of images from S = 0 to an alarm is at
least A, whatever the shifted rate: that is chosen for the change which should be seen soonest.
"""

import math
from collections.abc import Iterable


class Cusum:
    """The statistic, in natural logarithms; it stops at its limit, so that it falls as soon as flags are rare again.

    `shifted` is true from an alarm until the statistic is back at 0; `shifts` counts alarms. An image adds
    `if_flagged`, above 0, or `if_not`, below it.
    """

    def __init__(self, *, rate: float, shifted_rate: float, limit: float) -> None:
        """Begin at 0.

        Args:
            rate: that of flags in distribution, or an upper bound of it, in (0, 1).
            shifted_rate: that of flags after the change, in (rate, 1).
            limit: ln A, above 0.

        Raises:
            ValueError: they are not in this order.
        """
        if not (0 < rate < shifted_rate < 1 and limit > 0):
            raise ValueError(
                f"rate is {rate}, shifted_rate {shifted_rate}, limit {limit}; they must be 0 < rate < shifted_rate < 1 "
                "and 0 < limit"
            )
        self.limit = limit
        self.statistic = 0.0
        self.shifted = False
        self.shifts = 0
        self.if_flagged = math.log(shifted_rate / rate)
        self.if_not = math.log((1 - shifted_rate) / (1 - rate))

    def update(self, images: int, flagged: Iterable[int]) -> None:
        """Take so many images; `flagged` are the places of those that are flagged among them, from 0, ascending."""
        taken = 0
        for place in flagged:
            self._fall(place - taken)
            self._rise()
            taken = place + 1
        self._fall(images - taken)

    def _rise(self) -> None:
        self.statistic += self.if_flagged
        if self.statistic >= self.limit:
            self.statistic = self.limit
            self.shifts += not self.shifted
            self.shifted = True

    def _fall(self, images: int) -> None:
        """Take images that are not flagged; once at 0, the statistic stays there."""
        self.statistic += images * self.if_not
        if self.statistic <= 0:
            self.statistic, self.shifted = 0.0, False

    def restore(self, statistic: float, *, shifted: bool) -> None:
        """Go on from where another stood; its limit may have been higher."""
        self.statistic = min(statistic, self.limit)
        self.shifted = shifted
