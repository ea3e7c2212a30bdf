"""The share of traffic that truly is OOD, estimated from how much of it is flagged."""

from typing import NamedTuple

from service.watching import beta

DOUBT = 0.05
"""Chance that the interval misses the share, over calibration sets and windows; half of it for either."""


class Share(NamedTuple):
    """An estimate and an interval that holds the true share with confidence 1 - DOUBT; all in [0, 1]."""

    estimate: float
    lower: float
    upper: float


def clopper_pearson(flagged: int, images: int, doubt: float) -> tuple[float, float]:
    """Return the interval of a rate that `flagged` of `images` show, exact, with confidence 1 - `doubt`."""
    lower = beta.quantile(doubt / 2, flagged, images - flagged + 1) if flagged else 0.0
    upper = beta.quantile(1 - doubt / 2, flagged + 1, images - flagged) if flagged < images else 1.0
    return lower, upper


def false_flag_interval(*, k: int, calibration_images: int) -> tuple[float, float]:
    """Return what the false-flag rate lies within for all but DOUBT / 2 of calibration sets: Beta(k, n + 1 - k)."""
    shape = (k, calibration_images + 1 - k)
    return beta.quantile(DOUBT / 4, *shape), beta.quantile(1 - DOUBT / 4, *shape)


class ShareEstimator:
    """Solves `flag rate = (1 - share) false_flag_rate + share detection_rate` for the share.

    The false-flag rate is not known but a draw from Beta(k, n + 1 - k), of mean k / (n + 1), so both its interval and
    that of the window's flag rate widen that of the share. The detection rate is taken as it is stated: OOD images that
    are harder to tell than those it was measured on make the share seem too low.
    """

    def __init__(self, *, k: int, calibration_images: int, detection_rate: float) -> None:
        """Make it of a calibration's k and n, and the share of OOD images that is flagged, in [0, 1]."""
        self._false_flags = k / (calibration_images + 1)
        self._fewest, self._most = false_flag_interval(k=k, calibration_images=calibration_images)
        self._detection_rate = detection_rate

    @property
    def is_possible(self) -> bool:
        """Whether OOD images are flagged more often than others at all."""
        return self._detection_rate > self._most

    def __call__(self, flagged: int, images: int) -> Share:
        """Return the share that `flagged` of `images`, at least 1, show."""
        lower, upper = clopper_pearson(flagged, images, DOUBT / 2)
        return Share(
            estimate=self._share(flagged / images, self._false_flags),
            lower=self._share(lower, self._most),
            upper=self._share(upper, self._fewest),
        )

    def _share(self, flag_rate: float, false_flags: float) -> float:
        return min(max((flag_rate - false_flags) / (self._detection_rate - false_flags), 0.0), 1.0)
