"""The one thread of a process that writes captured images. It never ends by an error: what it can't keep is counted."""

import errno
import io
import logging
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import groupby
from threading import Thread

from PIL import Image

from model_store import images
from service.capture.folder import INDEX, CaptureFolder, Segment, segment_name
from service.capture.hand_over import HandOver
from service.capture.index import Row, to_parquet
from service.capture.record import CaptureMetrics, DropReason, Record

IDLE_S = 60.0
"""How often, without new images, those that are too old are looked for."""
CLOSE_S = 5.0
"""The last images are written in less; a thread that takes longer waits for a disk, or for a process that hangs."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
log = logging.getLogger(__name__)


class Writer:
    """Takes what is handed over and puts it into the folder."""

    def __init__(self, folder: CaptureFolder, hand_over: HandOver, metrics: CaptureMetrics) -> None:
        self._folder = folder
        self._hand_over = hand_over
        self._metrics = metrics
        self._trouble: DropReason | None = None
        self._thread = Thread(target=self._main, name="capture", daemon=True)

    def start(self) -> None:
        """Look through the folder, then write, until the hand-over is closed."""
        self._thread.start()

    def close(self) -> None:
        """Write what is still there; return when that is done, or takes too long."""
        self._hand_over.close()
        if self._thread.is_alive():
            self._thread.join(CLOSE_S)

    def _main(self) -> None:
        self._tidy()
        while (batch := self._hand_over.gather(IDLE_S)) is not None:
            if not batch:
                self._tidy()
            for records in _by_place(batch):
                self._keep(records)

    def _tidy(self) -> None:
        try:
            self._folder.tidy()
        except Exception as err:
            self._tell_trouble(err)
        else:
            self._metrics.holds(self._folder.bytes)

    def _keep(self, records: Sequence[Record]) -> None:
        """Write records of one model and kind as a segment, or count them as dropped."""
        try:
            self._folder.add(_segment(records))
        except Exception as err:
            self._metrics.dropped(self._tell_trouble(err), len(records))
        else:
            self._metrics.captured(records[0].kind, len(records))
            self._tell_recovery()
        self._metrics.holds(self._folder.bytes)

    def _tell_trouble(self, err: Exception) -> DropReason:
        """Log an error unless the last one was of its sort; return the sort."""
        reason: DropReason = "disk_full" if isinstance(err, OSError) and err.errno in _FULL else "write_failed"
        if reason != self._trouble:
            why = {"reason": reason, "error": str(err)}
            log.error("captured images are not kept", extra=why, exc_info=not isinstance(err, OSError))
        self._trouble = reason
        return reason

    def _tell_recovery(self) -> None:
        if self._trouble is not None:
            log.info("captured images are kept again")
        self._trouble = None


def _by_place(batch: Sequence[Record]) -> Iterator[list[Record]]:
    """Give records that belong into one segment, in the order in which they came."""
    ordered = sorted(batch, key=_place)
    return (list(records) for _, records in groupby(ordered, key=_place))


def _place(record: Record) -> tuple[str, str]:
    return record.model, record.kind


def _segment(records: Sequence[Record]) -> Segment:
    """Make a segment of records of one model and kind; no name in it is a client's."""
    name = segment_name()
    contents = [_encoded(record) for record in records]
    names = [f"{name}-{at:02}{images.suffix(content)}" for at, content in enumerate(contents)]
    rows = [_row(*each) for each in zip(names, records, contents, strict=True)]
    files = dict(zip(names, contents, strict=True))
    return Segment(records[0].model, records[0].kind, name, files | {INDEX: to_parquet(rows)})


def _encoded(record: Record) -> bytes:
    if isinstance(record.content, bytes):
        return record.content
    file = io.BytesIO()
    Image.fromarray(record.content).save(file, "PNG")
    return file.getvalue()


def _row(name: str, record: Record, content: bytes) -> Row:
    verdict = record.verdict
    return Row(
        file=name,
        kind=record.kind,
        model=record.model,
        sha256=record.sha256,
        time=datetime.fromtimestamp(record.time, UTC),
        request_id=record.request_id,
        class_id=verdict.class_id,
        class_name=record.class_name,
        confidence=verdict.confidence,
        negative_energy=verdict.negative_energy,
        score=record.score,
        p_value=verdict.p_value,
        is_ood=verdict.is_ood,
        sent_as="file" if content is record.content else "pixels",
        encoding=images.encoding(content),
        bytes=len(content),
    )
