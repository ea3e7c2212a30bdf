"""Every Prometheus metric, and nowhere else. Labels come from closed sets; nothing that a client sends is among them.

Series exist from the start, at 0, so that rates of what has not happened yet can be asked for.
"""

import platform
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Literal

import torch
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

import model_store
from model_store.manifest import Manifest
from service.batcher import DropReason
from service.errors import ANSWERS, INTERNAL

Stage = Literal["decode", "queue", "forward", "total"]
STAGES: tuple[Stage, ...] = ("decode", "queue", "forward", "total")
DROP_REASONS: tuple[DropReason, ...] = ("client_left", "deadline")
DECISIONS = {False: "in_distribution", True: "ood"}
UNMATCHED = "unmatched"
"""The route of a request whose path is none of ours."""

# Equal steps, on which in-distribution p-values are flat, and three finer ones where thresholds are usually set.
P_VALUE_EDGES = (0.001, 0.01, 0.02, *(round(0.05 * step, 2) for step in range(1, 21)))
# A factor of about 2 a step, from a tenth of the least forward pass to the longest deadline that makes sense.
SECONDS_EDGES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCH_EDGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

MODEL_LABELS = ("model", "version")


class ScoreHistogram(Collector):
    """A Prometheus histogram whose bucket edges are each model's own. One thread observes and collects.

    Where edges are below 0 Prometheus has it without `_sum` and `_count`: a sum that may fall is no counter, and the
    count is that of the bucket +Inf.
    """

    def __init__(self, name: str, documentation: str) -> None:
        self._name = name
        self._documentation = documentation
        self._children: dict[tuple[str, ...], ScoreBuckets] = {}

    def add(self, labels: tuple[str, ...], edges: Sequence[float]) -> "ScoreBuckets":
        """Begin the series of one model, empty; `edges` are finite and ascend."""
        self._children[labels] = ScoreBuckets(edges)
        return self._children[labels]

    def collect(self) -> Iterable[Metric]:
        """Yield the family, with every model's series."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=MODEL_LABELS)
        for labels, buckets in self._children.items():
            family.add_metric(labels, buckets.cumulative(), buckets.sum)
        yield family


class ScoreBuckets:
    """The counts of one model's series. Buckets are closed above: an observation equal to an edge is below it."""

    def __init__(self, edges: Sequence[float]) -> None:
        self._edges = tuple(edges)
        self._counts = [0] * (len(edges) + 1)
        self.sum = 0.0

    def observe(self, values: Sequence[float]) -> None:
        """Count values."""
        for value in values:
            self._counts[bisect_left(self._edges, value)] += 1
        self.sum += sum(values)

    def cumulative(self) -> list[tuple[str, float]]:
        """Return (le, count of all at or below it), ending with +Inf."""
        names = [floatToGoString(edge) for edge in (*self._edges, float("inf"))]  # type: ignore[no-untyped-call]
        return list(zip(names, map(float, accumulate(self._counts)), strict=True))


class Metrics:
    """All metrics of one server, in a registry of their own."""

    def __init__(self, routes: Iterable[str]) -> None:
        """Make them; `routes` are the path templates that the server has."""
        # They are a time beside every counter, which Prometheus does not use.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.routes = frozenset(routes)
        self._patterns = [(route, re.compile(re.sub(r"{\w+}", "[^/]+", route))) for route in self.routes]
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self.requests = self._counter("ood_http_requests", "Requests by route and status.", ("route", "status"))
        self.refused = self._counter("ood_refused_requests", "Requests answered with an error, by its code.", ("code",))
        self.images = self._counter("ood_images", "Images judged, by decision.", (*MODEL_LABELS, "decision"))
        self.dropped = self._counter(
            "ood_dropped_requests", "Requests thrown out of a queue before their turn.", (*MODEL_LABELS, "reason")
        )
        self.stage_seconds = self._histogram(
            "ood_stage_seconds", "Seconds a request spent in each stage.", (*MODEL_LABELS, "stage"), SECONDS_EDGES
        )
        self.batch_seconds = self._histogram(
            "ood_batch_seconds", "Seconds a batch took in the network.", MODEL_LABELS, SECONDS_EDGES
        )
        self.batch_images = self._histogram("ood_batch_images", "Images in a batch.", MODEL_LABELS, BATCH_EDGES)
        self.queue_images = self._gauge("ood_queue_images", "Images that wait for a model.", MODEL_LABELS)
        self.threshold = self._gauge(
            "ood_threshold", "Images whose verdict score is at or below this are flagged.", MODEL_LABELS
        )
        self.model_up = self._gauge(
            "ood_model_up", "1 if the model answers, 0 if it failed to load or died.", MODEL_LABELS
        )
        self.model_info = self._gauge("ood_model_info", "1; what is served.", (*MODEL_LABELS, "sha256", "runtime"))
        self.build_info = self._gauge("ood_build_info", "1; what serves.", ("version", "python", "torch"))
        self.pending_bytes = self._gauge("ood_pending_bytes", "Bytes of request bodies held.", ())
        self.p_value = ScoreHistogram("ood_p_value", "Conformal p-values; flat on in-distribution traffic.")
        self.negative_energy = ScoreHistogram("ood_negative_energy", "Negative energies; their threshold is an edge.")
        self.registry.register(self.p_value)
        self.registry.register(self.negative_energy)
        self.build_info.labels(model_store.__version__, platform.python_version(), torch.__version__).set(1)
        self._begin()

    def _begin(self) -> None:
        for route in (*sorted(self.routes), UNMATCHED):
            for status in sorted({200, INTERNAL.status} | {answer.status for answer in ANSWERS.values()}):
                self.requests.labels(route, str(status))
        for answer in (*ANSWERS.values(), INTERNAL):
            self.refused.labels(answer.code)

    def model(self, manifest: Manifest) -> "ModelMetrics":
        """Begin one model's series."""
        return ModelMetrics(self, manifest)

    def route_of(self, path: str) -> str:
        """Return the template that a path is of, or UNMATCHED."""
        if path in self.routes:
            return path
        return next((template for template, pattern in self._patterns if pattern.fullmatch(path)), UNMATCHED)

    def exposition(self) -> bytes:
        """Return all of it as Prometheus reads it, text format 0.0.4."""
        return generate_latest(self.registry)

    def _counter(self, name: str, documentation: str, labels: Sequence[str]) -> Counter:
        return Counter(name, documentation, labels, registry=self.registry)

    def _gauge(self, name: str, documentation: str, labels: Sequence[str]) -> Gauge:
        return Gauge(name, documentation, labels, registry=self.registry)

    def _histogram(self, name: str, documentation: str, labels: Sequence[str], edges: Sequence[float]) -> Histogram:
        return Histogram(name, documentation, labels, registry=self.registry, buckets=edges)


class ModelMetrics:
    """The series of one model."""

    def __init__(self, metrics: Metrics, manifest: Manifest) -> None:
        self._all = metrics
        self._labels = (manifest.name, str(manifest.version))
        calibration = manifest.calibrations[manifest.verdict]
        self._images = {flag: metrics.images.labels(*self._labels, name) for flag, name in DECISIONS.items()}
        self._dropped = {reason: metrics.dropped.labels(*self._labels, reason) for reason in DROP_REASONS}
        self._stages = {stage: metrics.stage_seconds.labels(*self._labels, stage) for stage in STAGES}
        self._batch_seconds = metrics.batch_seconds.labels(*self._labels)
        self._batch_images = metrics.batch_images.labels(*self._labels)
        self._p_value = metrics.p_value.add(self._labels, P_VALUE_EDGES)
        energy_edges = manifest.calibrations["negative_energy"].histogram_edges
        self._negative_energy = metrics.negative_energy.add(self._labels, energy_edges)
        metrics.threshold.labels(*self._labels).set(calibration.threshold)

    def loaded(self, sha256: str, runtime: str, up: Callable[[], bool]) -> None:
        """Say that the model is served; `up` is asked at every scrape."""
        self._all.model_info.labels(*self._labels, sha256, runtime).set(1)
        self._all.model_up.labels(*self._labels).set_function(lambda: float(up()))

    def watch_queue(self, depth: Callable[[], int]) -> None:
        """Ask `depth` at every scrape."""
        self._all.queue_images.labels(*self._labels).set_function(depth)

    def batch(self, images: int, forward_s: float) -> None:
        """Count one forward pass."""
        self._batch_images.observe(images)
        self._batch_seconds.observe(forward_s)

    def dropped(self, reason: DropReason) -> None:
        """Count one request thrown out of the queue."""
        self._dropped[reason].inc()

    def answered(
        self,
        p_values: Sequence[float],
        negative_energies: Sequence[float],
        flags: Sequence[bool],
        seconds: dict[Stage, float],
    ) -> None:
        """Count one request's images and where its time went."""
        for flag, series in self._images.items():
            series.inc(flags.count(flag))
        self._p_value.observe(p_values)
        self._negative_energy.observe(negative_energies)
        for stage, value in seconds.items():
            self._stages[stage].observe(value)
