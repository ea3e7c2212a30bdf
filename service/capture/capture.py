"""Capture, as requests see it: it looks at verdicts, hands over what is in the sample, and never waits."""

import time
from collections.abc import Sequence
from datetime import timedelta
from importlib.util import find_spec
from typing import NamedTuple, Protocol

from service.capture.hand_over import Bounds, HandOver
from service.capture.record import CaptureMetrics, Kind, Record
from service.capture.sampler import Choice, Sampler
from service.engine_protocol import Described, Pixels, Verdict
from service.errors import CaptureError
from service.settings import Settings

WAITING = Bounds(images=256, bytes=32 * 2**20)
"""What may wait for the writer; bytes at least for one image of any size that is let in."""
BATCH = Bounds(images=64, bytes=8 * 2**20)
"""What is written together, where the quota is large enough for four of them."""
_BATCHES_IN_QUOTA = 4


class Writes(Protocol):
    """What puts on disk what is handed over."""

    def start(self) -> None:
        """Begin."""

    def close(self) -> None:
        """Write what is still there."""


class Answered(NamedTuple):
    """One request's images: their verdicts, and the files that they came in, or else their pixels."""

    request_id: str
    verdicts: Sequence[Verdict]
    sent: Sequence[bytes]
    pixels: Sequence[Pixels]


class Capture:
    """Chooses among answered images. Its methods are called on the event loop."""

    def __init__(
        self, sampler: Sampler, hand_over: HandOver, writer: Writes, metrics: CaptureMetrics, *, max_bytes: int
    ) -> None:
        """Make one; a single image above `max_bytes` is not kept."""
        self._sampler = sampler
        self._hand_over = hand_over
        self._writer = writer
        self._metrics = metrics
        self._max_bytes = max_bytes

    @property
    def unwritten(self) -> int:
        """Images that were handed over and are not on disk yet, nor dropped."""
        return self._hand_over.unwritten

    def start(self) -> None:
        """Begin to write."""
        self._writer.start()

    def close(self) -> None:
        """Write what was handed over, and stop."""
        self._writer.close()

    def offer(self, bundle: Described, answered: Answered) -> None:
        """Keep those of a request's images that are in the sample; count those that are and can't be kept."""
        for index, verdict in enumerate(answered.verdicts):
            kind: Kind = "flagged" if verdict.is_ood else "control"
            choice = self._sampler.choose(kind)
            if choice is Choice.TAKEN:
                self._take(_record(bundle, answered, index, kind))
            elif choice is Choice.OVER_RATE:
                self._metrics.dropped("rate")

    def _take(self, record: Record) -> None:
        if record.bytes > self._max_bytes:
            self._metrics.dropped("too_large")
        elif not self._hand_over.put(record):
            self._metrics.dropped("queue_full")


def require_library(settings: Settings) -> None:
    """See, before anything is loaded, that what capture needs is installed.

    Raises:
        CaptureError: it is asked for, and is not.
    """
    if settings.capture_dir is not None and find_spec("pyarrow") is None:
        raise CaptureError(
            f"--capture-dir / OOD_CAPTURE_DIR is {str(settings.capture_dir)!r}, and capture needs pyarrow, which is "
            "not installed: pip install 'energy-ood[capture]', or leave the setting out"
        )


def make_capture(settings: Settings, metrics: CaptureMetrics) -> Capture | None:
    """Return what captures for one of a server's HTTP processes, to be started; None if it is off.

    Raises:
        CaptureError: it is asked for, and its library is not installed.
    """
    if settings.capture_dir is None:
        return None
    require_library(settings)
    from service.capture.folder import CaptureFolder
    from service.capture.writer import Writer  # pyarrow

    most = settings.capture_max_bytes // _BATCHES_IN_QUOTA
    hand_over = HandOver(
        waiting=Bounds(WAITING.images, max(WAITING.bytes, settings.max_image_bytes)),
        batch=Bounds(BATCH.images, min(BATCH.bytes, most)),
        wait_s=settings.capture_flush_s,
    )
    folder = CaptureFolder(
        settings.capture_dir, max_bytes=settings.capture_max_bytes, max_age=timedelta(days=settings.capture_days)
    )
    sampler = Sampler(
        {"flagged": settings.capture_flagged_share, "control": settings.capture_control_share},
        settings.capture_images_per_minute / settings.workers,
    )
    return Capture(sampler, hand_over, Writer(folder, hand_over, metrics), metrics, max_bytes=most)


def _record(bundle: Described, answered: Answered, index: int, kind: Kind) -> Record:
    manifest, verdict = bundle.manifest, answered.verdicts[index]
    return Record(
        kind=kind,
        model=f"{manifest.name}@{manifest.version}",
        sha256=bundle.sha256,
        score=manifest.verdict,
        class_name=manifest.classes[verdict.class_id],
        verdict=verdict._replace(scores=None, logits=None),  # which would keep those of a whole batch
        time=time.time(),
        request_id=answered.request_id,
        # Pixels are a view on the whole body, which must not wait with them.
        content=answered.sent[index] if answered.sent else answered.pixels[index].copy(),
    )
