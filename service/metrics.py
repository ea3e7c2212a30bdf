"""Every Prometheus metric, and nowhere else; those of what is watched are in `service.watching.series`.

Labels come from closed sets; nothing that a client sends is among them.

Series exist from the start, at 0, so that rates of what has not happened yet can be asked for.
"""

import platform
import re
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version

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
from prometheus_client.utils import floatToGoString

import model_store
from model_store.manifest import Manifest
from service.batcher import DropReason
from service.capture import record as capture
from service.counts import CaptureCounts, Counts, ModelCounts
from service.engine_protocol import Verdict
from service.errors import ANSWERS, INTERNAL
from service.histogram import BucketHistogram
from service.schemas import WatchReply
from service.stages import STAGES, Stage
from service.watching.class_counts import ClassCounts
from service.watching.expectations import WatchOptions
from service.watching.reply import watch_reply
from service.watching.series import DECISIONS, WatchSeries
from service.watching.watch import Watch

DROP_REASONS: tuple[DropReason, ...] = ("client_left", "deadline")
UNMATCHED = "unmatched"
"""The route of a request whose path is none of ours."""

# Equal steps, on which in-distribution p-values are flat, and three finer ones where thresholds are usually set.
P_VALUE_EDGES = (0.001, 0.01, 0.02, *(round(0.05 * step, 2) for step in range(1, 21)))
# A factor of about 2 a step, from a tenth of the least forward pass to the longest deadline that makes sense.
SECONDS_EDGES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCH_EDGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

MODEL_LABELS = ("model", "version")
PROCESSES = ("engine", "worker")
"""What a server of several processes starts anew when it is gone."""


class Routes:
    """The path templates that a server has, such as `/models/{model}/predict`."""

    def __init__(self, templates: Iterable[str]) -> None:
        self.templates = frozenset(templates)
        self._patterns = [(route, re.compile(re.sub(r"{\w+}", "[^/]+", route))) for route in self.templates]

    def of(self, path: str) -> str:
        """Return the template that a path is of, or UNMATCHED."""
        if path in self.templates:
            return path
        return next((template for template, pattern in self._patterns if pattern.fullmatch(path)), UNMATCHED)


class Metrics:
    """All metrics of one server, in a registry of their own."""

    def __init__(self, routes: Iterable[str], watch: WatchOptions | None = None) -> None:
        """Make them; `routes` are the path templates that the server has, `watch` is as its users want it."""
        # They are a time beside every counter, which Prometheus does not use.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.routes = Routes(routes)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self.requests = self._counter("ood_http_requests", "Requests by route and status.", ("route", "status"))
        self.refused = self._counter("ood_refused_requests", "Requests answered with an error, by its code.", ("code",))
        self.images = self._counter("ood_images", "Images judged, by decision.", (*MODEL_LABELS, "decision"))
        self.dropped = self._counter(
            "ood_dropped_requests", "Requests thrown out of a queue before their turn.", (*MODEL_LABELS, "reason")
        )
        self.stage_seconds = self._bucket_histogram(
            "ood_stage_seconds", "Seconds a request spent in each stage.", (*MODEL_LABELS, "stage")
        )
        self.batch_seconds = self._histogram(
            "ood_batch_seconds", "Seconds a batch took in the network.", MODEL_LABELS, SECONDS_EDGES
        )
        self.batch_images = self._histogram("ood_batch_images", "Images in a batch.", MODEL_LABELS, BATCH_EDGES)
        self.queue_images = self._gauge("ood_queue_images", "Images that wait for a model.", MODEL_LABELS)
        self.waiting_requests = self._gauge("ood_waiting_requests", "Requests that wait, unread, for their turn.", ())
        self.threshold = self._gauge(
            "ood_threshold", "Images whose verdict score is at or below this are flagged.", MODEL_LABELS
        )
        self.model_up = self._gauge(
            "ood_model_up", "1 if the model answers, 0 if it failed to load or died.", MODEL_LABELS
        )
        self.model_info = self._gauge("ood_model_info", "1; what is served.", (*MODEL_LABELS, "sha256", "runtime"))
        self.build_info = self._gauge("ood_build_info", "1; what serves.", ("version", "python", "torch"))
        self.pending_bytes = self._gauge("ood_pending_bytes", "Bytes of request bodies held.", ())
        self.http_workers = self._gauge("ood_http_workers", "HTTP processes that ask the engines.", ())
        self.restarts = self._counter(
            "ood_process_restarts", "Processes of the server that were replaced.", ("process",)
        )
        self.captured = self._counter(
            "ood_captured_images", "Images kept on disk, with their verdicts in the index.", ("kind",)
        )
        self.capture_dropped = self._counter(
            "ood_capture_dropped", "Images of the sample that were not kept.", ("reason",)
        )
        self.capture_bytes = self._gauge("ood_capture_bytes", "Bytes that captured images take on disk.", ())
        self.p_value = self._bucket_histogram(
            "ood_p_value", "Conformal p-values; flat on in-distribution traffic.", MODEL_LABELS
        )
        self.p_value_uniform = self._gauge(
            "ood_p_value_uniform", "Share of p-values at or below `le`, in distribution.", ("le",)
        )
        self.negative_energy = self._bucket_histogram(
            "ood_negative_energy", "Negative energies; their threshold is an edge.", MODEL_LABELS
        )
        self.watch_options = watch or WatchOptions()
        self.watch = WatchSeries(self.registry, MODEL_LABELS)
        self.build_info.labels(model_store.__version__, platform.python_version(), version("torch")).set(1)
        self._models: dict[str, ModelMetrics] = {}
        self.capture = CaptureSeries(self)
        self._begin()

    def _begin(self) -> None:
        for route in (*sorted(self.routes.templates), UNMATCHED):
            for status in sorted({200, INTERNAL.status} | {answer.status for answer in ANSWERS.values()}):
                self.requests.labels(route, str(status))
        for answer in (*ANSWERS.values(), INTERNAL):
            self.refused.labels(answer.code)
        for edge in P_VALUE_EDGES:
            self.p_value_uniform.labels(floatToGoString(edge)).set(edge)  # type: ignore[no-untyped-call]
        for process in PROCESSES:
            self.restarts.labels(process)
        for kind in capture.KINDS:
            self.captured.labels(kind)
        for reason in capture.DROP_REASONS:
            self.capture_dropped.labels(reason)

    def model(self, manifest: Manifest) -> "ModelMetrics":
        """Begin one model's series."""
        found = self._models[f"{manifest.name}@{manifest.version}"] = ModelMetrics(self, manifest)
        return found

    def count_request(self, path: str, status: int, code: str | None) -> None:
        """Count a request that was answered; `code` is that of its error."""
        self.requests.labels(self.routes.of(path), str(status)).inc()
        if code:
            self.refused.labels(code).inc()

    def add(self, counts: Counts) -> None:
        """Add what an HTTP worker has counted; of models that are served no more nothing is."""
        for route, status, more in counts.requests:
            self.requests.labels(route, str(status)).inc(more)
        for code, more in counts.refused.items():
            self.refused.labels(code).inc(more)
        for name, counted in counts.models.items():
            if name in self._models:
                self._models[name].add(counted)
        if counts.capture is not None:
            self.capture.add(counts.capture)

    async def exposition(self) -> bytes:
        """Return all of it as Prometheus reads it, text format 0.0.4."""
        for model in self._models.values():
            model.watch_series.refresh()
        return generate_latest(self.registry)

    def watch_of(self, name: str) -> Watch:
        """Return what is watched of a model, `name@version`, whose series have begun."""
        return self._models[name].watch

    async def watched(self, name: str) -> WatchReply:
        """Return what is watched of a model that is served, `name@version`."""
        return self._models[name].watched()

    def _counter(self, name: str, documentation: str, labels: Sequence[str]) -> Counter:
        return Counter(name, documentation, labels, registry=self.registry)

    def _gauge(self, name: str, documentation: str, labels: Sequence[str]) -> Gauge:
        return Gauge(name, documentation, labels, registry=self.registry)

    def _bucket_histogram(self, name: str, documentation: str, labels: Sequence[str]) -> BucketHistogram:
        histogram = BucketHistogram(name, documentation, labels)
        self.registry.register(histogram)
        return histogram

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
        self._stages = {stage: metrics.stage_seconds.add((*self._labels, stage), SECONDS_EDGES) for stage in STAGES}
        self._batch_seconds = metrics.batch_seconds.labels(*self._labels)
        self._batch_images = metrics.batch_images.labels(*self._labels)
        self._p_value = metrics.p_value.add(self._labels, P_VALUE_EDGES)
        energy_edges = manifest.calibrations["negative_energy"].histogram_edges
        self._negative_energy = metrics.negative_energy.add(self._labels, energy_edges)
        metrics.threshold.labels(*self._labels).set(calibration.threshold)
        self._manifest = manifest
        self.watch = Watch(manifest, metrics.watch_options)
        self.classes = ClassCounts(len(manifest.classes))
        self.watch_series = metrics.watch.model(manifest, self.watch, self.classes)

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

    def answered(self, found: Sequence[Verdict], seconds: dict[Stage, float]) -> None:
        """Count one request's images and where its time went."""
        p_values = [verdict.p_value for verdict in found]
        flagged = sum(verdict.is_ood for verdict in found)
        self._images[False].inc(len(found) - flagged)
        self._images[True].inc(flagged)
        self._p_value.observe(p_values)
        energy_buckets = self._negative_energy.observe(verdict.negative_energy for verdict in found)
        for stage, value in seconds.items():
            self._stages[stage].observe((value,))
        self.watch.judged(p_values, energy_buckets)
        self.classes.count(found)

    def add(self, counted: ModelCounts) -> None:
        """Add what an HTTP worker has counted."""
        self._images[False].inc(counted.in_distribution)
        self._images[True].inc(counted.ood)
        self._p_value.add(counted.p_value.counts, counted.p_value.sum)
        self._negative_energy.add(counted.negative_energy.counts, counted.negative_energy.sum)
        for stage, observed in counted.stages.items():
            self._stages[stage].add(observed.counts, observed.sum)
        self.watch.judged(counted.p_values, counted.energy_buckets)
        self.classes.add(counted.classes)

    def watched(self) -> WatchReply:
        """Return what is watched."""
        return watch_reply(self._manifest, self.watch, self._p_value, self._negative_energy, self.classes)


class CaptureSeries:
    """The series of captured images, counted on any thread."""

    def __init__(self, metrics: Metrics) -> None:
        self._all = metrics

    def captured(self, kind: capture.Kind, images: int) -> None:
        """Count images that are on disk, with their rows in the index."""
        self._all.captured.labels(kind).inc(images)

    def dropped(self, reason: capture.DropReason, images: int = 1) -> None:
        """Count images that were chosen and are not kept."""
        self._all.capture_dropped.labels(reason).inc(images)

    def holds(self, total: int) -> None:
        """Say how many bytes the folder takes now."""
        self._all.capture_bytes.set(total)

    def add(self, counted: CaptureCounts) -> None:
        """Add what an HTTP worker has counted."""
        for kind, images in counted.captured.items():
            self.captured(kind, images)
        for reason, images in counted.dropped.items():
            self.dropped(reason, images)
        self.holds(counted.bytes)
