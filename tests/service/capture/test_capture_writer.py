"""The thread that writes: what lies on disk is what was handed over, and no error ends it."""

import errno
import io
import logging
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from threading import Semaphore

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from service.capture.captured import CapturedImage, read_captured
from service.capture.folder import CaptureFolder, segments
from service.capture.hand_over import Bounds, HandOver
from service.capture.index import SCHEMA, Row, read_index, to_parquet
from service.capture.record import Record
from service.capture.writer import Writer
from service.engine_protocol import Verdict
from service.errors import CaptureError

Make = Callable[..., Record]
Folder = Callable[..., CaptureFolder]


def by_request(root: Path) -> dict[str, CapturedImage]:
    return {image.row.request_id: image for image in read_captured(root).images}


def test_files_are_kept_as_they_came_under_names_of_ours(
    root: Path, folder: Folder, told, write, record, encode
) -> None:
    forms = {"JPEG": (".jpg", "jpeg"), "PNG": (".png", "lossless"), "WEBP": (".webp", "webp"), "GIF": (".gif",
             "lossless"), "BMP": (".bmp", "lossless"), "TIFF": (".tiff", "lossless"), "AVIF": (".avif", "avif"),
             "JPEG2000": (".jp2", "jpeg2000")}  # fmt: skip
    records = [record(at, content=encode(at, form)) for at, form in enumerate(forms)]
    write(folder(), records)
    found = by_request(root)
    for sent, (suffix, encoding) in zip(records, forms.values(), strict=True):
        image = found[sent.request_id]
        assert image.path.read_bytes() == sent.content
        assert image.path.suffix == suffix
        assert (image.row.encoding, image.row.sent_as, image.row.bytes) == (encoding, "file", len(sent.content))
    assert told.kept == {"flagged": 8}


def test_pixels_are_kept_losslessly(root: Path, folder: Folder, told, write, record: Make) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (20, 30, 3), np.uint8)
    write(folder(), [record(content=pixels)])
    image = by_request(root)["request-0"]
    assert (image.path.suffix, image.row.encoding, image.row.sent_as) == (".png", "lossless", "pixels")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(image.path.read_bytes()))), pixels)


def test_a_row_has_the_verdict(root: Path, folder: Folder, told, write, record: Make) -> None:
    verdict = Verdict(7, 0.25, -3.5, 0.125, is_ood=False)
    write(folder(), [record(kind="control", score="knn", class_name="horse", verdict=verdict, time=1.5e9 + 0.25)])
    (image,) = read_captured(root).images
    assert image.row == Row(
        file=image.path.name,
        kind="control",
        model="cifar10@1",
        sha256="0" * 64,
        time=datetime(2017, 7, 14, 2, 40, 0, 250_000, UTC),
        request_id="request-0",
        class_id=7,
        class_name="horse",
        confidence=0.25,
        negative_energy=-3.5,
        score="knn",
        p_value=0.125,
        is_ood=False,
        sent_as="file",
        encoding="lossless",
        bytes=len(image.path.read_bytes()),
    )
    (index,) = root.rglob("*.parquet")
    assert pq.ParquetFile(index).schema_arrow.names == SCHEMA.names  # as others read it
    assert (told.kept, told.drops) == ({"control": 1}, {})


def test_models_and_kinds_lie_apart_and_nothing_is_there_twice(
    root: Path, folder: Folder, told, write, record: Make
) -> None:
    records = [record(at, kind=("flagged", "control")[at % 2], model=f"cifar10@{1 + at % 3}") for at in range(60)]
    write(folder(), records, batch=13)
    found = read_captured(root).images
    assert sorted(image.row.request_id for image in found) == sorted(one.request_id for one in records)
    assert len(list(segments(root))) == 30  # of 13, 13, 13, 13 and 8 records, of each place some
    for image in found:
        assert image.path.parts[-4:-2] == (image.row.model, image.row.kind)
    assert len({image.path.name for image in found}) == 60  # though they lie in many folders
    assert sorted(root.rglob("*.png")) == sorted(image.path for image in found)
    assert told.kept == {"flagged": 30, "control": 30}
    again = folder()
    again.tidy()
    assert told.bytes[-1] == again.bytes > 60 * 4096


def test_an_unwritable_folder_costs_a_line_and_its_return_another(
    root: Path, folder: Folder, told, record: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    root.touch()  # a file where the folder should be
    queue = HandOver(waiting=Bounds(100, 10**9), batch=Bounds(1, 10**9), wait_s=0)
    dropped, kept = Tripwire(3), Tripwire(1)
    told.dropped = dropped.wrap(told.dropped)
    told.captured = kept.wrap(told.captured)
    writer = Writer(folder(), queue, told)
    writer.start()
    for at in range(3):
        queue.put(record(at))
    dropped.wait()
    root.unlink()
    queue.put(record(3))
    kept.wait()
    writer.close()
    assert told.drops == {"write_failed": 3}
    assert list(by_request(root)) == ["request-3"]
    assert [line.message for line in caplog.records] == [
        "captured images are not kept",
        "captured images are kept again",
    ]
    assert "File exists" in caplog.records[0].error
    assert caplog.records[0].reason == "write_failed"


class Tripwire:
    """Waits for a number of calls, which come from another thread."""

    def __init__(self, calls: int) -> None:
        self._calls = calls
        self._seen = Semaphore(0)

    def wrap(self, method: Callable[..., None]) -> Callable[..., None]:
        def called(*arguments: object) -> None:
            method(*arguments)
            self._seen.release()

        return called

    def wait(self) -> None:
        for _ in range(self._calls):
            assert self._seen.acquire(timeout=20)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_from_other_faults(
    root: Path, folder: Folder, told, write, record: Make, number: int, monkeypatch
) -> None:
    """A file system that is full can't be had without rights over the machine, so its answer is made up."""

    def full(*_: object) -> None:
        raise OSError(number, "no room")

    monkeypatch.setattr("service.capture.folder._write_private", full)
    write(folder(), [record(0), record(1)])
    assert told.drops == {"disk_full": 2}
    assert list(segments(root)) == []
    assert list((root / ".writing").iterdir()) == []


def test_content_that_nobody_foresaw_is_dropped_and_logged(
    root: Path, folder: Folder, told, write, record: Make, caplog: pytest.LogCaptureFixture
) -> None:
    write(folder(), [record(0, content=b"no image"), record(1, kind="control")])
    assert (told.drops, told.kept) == ({"write_failed": 1}, {"control": 1})
    assert caplog.records[0].exc_info


def test_no_image_waits_for_a_library_to_be_imported() -> None:
    command = """
import sys
import service.capture.writer
from datetime import UTC, datetime
from service.capture.index import Row, to_parquet
before = set(sys.modules)
row = Row("0.png", "flagged", "m@1", "0", datetime.now(UTC), "r", 0, "c", 1.0, 1.0, "s", 1.0, True, "f", "e", 1)
to_parquet([row])
print(sorted({name.split(".")[0] for name in set(sys.modules) - before}))
"""
    found = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


@pytest.mark.parametrize("content", [b"", b"PAR1 no more PAR1", "cut", "other columns"])
def test_a_damaged_index_is_told_by_its_path(tmp_path: Path, content: bytes | str) -> None:
    if content == "cut":
        row = Row("0.png", "flagged", "m@1", "0", datetime.now(UTC), "r", 0, "c", 1.0, 1.0, "s", 1.0, True, "f", "e", 1)
        content = to_parquet([row])[:-20]
    elif content == "other columns":
        pq.write_table(pa.table({"file": ["0.png"]}), tmp_path / "other.parquet")
        content = (tmp_path / "other.parquet").read_bytes()
    assert isinstance(content, bytes)
    path = tmp_path / "index.parquet"
    path.write_bytes(content)
    with pytest.raises(CaptureError, match=str(path)):
        read_index(path)
