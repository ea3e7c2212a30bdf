"""A Prometheus histogram whose edges are each series' own, and whose counts other processes may add to."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Buckets:
    """The counts of one series. Buckets are closed above: an observation equal to an edge is below it."""

    def __init__(self, edges: Sequence[float]) -> None:
        """Begin at 0; `edges` are finite and ascend."""
        self.edges = tuple(map(float, edges))
        self.counts = [0] * (len(self.edges) + 1)
        self.sum = 0.0

    def observe(self, values: Iterable[float]) -> list[int]:
        """Count values; return the place of each one's bucket."""
        places = []
        for value in values:
            place = bisect_left(self.edges, value)
            self.counts[place] += 1
            self.sum += value
            places.append(place)
        return places

    def add(self, counts: Sequence[int], total: float) -> None:
        """Count what was observed elsewhere, in buckets of the same edges; `total` is the sum of it.

        Raises:
            ValueError: another number of buckets.
        """
        self.counts = [mine + more for mine, more in zip(self.counts, counts, strict=True)]
        self.sum += total

    def cumulative(self) -> list[tuple[str, float]]:
        """Return (le, count of all at or below it), ending with +Inf."""
        names = [floatToGoString(edge) for edge in (*self.edges, float("inf"))]  # type: ignore[no-untyped-call]
        return list(zip(names, map(float, accumulate(self.counts)), strict=True))


class BucketHistogram(Collector):
    """A histogram made of such series. One thread observes and collects.

    Where edges are below 0 Prometheus has it without `_sum` and `_count`: a sum that may fall is no counter, and the
    count is that of the bucket +Inf.
    """

    def __init__(self, name: str, documentation: str, labels: Sequence[str]) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = labels
        self._children: dict[tuple[str, ...], Buckets] = {}

    def add(self, labels: tuple[str, ...], edges: Sequence[float]) -> Buckets:
        """Begin a series, empty; `edges` are finite and ascend."""
        self._children[labels] = Buckets(edges)
        return self._children[labels]

    def collect(self) -> Iterable[Metric]:
        """Yield the family, with every series."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        for labels, buckets in self._children.items():
            family.add_metric(labels, buckets.cumulative(), buckets.sum)
        yield family
