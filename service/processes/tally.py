"""What one HTTP worker counts, until the engine's process, which has the metrics, is told."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from threading import Lock

from model_store.manifest import Manifest
from service.capture.record import DropReason, Kind
from service.counts import CaptureCounts, Counts, Held, ModelCounts, Observed
from service.engine_protocol import Verdict
from service.histogram import Buckets
from service.metrics import P_VALUE_EDGES, SECONDS_EDGES, Routes
from service.stages import STAGES, Stage
from service.watching.class_counts import ClassCounts


class Tally:
    """The counts of a worker. One thread uses it, but for `capture`."""

    def __init__(self, routes: Iterable[str], held: Callable[[], Held], capture: "CaptureTally") -> None:
        """Begin at 0; `routes` are the path templates of the server, `held` gives what the worker holds."""
        self._routes = Routes(routes)
        self._held = held
        self._told = Held()
        self.capture = capture
        self._requests: Counter[tuple[str, int]] = Counter()
        self._refused: Counter[str] = Counter()
        self._models: dict[str, ModelTally] = {}

    def count_request(self, path: str, status: int, code: str | None) -> None:
        """Count a request that was answered; `code` is that of its error."""
        self._requests[self._routes.of(path), status] += 1
        if code:
            self._refused[code] += 1

    def model(self, manifest: Manifest) -> "ModelTally":
        """Return where the verdicts of a model are counted; a new one wherever its edges or classes changed."""
        name, edges = f"{manifest.name}@{manifest.version}", manifest.calibrations["negative_energy"].histogram_edges
        found = self._models.get(name)
        if found is None or (found.energy_edges, found.num_classes) != (tuple(edges), len(manifest.classes)):
            found = self._models[name] = ModelTally(edges, len(manifest.classes))
        return found

    def take(self) -> Counts | None:
        """Return all that was counted since the last time, and begin anew; None if that is nothing."""
        models = {name: taken for name, tally in self._models.items() if (taken := tally.take())}
        held, capture = self._held(), self.capture.take()
        if not (self._requests or models or capture or held != self._told):
            return None
        requests = [(route, status, count) for (route, status), count in self._requests.items()]
        counts = Counts(requests=requests, refused=dict(self._refused), models=models, held=held, capture=capture)
        self._requests.clear()
        self._refused.clear()
        self._told = held
        return counts

    def tell_all(self) -> None:
        """Tell what is held, whatever was told before: there is another engine's process."""
        self._told = Held()
        self.capture.tell_all()


class CaptureTally:
    """The counts of captured images, of which any thread tells."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._captured: Counter[Kind] = Counter()
        self._dropped: Counter[DropReason] = Counter()
        self._bytes = 0
        self._told = True

    def captured(self, kind: Kind, images: int) -> None:
        """Count images that are on disk, with their rows in the index."""
        with self._lock:
            self._captured[kind] += images
            self._told = False

    def dropped(self, reason: DropReason, images: int = 1) -> None:
        """Count images that were chosen and are not kept."""
        with self._lock:
            self._dropped[reason] += images
            self._told = False

    def holds(self, total: int) -> None:
        """Say how many bytes the folder takes now."""
        with self._lock:
            self._bytes = total
            self._told = False

    def take(self) -> CaptureCounts | None:
        """Return what was counted since the last time, and begin anew; None if nothing is new."""
        with self._lock:
            if self._told:
                return None
            counts = CaptureCounts(captured=dict(self._captured), dropped=dict(self._dropped), bytes=self._bytes)
            self._captured.clear()
            self._dropped.clear()
            self._told = True
            return counts

    def tell_all(self) -> None:
        """Tell the bytes once more."""
        with self._lock:
            self._told = False


class ModelTally:
    """The counts of one model."""

    def __init__(self, energy_edges: Sequence[float], num_classes: int) -> None:
        self.energy_edges = tuple(energy_edges)
        self.num_classes = num_classes
        self._begin()

    def answered(self, found: Sequence[Verdict], seconds: dict[Stage, float]) -> None:
        """Count one request's images and where its time went."""
        for verdict in found:
            self._decisions[verdict.is_ood] += 1
        p_values = [verdict.p_value for verdict in found]
        self._p_values += p_values
        self._p_value.observe(p_values)
        self._energy_buckets += self._negative_energy.observe(verdict.negative_energy for verdict in found)
        for stage, value in seconds.items():
            self._stages[stage].observe((value,))
        self._classes.count(found)

    def take(self) -> ModelCounts | None:
        """Return what was counted since the last time, and begin anew; None if that is nothing."""
        if not sum(self._decisions):
            return None
        counts = ModelCounts(
            in_distribution=self._decisions[False],
            ood=self._decisions[True],
            p_value=_observed(self._p_value),
            negative_energy=_observed(self._negative_energy),
            stages={stage: _observed(buckets) for stage, buckets in self._stages.items()},
            p_values=self._p_values,
            energy_buckets=self._energy_buckets,
            classes=self._classes.by_class,
        )
        self._begin()
        return counts

    def _begin(self) -> None:
        self._decisions = [0, 0]
        self._p_value = Buckets(P_VALUE_EDGES)
        self._negative_energy = Buckets(self.energy_edges)
        self._stages = {stage: Buckets(SECONDS_EDGES) for stage in STAGES}
        self._p_values: list[float] = []
        self._energy_buckets: list[int] = []
        self._classes = ClassCounts(self.num_classes)


def _observed(buckets: Buckets) -> Observed:
    return Observed(counts=buckets.counts, sum=buckets.sum)
