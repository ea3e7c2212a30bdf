"""The Prometheus metrics of what is watched. They are brought up to date when they are asked for."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge

from model_store.manifest import Manifest
from service.watching.class_counts import ClassCounts
from service.watching.expectations import detection_rate, stated_rate
from service.watching.share import false_flag_interval
from service.watching.watch import Watch, WindowFacts

DECISIONS = {False: "in_distribution", True: "ood"}
_NONE_YET = WindowFacts(images=0, flagged_ratio=0.0, ood_share=None, ks_distance=0.0, ks_limit=1.0)


class WatchSeries:
    """Those of all models of a server, in its registry."""

    def __init__(self, registry: CollectorRegistry, labels: Sequence[str]) -> None:
        """Make them; `labels` tell models apart."""

        def gauge(name: str, documentation: str, *further: str) -> Gauge:
            return Gauge(name, documentation, (*labels, *further), registry=registry)

        def counter(name: str, documentation: str, *further: str) -> Counter:
            return Counter(name, documentation, (*labels, *further), registry=registry)

        self.class_images = counter(
            "ood_class_images",
            "Images by predicted class and decision, where there are at most 100.",
            "class",
            "decision",
        )
        self.alpha = gauge("ood_alpha", "The stated false-flag rate, k / (n + 1) of the verdict.")
        self.false_flag_rate = gauge(
            "ood_false_flag_rate", "What the true false-flag rate lies within, for 97.5 % of calibration sets.", "bound"
        )
        self.detection_rate = gauge("ood_detection_rate", "The stated share of OOD images that is flagged.")
        self.window_images = gauge("ood_window_images", "Images in the window of the last ones.")
        self.flagged_ratio = gauge("ood_window_flagged_ratio", "Share of the window that is flagged.")
        self.ks_distance = gauge(
            "ood_window_ks_distance", "Kolmogorov-Smirnov distance of the window's p-values from uniform."
        )
        self.ks_limit = gauge("ood_window_ks_limit", "What that distance stays below in distribution.")
        self.ood_share = gauge(
            "ood_window_ood_share", "Estimated share of the window that truly is OOD, with its 95 % interval.", "bound"
        )
        self.cusum = gauge("ood_cusum", "e-CUSUM of flags, natural logarithm; capped at its limit.")
        self.cusum_limit = gauge("ood_cusum_limit", "Where e-CUSUM says that the flag rate has risen.")
        self.shift = gauge("ood_shift", "1 from when e-CUSUM is at its limit until it is back at 0.")
        self.shifts = counter("ood_shifts", "Times that e-CUSUM has reached its limit.")

    def model(self, manifest: Manifest, watch: Watch, classes: ClassCounts) -> "ModelWatchSeries":
        """Begin one model's series."""
        return ModelWatchSeries(self, manifest, watch, classes)


class ModelWatchSeries:
    """The series of one model."""

    def __init__(self, series: WatchSeries, manifest: Manifest, watch: Watch, classes: ClassCounts) -> None:
        self._labels = (manifest.name, str(manifest.version))
        self._series = series
        self._watch = watch
        self._classes = classes
        self._class_images = [
            [series.class_images.labels(*self._labels, name, decision) for decision in DECISIONS.values()]
            for name, _ in zip(manifest.classes, classes.by_class, strict=False)
        ]
        self._shown = ClassCounts(len(classes.by_class))
        self._shown_shifts = 0
        series.alpha.labels(*self._labels).set(stated_rate(manifest))
        calibration = manifest.calibrations[manifest.verdict]
        interval = false_flag_interval(k=calibration.k, calibration_images=calibration.n)
        for bound, rate in zip(("lower", "upper"), interval, strict=True):
            series.false_flag_rate.labels(*self._labels, bound).set(rate)
        series.cusum_limit.labels(*self._labels).set(watch.cusum.limit)
        stated = detection_rate(manifest)
        if stated is not None:
            series.detection_rate.labels(*self._labels).set(stated)
        self.refresh()

    def refresh(self) -> None:
        """Bring them up to date."""
        self._show_window(self._watch.window() or _NONE_YET)
        self._show_cusum()
        for counters, counted, shown in zip(
            self._class_images, self._classes.by_class, self._shown.by_class, strict=True
        ):
            for at, series in enumerate(counters):
                series.inc(counted[at] - shown[at])
                shown[at] = counted[at]

    def _show_window(self, window: WindowFacts) -> None:
        series, labels = self._series, self._labels
        series.window_images.labels(*labels).set(window.images)
        series.flagged_ratio.labels(*labels).set(window.flagged_ratio)
        series.ks_distance.labels(*labels).set(window.ks_distance)
        series.ks_limit.labels(*labels).set(window.ks_limit)
        if self._watch.estimates_share:
            share = window.ood_share._asdict() if window.ood_share else {"estimate": 0.0, "lower": 0.0, "upper": 1.0}
            for bound, value in share.items():
                series.ood_share.labels(*labels, bound).set(value)

    def _show_cusum(self) -> None:
        cusum, series, labels = self._watch.cusum, self._series, self._labels
        series.cusum.labels(*labels).set(cusum.statistic)
        series.shift.labels(*labels).set(cusum.shifted)
        series.shifts.labels(*labels).inc(cusum.shifts - self._shown_shifts)
        self._shown_shifts = cusum.shifts
