"""What `GET /models/{model}/watch` says, from the state that the metrics are made of."""

from collections.abc import Sequence

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
        window=_window(watch.window()),
        cusum=WatchedCusum(statistic=cusum.statistic, limit=cusum.limit, shifted=cusum.shifted, shifts=cusum.shifts),
        p_value=_histogram(p_value),
        negative_energy=_histogram(negative_energy),
        classes=_classes(manifest.classes, classes),
        images_per_s=watch.throughput.images_per_s,
        assumption=ASSUMPTION,
    )


def _window(facts: WindowFacts | None) -> WatchedWindow:
    if facts is None:
        return WatchedWindow(images=0, flagged_ratio=None, ood_share=None, ks_distance=None, ks_limit=None)
    share = None if facts.ood_share is None else OodShare(**facts.ood_share._asdict())
    return WatchedWindow(**facts._replace(ood_share=None)._asdict() | {"ood_share": share})


def _histogram(buckets: Buckets) -> WatchedHistogram:
    return WatchedHistogram(edges=list(buckets.edges), counts=list(buckets.counts))


def _classes(names: Sequence[str], classes: ClassCounts) -> list[WatchedClass] | None:
    if not classes.by_class:
        return None
    return [
        WatchedClass(name=name, in_distribution=unflagged, ood=flagged)
        for name, (unflagged, flagged) in zip(names, classes.by_class, strict=True)
    ]
