"""What `GET /models/{model}/watch` says, from the state that the metrics are made of."""

from collections.abc import Sequence
from typing import Any

from model_store.manifest import Manifest
from service.histogram import Buckets
from service.schemas import OodShare, WatchedClass, WatchedCusum, WatchedHistogram, WatchedWindow, WatchReply
from service.watching.class_counts import ClassCounts
from service.watching.watch import Watch, WindowFacts

ASSUMPTION = (
    "All figures compare the traffic with the calibration images and assume that in-distribution images come as those "
    "came (exchangeable): other cameras, crops or encodings, or many near-copies, shift them without anything OOD."
)


def watch_reply(
    manifest: Manifest, watch: Watch, p_value: Buckets, negative_energy: Buckets, classes: ClassCounts
) -> WatchReply:
    """Return it."""
    cusum = watch.cusum
    return WatchReply(
        model=f"{manifest.name}@{manifest.version}",
        images=watch.images,
        flagged=watch.flagged,
        window=_window(watch, p_value, negative_energy),
        cusum=WatchedCusum(statistic=cusum.statistic, limit=cusum.limit, shifted=cusum.shifted, shifts=cusum.shifts),
        p_value=_histogram(p_value, p_value.counts),
        negative_energy=_histogram(negative_energy, negative_energy.counts),
        classes=_classes(manifest.classes, classes),
        images_per_s=watch.throughput.images_per_s,
        assumption=ASSUMPTION,
    )


def _window(watch: Watch, p_value: Buckets, negative_energy: Buckets) -> WatchedWindow:
    return WatchedWindow(
        **_figures(watch.window()),
        p_value=_histogram(p_value, watch.p_value_counts(p_value.edges)),
        negative_energy=_histogram(negative_energy, watch.energy_counts()),
    )


def _figures(facts: WindowFacts | None) -> dict[str, Any]:
    if facts is None:
        return {"images": 0} | dict.fromkeys(("flagged_ratio", "ood_share", "ks_distance", "ks_limit"))
    return facts._asdict() | {"ood_share": facts.ood_share and OodShare(**facts.ood_share._asdict())}


def _histogram(buckets: Buckets, counts: Sequence[int]) -> WatchedHistogram:
    return WatchedHistogram(edges=list(buckets.edges), counts=list(counts))


def _classes(names: Sequence[str], classes: ClassCounts) -> list[WatchedClass] | None:
    if not classes.by_class:
        return None
    return [
        WatchedClass(name=name, in_distribution=unflagged, ood=flagged)
        for name, (unflagged, flagged) in zip(names, classes.by_class, strict=True)
    ]
