"""What a bundle, and what the user wants of the alarm, make one expect of in-distribution traffic."""

from dataclasses import dataclass

from model_store.manifest import Manifest
from service.watching import beta

CONFIDENCE = 0.95
"""Over calibration sets, that the true false-flag rate is at most the bound which the alarm is made for."""


@dataclass(frozen=True)
class WatchOptions:
    """What the user wants.

    window_images: how many of the last images the window holds.
    hours_between_false_alarms, images_per_hour: the alarm's mean time between false alarms, at the expected traffic.
    ood_share: the share of OOD traffic that the alarm is tuned for, in (0, 1).
    """

    window_images: int = 10_000
    hours_between_false_alarms: float = 720.0
    images_per_hour: float = 10_000.0
    ood_share: float = 0.1

    @property
    def images_between_false_alarms(self) -> float:
        """A, on average and at least."""
        return self.hours_between_false_alarms * self.images_per_hour


def stated_rate(manifest: Manifest) -> float:
    """Return k / (n + 1) of the verdict: the false-flag rate, averaged over calibration sets, as p-values have it."""
    calibration = manifest.calibrations[manifest.verdict]
    return calibration.k / (calibration.n + 1)


def highest_rate(manifest: Manifest) -> float:
    """Return the bound that the false-flag rate is below with CONFIDENCE: a quantile of Beta(k, n + 1 - k)."""
    calibration = manifest.calibrations[manifest.verdict]
    return beta.quantile(CONFIDENCE, calibration.k, calibration.n + 1 - calibration.k)


def detection_rate(manifest: Manifest) -> float | None:
    """Return the share of OOD images that the verdict's threshold flags: the mean over the evaluation's far OOD sets.

    None if the bundle was not evaluated, or not with its threshold.
    """
    evaluation = manifest.evaluation
    if evaluation is None:
        return None
    if evaluation.scores:
        return 1 - evaluation.mean_of_score(manifest.verdict).missed / 100 if evaluation.far_ood else None
    if manifest.verdict != "negative_energy":
        return None
    missed = [evaluation.fine_tuned.ood[name].missed for name in evaluation.far_ood]
    known = [percent for percent in missed if percent is not None]
    return 1 - sum(known) / len(known) / 100 if known and len(known) == len(missed) else None


def shifted_rate(manifest: Manifest, ood_share: float) -> float:
    """Return the flag rate that a share of OOD traffic, in (0, 1), gives at most.

    A bundle whose detection rate is not known, or not above its false-flag rate, is taken to flag half of the OOD
    images that it would not flag by mistake.
    """
    highest = highest_rate(manifest)
    stated = detection_rate(manifest)
    detected = stated if stated is not None and stated > highest else (1 + highest) / 2
    return highest + ood_share * (detected - highest)
